"""Arguments that the architectures pass on to encoders, and the encoder that stands for none."""

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401  registers models
import torch

import vitseg_zoo


@pytest.mark.parametrize(
    ("arch", "encoder"),
    [
        ("segmenter", "vz-mit_b0"),
        ("segmenter", "vz-tiny_vit"),
        ("fusedsegformer", "vz-mit_b0"),
        ("fusedsegformer", "vz-tiny_vit"),
    ],
)
def test_arguments_reach_the_timm_model(arch: str, encoder: str) -> None:
    model = smp.create_model(arch, encoder, encoder_weights=None, in_channels=4, drop_path_rate=0.9)
    rates = [getattr(module, "drop_prob", 0) for module in model.encoder.modules()]
    assert max(rates) == pytest.approx(0.9)
    assert model.encoder.configured == {"drop_path_rate": 0.9}
    assert model(torch.rand(2, 4, 64, 64)).shape == (2, 1, 64, 64)
    with pytest.raises(TypeError, match="nonsense"):
        smp.create_model(arch, encoder, encoder_weights=None, nonsense=3)


def test_arguments_of_smps_own_encoders_are_smps_affair() -> None:
    smp.create_model("fusedsegformer", "resnet18", encoder_weights=None, drop_path_rate=0.9)
    smp.create_model("segformer", "resnet18", encoder_weights=None, drop_path_rate=0.9)


def test_a_depth_of_zero_is_an_error() -> None:
    for name in ("vz-mit_b0", "vz-tiny_vit"):
        with pytest.raises(ValueError, match="got 0"):
            smp.create_model("segmenter", name, encoder_weights=None, encoder_depth=0)


@pytest.mark.parametrize("arch", ["vitseg", "segmenter", "eomt"])
def test_no_encoder_and_no_weights_mean_the_default_with_random_weights(arch: str, tmp_path) -> None:
    model = smp.create_model(arch, encoder_weights=None, classes=5, encoder_depth=1)
    assert model.config["encoder_name"] == model.default_encoder[0]
    assert model.config["encoder_weights"] is None
    path = vitseg_zoo.save_model(model, tmp_path / "model.safetensors")
    assert vitseg_zoo.load_model(path)[1]["arguments"]["encoder_name"] == model.default_encoder[0]
