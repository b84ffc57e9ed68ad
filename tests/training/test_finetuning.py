"""The own-data recipe: its loss, schedule and averaged weights, and the file that it leaves."""

import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from vitseg_zoo import load_model
from vitseg_zoo.data.transforms import crop_flip_jitter
from vitseg_zoo.inference.evaluate import evaluate
from vitseg_zoo.losses import CrossEntropyAndDice
from vitseg_zoo.training.finetuning import FineTuningModule, weight_averaging
from vitseg_zoo.training.pictures import read_metrics

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "own_data.py"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def test_loss_of_a_hand_computed_case():
    """Two pixels of two classes, one with 80 % for the right class, one with 50 %; a third is ignored."""
    probability = torch.tensor([[0.8, 0.5, 0.1], [0.2, 0.5, 0.9]])
    logits, mask = probability.log()[None, :, None], torch.tensor([[[0, 1, 255]]])
    cross_entropy = -(np.log(0.8) + np.log(0.5)) / 2
    dice = 1 - (2 * 0.8 / (1 + 1.3) + 2 * 0.5 / (1 + 0.7)) / 2
    loss = CrossEntropyAndDice(ignore_index=255, dice_weight=0.5)(logits, mask)
    assert loss.item() == pytest.approx(cross_entropy + 0.5 * dice, rel=1e-5)


def test_learning_rate_rises_then_falls_to_zero_and_earlier_blocks_have_less(monkeypatch):
    module = FineTuningModule(
        "vitseg",
        "vz-vitseg_tiny_patch16_128",
        None,
        ["cat", "rest"],
        [(0, 0, 0), (9, 9, 9)],
        32,
        learning_rate=1e-3,
        layer_decay=0.5,
        warmup=0.2,
        model_args={"encoder_blocks": 2},
    )
    monkeypatch.setattr(Trainer, "estimated_stepping_batches", 100)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    configured = module.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(101):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    rates = np.array(rates)
    assert rates[0].max() == pytest.approx(1e-3 / 20) and rates[-1].max() == 0
    assert rates[:20].max() == rates.max() == pytest.approx(rates[19].max())
    assert rates[60].max() == pytest.approx(1e-3 * (1 + np.cos(0.6 * np.pi)) / 2)
    assert rates[50].min() / rates[50].max() == pytest.approx(0.5**3)  # patches, two blocks, head
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.05}


def test_average_forgets_where_the_training_started():
    """Weights that jump from 5 to 1 and stay: the average is at 1, where a plain EMA would be at 1.66."""
    average, weight = weight_averaging(0.998)._kwargs["avg_fn"], torch.tensor(5.0)
    for step in range(1, 901):  # the first step's weights are copied
        weight = average(weight, torch.tensor(1.0), torch.tensor(step))
    assert weight.item() == pytest.approx(1, abs=1e-3)
    late = average(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(10**6))
    assert late.item() == pytest.approx(0.002, rel=1e-4)


def test_crops_move_image_and_mask_together():
    mask = np.kron(np.arange(16).reshape(4, 4), np.ones((12, 12))).astype(np.uint8)
    image = np.stack([mask * 10, np.zeros_like(mask), np.zeros_like(mask)], 2)
    augment = crop_flip_jitter(32)
    places = set()
    for seed in range(8):
        augment.set_random_seed(seed)
        out = augment(image=image, mask=mask)
        assert out["image"].shape == (32, 32, 3) and out["mask"].shape == (32, 32)
        seen = np.unique(out["mask"])
        means = [out["image"][out["mask"] == value].mean() for value in seen if value]
        assert means == sorted(means)  # brighter, class by class, whatever the jitter does to colors
        places.add(tuple(seen))
    assert len(places) > 3


