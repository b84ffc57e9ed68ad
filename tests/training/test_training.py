"""The training loop: learns, resumes exactly, and the recipe writes what it promises."""

import csv
import json
import logging
import math
import os
import platform
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from PIL import Image
from torch import nn
from warm_python import start_script

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.training import pictures
from vitseg_zoo.training.callbacks import EpochLog, PredictionGallery, TrainingStopped
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO, MovableCheckpoint
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule, collate, to_model
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule, _normalization
from vitseg_zoo.training.precision import choose_precision
from vitseg_zoo.training.results import training_seconds

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "oxford_pets.py"
MODELS = {
    "vitseg": ("vz-vitseg_tiny_patch16_128", {"encoder_blocks": 2}),
    "unet": ("tu-test_resnet", {"decoder_channels": (32, 16, 16, 8, 8)}),
}
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


def _module(arch: str, **options) -> SegmentationModule:
    encoder_name, model_args = MODELS[arch]
    options = {"background": BACKGROUND, "channels_last": True, "model_args": model_args, **options}
    return SegmentationModule(arch, encoder_name, None, CLASS_NAMES, PALETTE, 32, **options)


def _pairs(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(count)
    masks = rng.integers(0, 3, (count, 4, 4)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    return [(rng.integers(0, 80, (32, 32, 3), dtype=np.uint8) + 80 * mask[..., None], mask) for mask in masks]


def _train(
    arch: str, out: Path, epochs: int, resume: bool = False, max_steps: int = -1
) -> dict[str, torch.Tensor]:
    """Trains as the recipe does, on 12 small images; returns the weights."""
    seed_everything(0, verbose=False)
    train = SegmentationDataset(_pairs(12), 32, 3, augment=flip_and_jitter())
    val = SegmentationDataset(_pairs(4), 32, 3)
    data, module = SegmentationDataModule(train, val, val, batch_size=4), _module(arch, lr_step=1)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        max_steps=max_steps,
        callbacks=[
            EpochLog(out / "metrics.csv"),
            PredictionGallery(val, out),
            ModelCheckpoint(out, "last", save_on_train_epoch_end=True, enable_version_counter=False),
        ],
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data, ckpt_path=out / "last.ckpt" if resume else None, weights_only=True)
    return module.state_dict()


@pytest.mark.parametrize("arch", MODELS)
def test_a_resumed_training_equals_an_uninterrupted_one(arch: str, tmp_path: Path):
    whole = _train(arch, tmp_path / "whole", 3)
    _train(arch, tmp_path / "parts", 1)
    torch.manual_seed(123)  # another process would start from other random numbers
    parts = _train(arch, tmp_path / "parts", 3, resume=True)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    metrics = [pictures.read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    assert metrics[0].keys() == metrics[1].keys()
    for name in metrics[0].keys() - {"seconds"}:
        np.testing.assert_array_equal(metrics[0][name], metrics[1][name], err_msg=name)
    assert metrics[1]["epoch"] == [0, 1, 2] and metrics[1]["learning_rate"] == pytest.approx(
        [4e-4, 3.2e-4, 2.56e-4]
    )
    for name in ("whole", "parts"):
        assert Image.open(tmp_path / name / "training.gif").n_frames == 3
    pixels = [np.asarray(Image.open(tmp_path / name / "predictions.png")) for name in ("whole", "parts")]
    np.testing.assert_array_equal(*pixels)

    seconds = training_seconds(tmp_path / "parts" / "metrics.csv")  # of both parts
    assert seconds == pytest.approx(sum(metrics[1]["seconds"]), abs=0.1)


def test_rows_of_metrics_are_of_their_own_epoch(tmp_path: Path):
    _train("unet", tmp_path, 2)
    metrics = pictures.read_metrics(tmp_path / "metrics.csv")
    for stage in ("train", "val"):
        for name in (
            "loss",
            "pixel_accuracy",
            "miou",
            "micro_iou",
            "iou_pet",
            "iou_background",
            "iou_border",
        ):
            assert all(math.isfinite(value) for value in metrics[f"{stage}_{name}"])
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    module = _module("unet")
    module.load_state_dict(saved["state_dict"])
    module.eval()
    right = [
        (module(image[None]).argmax(1)[0] == mask).double().mean()
        for image, mask in SegmentationDataset(_pairs(4), 32, 3)
    ]
    assert metrics["val_pixel_accuracy"][-1] == pytest.approx(torch.stack(right).mean().item(), abs=1e-3)


def test_every_epoch_is_augmented_anew_and_in_another_order(tmp_path: Path):
    drawn = []

    class Augment:
        def set_random_seed(self, seed: int) -> None:
            drawn.append(seed)

        def __call__(self, **pair: np.ndarray) -> dict[str, np.ndarray]:
            return pair

    train, val = (
        SegmentationDataset(_pairs(12), 32, 3, augment=Augment()),
        SegmentationDataset(_pairs(4), 32, 3),
    )
    trainer = Trainer(max_epochs=3, accelerator="cpu", barebones=True)
    trainer.fit(_module("unet"), SegmentationDataModule(train, val, None, batch_size=4))
    expected = []
    for epoch in range(3):
        order = torch.randperm(12, generator=torch.Generator().manual_seed(epoch)).tolist()
        expected += [int(np.random.SeedSequence([0, epoch, index]).generate_state(1)[0]) for index in order]
    assert drawn == expected


def test_batches_are_what_the_data_set_gives():
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (4, 8, 6), np.uint8)
    several = rng.integers(0, 2, (4, 8, 6, 3), np.uint8)
    for images, targets in (
        (rng.integers(0, 256, (4, 8, 6, 3), np.uint8), masks),
        (rng.integers(0, 256, (4, 8, 6), np.uint8), masks.astype(np.int64) - 1),
        (rng.integers(0, 2**16, (4, 8, 6, 5), np.uint16), masks.astype(np.uint16)),
        (rng.random((4, 8, 6, 3), np.float32), several),
    ):
        dataset = SegmentationDataset(list(zip(images, targets, strict=True)), None, 3, ignore_index=-1)
        expected = [torch.stack(parts) for parts in zip(*dataset, strict=True)]
        batch = collate([dataset.augmented(index) for index in range(4)])
        assert batch[0].dtype == (torch.uint8 if images.dtype == np.uint8 else torch.float32)
        assert batch[0].is_contiguous(memory_format=torch.channels_last)
        for found, one in zip(to_model(batch), expected, strict=True):
            assert found.dtype == one.dtype and torch.equal(found, one)


def test_workers_that_stay_augment_every_epoch_anew(tmp_path: Path):
    def weights(workers: int) -> dict[str, torch.Tensor]:
        train = SegmentationDataset(_pairs(12), 32, 3, augment=flip_and_jitter())
        data = SegmentationDataModule(train, SegmentationDataset(_pairs(4), 32, 3), None, 4, workers)
        seed_everything(0, verbose=False)
        module, seen = _module("unet"), []

        class Look(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
                seen.append(float(batch[0].sum()))

        options = {"callbacks": [Look()], "logger": False, "enable_checkpointing": False}
        trainer = Trainer(max_epochs=3, accelerator="cpu", **options)
        trainer.fit(module, data)
        assert trainer.train_dataloader.persistent_workers == (workers > 0)
        assert len(set(seen)) == 9
        return module.state_dict()

    alone, together = weights(0), weights(2)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=0, atol=0, msg=name)


def test_workers_of_a_resumed_training_see_what_those_of_an_uninterrupted_one_saw(tmp_path: Path):
    def batches(epochs: int, resumed: Path | None = None) -> list[float]:
        seen = []

        class Look(Callback):
            def on_train_batch_start(self, trainer, module, batch, batch_index) -> None:
                seen.append(float(batch[0].sum()))

        train = SegmentationDataset(_pairs(12), 32, 3, augment=flip_and_jitter())
        data = SegmentationDataModule(train, SegmentationDataset(_pairs(4), 32, 3), None, 4, num_workers=1)
        saver = ModelCheckpoint(tmp_path, "last", save_on_train_epoch_end=True, enable_version_counter=False)
        options = {"accelerator": "cpu", "logger": False, "callbacks": [Look(), saver]}
        trainer = Trainer(max_epochs=epochs, use_distributed_sampler=False, **options)
        trainer.fit(_module("unet"), data, ckpt_path=resumed)
        return seen

    whole = batches(2)
    assert batches(1) + batches(2, tmp_path / "last.ckpt") == whole and len(set(whole)) == 6


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_goes_bad_stops_the_training_with_its_name(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Source(list):
        def __getitem__(self, index: int):
            if index == 5 and (tmp_path / "out" / "checkpoints").exists():
                raise ValueError("images/f.jpg cannot be read as an image: truncated.")
            return super().__getitem__(index)

        def name(self, index: int) -> str:
            return "images/f.jpg"

    monkeypatch.setattr("vitseg_zoo.data.dataset.free_memory", lambda: 0)
    train, val = SegmentationDataset(Source(_pairs(8)), 32, 3), SegmentationDataset(_pairs(4), 32, 3)
    config = RunConfig(out=tmp_path / "out", epochs=3, precision="32-true")
    prepare(config)
    with pytest.raises(
        TrainingStopped,
        match=r"^images/f\.jpg cannot be read as an image: truncated\. Mend or remove it; --skip-bad, .*"
        r"last\.ckpt is whole: --resume goes on from it\.$",
    ):
        fit(_module("unet"), SegmentationDataModule(train, val, None, 4, workers), config)


def test_the_picture_at_the_end_shows_the_averaged_weights(tmp_path: Path):
    val, module = SegmentationDataset(_pairs(4), 32, 3), _module("unet", learning_rate=1e-2)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[PredictionGallery(val, tmp_path), WeightAveraging(avg_fn=lambda averaged, *_: averaged)],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(module, SegmentationDataModule(val, val, None, batch_size=4))
    with torch.no_grad():  # the average of these weights is what the first step gave
        expected = module.eval()(torch.stack([image for image, _ in val])).argmax(1)
    picture = np.asarray(Image.open(tmp_path / "predictions.png"))[-32:, -4 * 32 :]
    tiles = pictures.color(expected.byte().numpy(), PALETTE)
    np.testing.assert_array_equal(picture, np.concatenate(tiles, axis=1))


def test_shows_images_of_the_whole_data_set(tmp_path: Path):
    frames = [
        (torch.full((3, 2, 2), index / 50), torch.zeros(2, 2, dtype=torch.uint8)) for index in range(50)
    ]
    shown = 50 * PredictionGallery(frames, tmp_path, count=5).images[:, 0, 0, 0]
    assert shown.round().tolist() == [0, 10, 20, 30, 40]  # neighbors may be of one video


def test_an_endless_training_has_no_time_left_to_print(tmp_path: Path, capsys: pytest.CaptureFixture):
    class Stop(Callback):
        def on_train_epoch_end(self, trainer: Trainer, module: SegmentationModule) -> None:
            trainer.should_stop = True

    data = SegmentationDataset(_pairs(4), 32, 3)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=-1,
        callbacks=[EpochLog(tmp_path / "metrics.csv"), Stop()],
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
    )
    trainer.fit(_module("unet"), SegmentationDataModule(data, data, None, batch_size=4))
    printed = capsys.readouterr().out
    assert printed.startswith("epoch 1  train_loss") and "left" not in printed


def test_one_class_is_refused():
    with pytest.raises(ValueError, match=r"needs two classes or more, got \['cat'\]: .* and the background"):
        SegmentationModule("unet", "tu-test_resnet", None, ["cat"], [(0, 0, 0)], 32)


def test_an_epoch_cut_short_has_no_scores_of_the_one_before(tmp_path: Path, capsys: pytest.CaptureFixture):
    _train("unet", tmp_path, 3, max_steps=4)  # three steps are an epoch
    scores = pictures.read_metrics(tmp_path / "metrics.csv")["val_miou"]
    assert math.isfinite(scores[0]) and math.isnan(scores[1])
    whole, cut = (line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch "))
    assert "val_miou" in whole and "val_miou" not in cut


def test_curves_of_a_metrics_file_with_empty_cells(tmp_path: Path):
    rows = [
        "epoch,seconds,train_loss,val_loss,train_miou,val_miou",
        "0,2.5,1.0,0.9,,0.3",
        "1,1.5,0.8,0.7,0.4,nan",
    ]
    (tmp_path / "metrics.csv").write_text("\n".join(rows) + "\n")
    metrics = pictures.read_metrics(tmp_path / "metrics.csv")
    assert math.isnan(metrics["train_miou"][0]) and metrics["train_miou"][1] == 0.4
    assert training_seconds(tmp_path / "metrics.csv") == 4.0
    pictures.save_curves(pictures.read_metrics(tmp_path / "metrics.csv"), tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1320, 396)


@pytest.mark.parametrize("arch", MODELS)
def test_learns_from_photographs(arch: str, data_root: Path):
    pets = SegmentationDataset(OxfordPets(data_root, "train"), 64, 3)
    batch = [torch.stack(tensors) for tensors in zip(*(pets[i] for i in range(16)), strict=True)]
    torch.manual_seed(0)
    module = _module(arch, learning_rate=2e-3)
    optimizer = module.configure_optimizers()["optimizer"]
    losses = []
    for _ in range(12):
        loss = module.loss(module(batch[0]), batch[1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


def test_ignored_pixels_have_no_part_in_the_loss():
    torch.manual_seed(0)
    module = _module("unet", ignore_index=255).eval()
    module.log = lambda *_, **__: None
    image, mask = torch.rand(1, 3, 32, 32), torch.randint(0, 3, (1, 32, 32))
    mask[:, :16] = 255
    expected = torch.nn.functional.cross_entropy(module(image)[:, :, 16:], mask[:, 16:])
    torch.testing.assert_close(module.shared_step((image, mask), "val"), expected)
    assert module.val_metrics.confusion.sum() == 16 * 32


def test_images_are_normalized_as_their_weights_expect():
    assert _normalization("resnet18", None) == ([0.0], [1.0])
    assert _normalization("tu-resnet18", "imagenet")[0] == [0.485, 0.456, 0.406]
    assert _normalization("vz-vit_base_patch16_224", "imagenet")[0] == [0.5, 0.5, 0.5]
    assert _normalization("vz-vit_base_patch16_224", "dino")[0] == [0.485, 0.456, 0.406]


def test_batches_larger_than_the_training_part_are_refused():
    data = SegmentationDataset(_pairs(4), 32, 3)
    with pytest.raises(ValueError, match="batch_size is 5, but there are only 4 training images"):
        SegmentationDataModule(data, data, None, batch_size=5)


_TRAINS = """
import resource, torch
from torch import nn
from vitseg_zoo.ops.memory import keep_freed_memory

model = nn.Sequential(*(nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(3)))
image = torch.rand(1, 16, 768, 768)

def new_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(image).mean().backward()
    model.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

default = min(new_pages() for _ in range(3))
assert keep_freed_memory()
print(default, min(new_pages() for _ in range(10)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_kept_memory_serves_the_next_step():
    result = subprocess.run([sys.executable, "-c", _TRAINS], capture_output=True, text=True, check=True)
    default, kept = map(int, result.stdout.split())
    assert kept < default / 10  # after the first steps none, of 258,000 by default


def test_a_training_on_a_cpu_keeps_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    calls = []
    monkeypatch.setattr("vitseg_zoo.training.loop.keep_freed_memory", lambda: calls.append(True))
    data = SegmentationDataset(_pairs(4), 32, 3)
    config = RunConfig(out=tmp_path, epochs=1, image_size=32, precision="32-true")
    prepare(config)
    fit(_module("unet"), SegmentationDataModule(data, data, data, batch_size=4), config)
    assert calls == [True]


def test_choosing_the_precision_changes_nothing():
    model = _module("unet").model
    before = {key: value.clone() for key, value in model.state_dict().items()}
    random = torch.get_rng_state()
    assert choose_precision(model, (32, 32), batch_size=2, rounds=1) in ("bf16-mixed", "32-true")
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("faster", ["bf16-mixed", "32-true"])
def test_the_faster_precision_is_chosen(faster: str, monkeypatch: pytest.MonkeyPatch):
    clock = [0.0]

    class Timed(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            precision = "bf16-mixed" if torch.is_autocast_enabled("cpu") else "32-true"
            clock[0] += 1 if precision == faster else 2
            return super().forward(x)

    monkeypatch.setattr("vitseg_zoo.training.precision.HAS_BF16", True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("vitseg_zoo.training.precision.time.perf_counter", lambda: clock[0])
    assert choose_precision(Timed(3, 2, 1), (8, 8), batch_size=2, rounds=1) == faster
    assert clock[0] == 2 * (1 + 2)  # a step to set up and one that counts, in either precision


def test_emulated_bf16_is_not_even_tried(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vitseg_zoo.training.precision.HAS_BF16", False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_precision(None, (32, 32)) == "32-true"


@pytest.mark.slow
def test_recipe_writes_what_it_promises(data_root: Path, tmp_path: Path):
    tiny = ("--encoder-name", "vz-vitseg_tiny_patch16_128", "--image-size", "64", "--precision", "32-true")
    out = tmp_path / "out"
    process = start_script(RECIPE, "--data", data_root, "--out", out, *tiny, "--epochs", "1")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    for name in ("metrics.csv", "curves.png", "predictions.png", "training.gif", "checkpoints/best.ckpt"):
        assert (out / name).stat().st_size > 0
    results = json.loads((out / "results.json").read_text())
    assert results["epochs"] == 1 and results["precision"] == "32-true" and results["seconds"] > 0
    assert 0 < results["test_last"]["miou"] < 1 and "micro_iou" in results["test_best"]
    with open(out / "metrics.csv", newline="") as file:
        assert len(list(csv.DictReader(file))) == 1
    assert "epoch 1/1  train_loss" in printed and "0:00:00 left" in printed


@pytest.mark.slow
def test_recipe_stops_after_max_steps_and_goes_on_with_the_same_model(
    data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    tiny = ("--encoder-name", "vz-vitseg_tiny_patch16_128", "--image-size", "32", "--precision", "32-true")
    process = start_script(RECIPE, "--data", data_root, "--out", tmp_path, *tiny, "--max-steps", "2")
    printed, said = process.communicate()
    assert process.returncode == 0, said
    assert "epoch 1/50" in printed and "0:00:00 left" in printed
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert "test_last" in json.loads((tmp_path / "results.json").read_text())

    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--out", str(tmp_path), "--image-size", "32", "--resume"])
    message = "was trained with encoder_name vz-vitseg_tiny_patch16_128, not vz-vitseg_small_patch16_128"
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--arch", "unett"], "Wrong architecture type `unett`"),
        (["--batch-size", "10000"], r"batch_size is 10000, but there are only \d+ training images"),
        (["--data", "nowhere"], r"no Oxford-IIIT Pet data in nowhere.*fetch and unpack it by hand"),
    ],
)
def test_recipe_says_what_is_wrong_in_one_line(
    arguments: list[str], message: str, data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_network(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--data", str(data_root), "--out", "out", *arguments])
    with pytest.raises(SystemExit, match=message) as caught:
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert "\n" not in caught.value.args[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--resume"], r"there is nothing to resume: .*last\.ckpt does not exist"),
        ([], r"holds an earlier training: give another --out, or --resume"),
    ],
)
def test_recipe_never_overwrites_nor_resumes_nothing(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "metrics.csv").write_text("epoch\n0\n")
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--out", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(RECIPE), run_name="__main__")


def test_recipe_resumes_only_with_the_metrics_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--out", str(tmp_path), "--resume"])
    with pytest.raises(SystemExit, match=r"there is nothing to resume: .*metrics\.csv does not exist"):
        runpy.run_path(str(RECIPE), run_name="__main__")


SMALL = "--arch unet --encoder-name tu-test_resnet --image-size 32 --batch-size 4 --precision 32-true"


@pytest.fixture
def small_pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as `oxford-iiit-pet`, with 12 photographs for training and validation and 3 for tests."""
    root = tmp_path / "pets" / "oxford-iiit-pet"
    for folder in ("images", "annotations/trimaps"):
        (root / folder).mkdir(parents=True)
    for split, count in {"trainval": 12, "test": 3}.items():
        names = [f"{split}_{index}" for index in range(count)]
        for name, (image, mask) in zip(names, _pairs(count), strict=True):
            Image.fromarray(image).save(root / "images" / f"{name}.jpg")
            Image.fromarray(mask + 1).save(root / "annotations" / "trimaps" / f"{name}.png")
        (root / "annotations" / f"{split}.txt").write_text("".join(f"{name} 1 1 1\n" for name in names))
    monkeypatch.chdir(tmp_path)
    return root


def _run_here(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(RECIPE), "--data", "pets", *SMALL.split(), *arguments])
    runpy.run_path(str(RECIPE), run_name="__main__")


@pytest.mark.parametrize(
    "arguments, code, message",
    [
        (
            "--out pets/oxford-iiit-pet/annotations/test.txt",
            1,
            r"test.txt cannot be written to \(File exists",
        ),
        ("--precision nonsense", 1, "Precision 'nonsense' is invalid"),
        ("--devices nonsense", 1, "`devices` selected with"),
        ("--arch fpn --image-size 40", 1, "--image-size 40 does not fit the model, give another, as 64"),
        ("--epochs 0", 2, "--epochs should be 1 or more, got 0"),
        ("--batch-size 0", 2, "--batch-size should be 1 or more, got 0"),
        ("--num-workers -1", 2, "--num-workers should be 0 or more, got -1"),
        ("--lr -1", 2, "--lr should be a number above 0, got -1"),
    ],
)
def test_recipe_says_what_is_wrong_before_it_trains(
    arguments: str,
    code: int,
    message: str,
    small_pets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    def no_training(*_, **__):
        raise AssertionError("a training was started")

    monkeypatch.setattr(Trainer, "fit", no_training)
    with pytest.raises(SystemExit) as caught:
        _run_here(monkeypatch, "--out", "out", *arguments.split())
    error = capsys.readouterr().err if code == 2 else caught.value.code
    assert re.search(message, error) and (code == caught.value.code or "\n" not in error)


@pytest.mark.parametrize("fault", ["missing", "cut", "other size"])
def test_recipe_names_a_bad_photograph_before_it_trains(
    fault: str, small_pets: Path, monkeypatch: pytest.MonkeyPatch
):
    image, trimap = (
        small_pets / "images" / "test_2.jpg",
        small_pets / "annotations" / "trimaps" / "test_2.png",
    )
    if fault == "missing":
        image.unlink()
    elif fault == "cut":
        image.write_bytes(image.read_bytes()[:-200])
    else:
        Image.fromarray(np.ones((5, 6), np.uint8)).save(trimap)
    with pytest.raises(SystemExit) as caught:
        _run_here(monkeypatch, "--out", "out")
    assert "test_2.jpg" in caught.value.code and "test_2.png" in caught.value.code
    assert not Path("out", "metrics.csv").exists()


def test_recipe_resumes_only_the_same_training(small_pets: Path, monkeypatch: pytest.MonkeyPatch):
    _run_here(monkeypatch, "--out", "new/out", "--epochs", "2", "--max-steps", "1")  # of two in an epoch
    assert pictures.read_metrics(Path("new/out/metrics.csv"))["step"] == [1]
    for arguments, message in {
        "--lr 1e-3": r"was trained with lr 0.0004, not 0.001: say so with --lr 0.0004, or give",
        "--batch-size 3": "was trained with batch_size 4, not 3: say so with --batch-size 4",
        "--seed 1": "was trained with seed 0, not 1: say so with --seed 0",
        "--encoder-weights imagenet": "trained with encoder_weights None, not imagenet: leave out --enc",
    }.items():
        with pytest.raises(SystemExit, match=message):
            _run_here(monkeypatch, "--out", "new/out", "--resume", *arguments.split())

    shutil.copytree("new/out", "copy")
    _run_here(monkeypatch, "--out", "copy", "--resume", "--epochs", "3")
    assert pictures.read_metrics(Path("copy/metrics.csv"))["epoch"] == [0, 1, 2]
    for arguments, message in {
        "--epochs 2": "is of epoch 3 already: give --epochs 3 or more",
        "--max-steps 1": "already: give --max-steps",
    }.items():
        with pytest.raises(SystemExit, match=message):
            _run_here(monkeypatch, "--out", "copy", "--resume", *arguments.split())
    for content in (b"", b"\x80", Path("copy/checkpoints/last.ckpt").read_bytes()[:-500]):
        Path("copy/checkpoints/last.ckpt").write_bytes(content)
        with pytest.raises(SystemExit, match=r"last\.ckpt is damaged: copy best\.ckpt over it"):
            _run_here(monkeypatch, "--out", "copy", "--resume")


def test_the_best_checkpoint_stays_the_best_in_a_copied_folder(tmp_path: Path):
    for folder in ("before", "after", "alone"):
        (tmp_path / folder).mkdir()
    options = {"filename": "best", "monitor": "val_miou", "mode": "max"}
    before = MovableCheckpoint(tmp_path / "before", **options)
    before.best_model_path = before.kth_best_model_path = str(tmp_path / "before" / "best.ckpt")
    before.best_k_models = {before.best_model_path: torch.tensor(0.8)}
    before.best_model_score = before.kth_value = torch.tensor(0.8)
    (tmp_path / "after" / "best.ckpt").touch()
    after, alone = (MovableCheckpoint(tmp_path / folder, **options) for folder in ("after", "alone"))
    assert after.state_key == ModelCheckpoint(tmp_path, **options).state_key
    after.load_state_dict(before.state_dict())
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert after.best_model_path == str(tmp_path / "after" / "best.ckpt")
    assert not after.check_monitor_top_k(trainer, torch.tensor(0.7))
    with pytest.warns(UserWarning, match="dirpath has changed"):
        alone.load_state_dict(before.state_dict())  # the best one is not there
    assert alone.best_model_score is None


def test_checkpoints_are_written_beside_their_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path, moves = tmp_path / "new" / "last.ckpt", []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *paths: (moves.append(paths), replace(*paths)))
    trainer = Trainer(accelerator="cpu", plugins=[AtomicCheckpointIO()], logger=False)
    trainer.strategy.save_checkpoint({"step": 1}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    ((partial, target),) = moves
    assert target == path and partial.parent.parent == path.parent  # on the same file system

    def stop(_, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.strategy.save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1} and list(path.parent.iterdir()) == [path]
