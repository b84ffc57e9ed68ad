"""`vitseg train` without a choice: what it chooses, says, and keeps when it is resumed."""

from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from safetensors.torch import save_file

from vitseg_zoo.training.choices import ChosenConfig, choose
from vitseg_zoo.training.loop import prepare


def _images(count: int, height: int = 300, width: int = 400) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.zeros((height, width, 3), np.uint8), np.zeros((height, width), np.uint8))] * count


def test_without_weights_it_says_what_that_costs_and_how_to_bring_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    config = ChosenConfig(out=tmp_path)
    choose(config, _images(500), torch.device("cpu"))
    assert (config.encoder_name, config.encoder_weights) == ("vz-mit_b0", None)
    assert (config.lr, config.layer_decay, config.freeze) == (1e-3, 1.0, None)
    assert (config.image_size, config.crop_size, config.batch_size, config.epochs) == (256, 192, 16, 64)
    said = capsys.readouterr().out
    assert "scores lower where images are few" in said and "apache-2.0" in said
    assert "vitseg download mit_pvt_b0.in1k --to DIR" in said and "VITSEG_ZOO_WEIGHTS=DIR" in said
    assert "chosen: --lr 0.001 (for random weights)" in said
    assert len(said.splitlines()) == 8


def test_free_weights_are_taken_and_a_resumed_training_keeps_them(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(0)
    weights = timm.create_model("mit_pvt_b0").state_dict()
    save_file(weights, tmp_path / "mit_pvt_b0.in1k.safetensors")
    monkeypatch.setenv("VITSEG_ZOO_WEIGHTS", str(tmp_path))
    config = ChosenConfig(out=tmp_path / "out")
    prepare(config)
    choose(config, _images(40, 64, 64), torch.device("cpu"))
    assert (config.encoder_name, config.encoder_weights) == ("vz-mit_pvt_b0", "imagenet")
    assert (config.lr, config.layer_decay, config.freeze, config.batch_size) == (3e-4, 0.75, 4, 10)
    assert "mit_pvt_b0.in1k, trained on ImageNet-1k, license apache-2.0" in capsys.readouterr().out
    model = smp.create_model(config.arch, config.encoder_name, config.encoder_weights, classes=2)
    key = "patch_embed.proj.weight"
    torch.testing.assert_close(model.encoder.model.state_dict()[key], weights[key], rtol=0, atol=0)

    again = ChosenConfig(out=tmp_path / "out", epochs=7)
    again.keep_chosen(config.to_json())
    assert again.encoder_name == "vz-mit_pvt_b0" and again.lr == 3e-4 and again.epochs == 7


def test_what_is_said_stays_and_unfree_weights_are_not_taken_by_themselves(
    tmp_path: Path, capsys: pytest.CaptureFixture
):
    said = {"encoder_name": "vz-mit_b1", "lr": 5e-4, "epochs": 3, "image_size": 128, "batch_size": 2}
    config = ChosenConfig(out=tmp_path, **said)
    choose(config, _images(10), torch.device("cpu"))
    assert {name: getattr(config, name) for name in said} == said and config.crop_size == 96
    assert config.encoder_weights is None
    assert "is not free (NVIDIA Source Code License" in capsys.readouterr().out


@pytest.mark.parametrize("arch", ["segmenter", "segnet", "unet"])
def test_the_chosen_encoder_suits_the_architecture(arch: str, tmp_path: Path):
    config = ChosenConfig(out=tmp_path, arch=arch, encoder_weights=None)
    choose(config, _images(10), torch.device("cpu"))
    model = smp.create_model(arch, config.encoder_name, None, classes=2).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


def test_crops_are_of_the_images_own_resolution(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = ChosenConfig(out=tmp_path, encoder_weights=None, crop=True)
    choose(config, _images(10, 1200, 1000), torch.device("cpu"))
    assert (config.crop_size, config.image_size, config.batch_size) == (256, 256, 16)
    assert "steps of 160 parts" in capsys.readouterr().out
    given = ChosenConfig(out=tmp_path, encoder_weights=None, crop=True, image_size=64, crop_size=96)
    choose(given, _images(10, 1200, 1000), torch.device("cpu"))
    assert (given.crop_size, given.image_size) == (96, 64)  # what is given stays, to be compared when resumed