def _write_data(tmp_path: Path) -> None:
    """Eight images to train on and three to measure on, in two classes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for index in range(count):
            mask = rng.integers(0, 2, (2, 3)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
            image = np.stack([200 * mask + 20] * 3, 2)
            if index == 0:
                mask[:10] = 255
            Image.fromarray(image).save(tmp_path / "data" / split / "images" / f"{index}.png")
            Image.fromarray(mask).save(tmp_path / "data" / split / "masks" / f"{index}.png")
    (tmp_path / "data" / "classes.txt").write_text("dark\nbright\n")


def test_recipe_writes_a_file_that_says_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _write_data(tmp_path)
    (tmp_path / "about.json").write_text(json.dumps({"license": "cc0-1.0", "metric": "to be measured"}))
    arguments = (
        f"--data {tmp_path}/data --out {tmp_path}/out --about {tmp_path}/about.json --ignore-index 255"
    )
    small = "--image-size 32 --crop-size 32 --epochs 4 --batch-size 4 --precision 32-true"
    monkeypatch.setattr(sys, "argv", ["own_data.py", *arguments.split(), *small.split()])
    runpy.run_path(str(RECIPE), run_name="__main__")

    out = tmp_path / "out"
    model, metadata = load_model(out / "model.safetensors")
    assert metadata["class_names"] == ["dark", "bright"] and metadata["license"] == "cc0-1.0"
    assert metadata["input_size"] == [32, 32] and "own_data.py --data data --out out" in metadata["recipe"]
    assert str(tmp_path).encode() not in (out / "model.safetensors").read_bytes()
    results = json.loads((out / "results.json").read_text())
    assert f"mIoU {100 * results['test_last']['miou']:.1f} %" in metadata["metric"]
    pairs = [
        tuple(
            np.asarray(Image.open(tmp_path / "data" / "val" / kind / f"{i}.png"))
            for kind in ("images", "masks")
        )
        for i in range(3)
    ]
    assert evaluate(model, metadata, pairs, ignore_index=255) == results["test_last"]
    assert read_metrics(out / "metrics.csv")["epoch"] == [0, 1, 2, 3]
    assert all((out / name).is_file() for name in ("curves.png", "predictions.png", "training.gif"))

    # The file has the averaged weights, not the last ones.
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)
    name = "segmentation_head.0.weight"
    averaged, trained = (checkpoint[key][f"model.{name}"] for key in ("state_dict", "current_model_state"))
    torch.testing.assert_close(model.state_dict()[name], averaged, atol=1e-3, rtol=1e-3)
    assert not torch.equal(averaged, trained)

    with pytest.raises(SystemExit, match="holds an earlier training"):
        runpy.run_path(str(RECIPE), run_name="__main__")

    # A second training starts from the file, and what is frozen stays.
    again = f"--data {tmp_path}/data --out {tmp_path}/again --ignore-index 255 --init {out}/model.safetensors"
    frozen = "--freeze 3 --grad-checkpointing --layer-decay 0.75"
    monkeypatch.setattr(sys, "argv", ["own_data.py", *again.split(), *small.split(), *frozen.split()])
    runpy.run_path(str(RECIPE), run_name="__main__")
    after = load_model(tmp_path / "again" / "model.safetensors")[0].encoder.model
    before = model.encoder.model
    assert torch.equal(after.patch_embed.proj.weight, before.patch_embed.proj.weight)
    kept = [
        torch.equal(a.mlp.fc1.weight, b.mlp.fc1.weight)
        for stage, other in zip(after.stages, before.stages, strict=True)
        for a, b in zip(stage.blocks, other.blocks, strict=True)
    ]
    assert kept == [True] * 3 + [False] * 5


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        ("--about absent.json", 1, "No such file.*absent.json"),
        ("--about broken.json", 1, "broken.json is not JSON"),
        ("--about list.json", 1, "list.json should hold a JSON object"),
        ("--about unknown.json", 1, "Unknown metadata licences"),
        ("--arch nonsense", 1, "Wrong architecture type `nonsense`"),
        ("--encoder-name nonsense", 1, "Wrong encoder name `nonsense`$"),
        ("--model-args [1]", 2, "should be a JSON object"),
        ("--init absent.safetensors", 1, "absent.safetensors"),
        ("--crop-size 40", 1, "--crop-size 40 does not fit the model, give another, as 64"),
        ("--image-size 40", 1, "--image-size 40 does not fit the model, give another, as 64"),
        ("--arch unet --encoder-name tu-test_resnet --layer-decay 0.7", 1, "Unet has no timm model"),
        ("--arch unet --encoder-name tu-test_resnet --grad-checkpointing", 1, "cannot do gradient checkpoi"),
        ("--freeze 99", 1, r"blocks should lie in \[0, 8\]"),
        ("--precision nonsense", 1, "Precision 'nonsense' is invalid"),
        ("--out classes.txt", 1, r"classes.txt cannot be written to \(File exists\): give another --out"),
        ("--epochs 0", 2, "--epochs should be 1 or more, got 0"),
        ("--freeze -1", 2, "--freeze should be 0 or more, got -1"),
        ("--lr nan", 2, "--lr should be a number above 0, got nan"),
    ],
)
def test_recipe_says_what_is_wrong_before_it_trains(
    arguments: str,
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def no_training(*_, **__):
        raise AssertionError("a training was started")

    _write_data(tmp_path)
    for name, text in {"broken": "{", "list": "[]", "unknown": '{"licences": "mit"}'}.items():
        (tmp_path / f"{name}.json").write_text(text)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "classes.txt").touch()
    monkeypatch.setattr(Trainer, "fit", no_training)
    small = "--data data --out out --ignore-index 255 --image-size 32 --crop-size 32 --precision 32-true"
    monkeypatch.setattr(sys, "argv", ["own_data.py", *small.split(), *arguments.split()])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(RECIPE), run_name="__main__")
    error = capsys.readouterr().err if code == 2 else caught.value.code
    assert re.search(message, error) and (code == caught.value.code or "\n" not in error)


def test_recipe_makes_one_batch_of_few_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    _write_data(tmp_path)
    small = f"--data {tmp_path}/data --out {tmp_path}/out --ignore-index 255 --image-size 32 --crop-size 32"
    monkeypatch.setattr(sys, "argv", ["own_data.py", *small.split(), "--precision", "32-true"])
    monkeypatch.setattr(Trainer, "fit", lambda *_, **__: sys.exit("trains"))
    with pytest.raises(SystemExit):
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert "8 train, 3 val images" in capsys.readouterr().out
