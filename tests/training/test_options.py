"""What every recipe can be told: each option does what it says, in a training of six tiny images."""

import math
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from vitseg_zoo import load_model
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.training.callbacks import TrainingStopped
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule, divide
from vitseg_zoo.training.loop import fit, out_of_memory, prepare
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.pictures import read_metrics

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
PALETTE = [(255, 0, 0), (0, 0, 255)]
TINY = {"model_args": {"decoder_channels": (32, 16, 16, 8, 8)}, "learning_rate": 1e-2}


def _pairs(count: int, several: bool = False) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(count)
    masks = rng.integers(0, 2, (count, 4, 4, 2)).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    images = (60 + 60 * masks.sum(-1, keepdims=True) + rng.integers(0, 20, (count, 32, 32, 3))).astype(
        np.uint8
    )
    return [(image, mask if several else mask[..., 0]) for image, mask in zip(images, masks, strict=True)]


def _fit(out: Path, *, several: bool = False, module: dict | None = None, run: dict | None = None, **options):
    """Trains a tiny U-Net; returns the module and what `fit` returns."""
    given = {"epochs": 2, "batch_size": 2, "image_size": 32, "precision": "32-true", **(run or {})}
    config = RunConfig(out=out, **given)
    prepare(config)
    train, val = (SegmentationDataset(_pairs(n, several), 32, 2) for n in (6, 3))
    data = SegmentationDataModule(train, val, None, config.batch_size)
    arguments = {"class_names": ["low", "high"], "palette": PALETTE, **TINY, **(module or {})}
    made = SegmentationModule("unet", "tu-test_resnet", None, image_size=32, **arguments)
    options = {"select": None, "score": lambda: {"miou": 0.0, "pixel_accuracy": 0.0}, **options}
    return made, fit(made, data, config, **options)


def _checkpoint(out: Path) -> dict:
    return torch.load(out / "checkpoints" / "last.ckpt", weights_only=True)


def test_accumulated_batches_make_one_step_and_gradients_are_clipped(tmp_path: Path):
    norms = []

    class Norms(Callback):
        def on_train_start(self, trainer, module) -> None:
            trainer.optimizers[0].register_step_post_hook(self.measure)

        def measure(self, optimizer, *_) -> None:
            grads = [p.grad.norm() for group in optimizer.param_groups for p in group["params"]]
            norms.append(torch.stack(grads).norm().item())

    run = {"accumulate_grad_batches": 3, "gradient_clip_val": 1e-3}
    _fit(tmp_path, run=run, callbacks=[Norms()])
    assert _checkpoint(tmp_path)["global_step"] == 2  # one in each epoch of three batches
    assert norms == [pytest.approx(1e-3, rel=1e-2)] * 2


def test_early_stopping_ends_where_nothing_gets_better(tmp_path: Path):
    _, results = _fit(tmp_path, run={"epochs": 9, "early_stopping": 2}, module={"learning_rate": 1e-12})
    assert results["epochs"] == 3 and len(read_metrics(tmp_path / "metrics.csv")["epoch"]) == 3


def test_overfit_learns_a_few_images(tmp_path: Path, capsys: pytest.CaptureFixture):
    run = {"overfit": 2, "epochs": 20, "batch_size": 2}
    _, results = _fit(tmp_path, run=run)
    said = capsys.readouterr().out
    assert "6 train, 2 val, 2 test images" in said  # as many steps as otherwise
    assert results["test_last"]["miou"] > 0.95  # of these two, not of the validation images
    assert f"last: mIoU {100 * results['test_last']['miou']:.1f} %" in said


def test_a_learning_rate_is_found_and_nothing_trained(tmp_path: Path, capsys: pytest.CaptureFixture):
    _, found = _fit(tmp_path, run={"find_lr": True, "epochs": 50})
    assert 1e-5 < found["learning_rate"] < 0.11
    assert f"train with --lr {found['learning_rate']:.1e}" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.ckpt")) and not (tmp_path / "metrics.csv").exists()
    _fit(tmp_path, run={"epochs": 1})  # the folder is free


def test_a_logger_of_lightning_gets_the_scores(tmp_path: Path):
    _fit(tmp_path, run={"epochs": 1}, logger=CSVLogger(tmp_path / "logs"))
    (file,) = (tmp_path / "logs").rglob("metrics.csv")
    assert {"train_loss", "val_loss", "val_miou"} <= set(file.read_text().splitlines()[0].split(","))


def test_compile_and_gradient_checkpointing_reach_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiled = []
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__)
    )
    _fit(tmp_path, run={"epochs": 1, "compile": True})
    assert compiled == ["Unet"]
    with pytest.raises(ValueError, match="cannot do gradient checkpointing"):
        _fit(tmp_path / "other", run={"grad_checkpointing": True})


def test_one_class_by_a_sigmoid_predicts_where_it_is(tmp_path: Path):
    module, _ = _fit(tmp_path, module={"mode": "binary"}, run={"overfit": 2, "epochs": 12})
    assert module.hparams.class_names == ["high"] and module.model.segmentation_head[0].out_channels == 1
    assert read_metrics(tmp_path / "metrics.csv")["val_iou_high"][-1] > 0.7
    model, metadata = load_model(tmp_path / "checkpoints" / "last.ckpt")
    image, mask = _pairs(6)[0]
    assert (Predictor(model, "cpu", metadata=metadata)(image).labels == mask).mean() > 0.8


def test_several_labels_a_pixel(tmp_path: Path):
    _fit(tmp_path, several=True, module={"mode": "multilabel"}, run={"epochs": 6})
    scores = read_metrics(tmp_path / "metrics.csv")
    assert 0.3 < scores["val_miou"][-1] <= 1 and math.isfinite(scores["val_iou_low"][-1])
    assert (tmp_path / "predictions.png").exists()


def test_out_of_memory_says_what_to_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = RunConfig(out=tmp_path, image_size=512, accumulate_grad_batches=2)
    said = out_of_memory(config, 8)
    assert "--batch-size 4 with --accumulate-grad-batches 4, which makes the same steps" in said
    assert "--image-size 320 or --grad-checkpointing" in said
    assert "--batch-size" not in out_of_memory(config, 1)

    def full(*_):
        torch.empty(2**60)  # PyTorch's own error of a CPU

    monkeypatch.setattr(SegmentationModule, "training_step", full)
    with pytest.raises(TrainingStopped, match="not enough memory for 2 images at a time: try --batch-size 1"):
        _fit(tmp_path)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_a_stopped_and_resumed_training_equals_an_uninterrupted_one(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With EMA, the schedule, and, of half precision, the scaler of the gradients."""

    def run(out: Path, resume: bool = False) -> None:
        options = {}
        if precision == "16-mixed":  # Lightning has it for GPUs alone, but PyTorch's scaler works anywhere
            scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", growth_interval=2))
            options = {"plugins": [AtomicCheckpointIO(), scaled], "precision": None}
        given = {"epochs": 4, "ema": 0.9, "resume": resume, "precision": "bf16-mixed"}
        _fit(out, run=given, module={"lr_step": 1}, **options)

    run(tmp_path / "whole")
    step = SegmentationModule.training_step
    for stop in (4, 10):  # within the second and the fourth epoch

        def stopping(self, batch, index, stop=stop):
            if self.global_step == stop:
                raise MemoryError("killed")
            return step(self, batch, index)

        monkeypatch.setattr(SegmentationModule, "training_step", stopping)
        with pytest.raises(MemoryError):
            run(tmp_path / "parts", resume=stop > 4)
        torch.manual_seed(stop)  # another process has other random numbers
    monkeypatch.setattr(SegmentationModule, "training_step", step)
    run(tmp_path / "parts", resume=True)

    whole, parts = (_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for key in ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers"):
        _assert_equal(whole[key], parts[key], key)
    if precision == "16-mixed":
        assert whole["MixedPrecision"]["scale"] > 2**16  # grew
        assert whole["MixedPrecision"] == parts["MixedPrecision"]
    metrics = [read_metrics(tmp_path / name / "metrics.csv") for name in ("whole", "parts")]
    for name in metrics[0].keys() - {"seconds"}:
        np.testing.assert_array_equal(metrics[0][name], metrics[1][name], err_msg=name)


def test_a_job_that_slurm_requeues_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Lightning asks SLURM for the requeue at SIGUSR1; SLURM then ends the job and runs its command again."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent), prepend=os.pathsep)
    job = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)

    class Slurm(Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            if trainer.global_step == 4:  # in the second epoch of three steps
                os.kill(os.getpid(), signal.SIGUSR1)
                os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        _fit(tmp_path / "job", run={"epochs": 3}, callbacks=[Slurm()])
    assert stopped.value.code == 143 and (tmp_path / "asked").read_text() == "requeue 7\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    _fit(tmp_path / "job", run={"epochs": 3})
    for name in job:
        monkeypatch.delenv(f"SLURM_{name}")
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    _fit(tmp_path / "whole", run={"epochs": 3})
    job, whole = (_checkpoint(tmp_path / name)["state_dict"] for name in ("job", "whole"))
    _assert_equal(whole, job, "state_dict")
    assert not list((tmp_path / "job").glob("hpc_*"))


def _assert_equal(one, other, where: str) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            _assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        for index, pair in enumerate(zip(one, other, strict=True)):
            _assert_equal(*pair, f"{where}[{index}]")
    else:
        assert one == other or (one != one and other != other), where


@pytest.mark.parametrize("count, batch_size, world_size", [(7, 2, 2), (3, 1, 2), (10, 4, 3), (5, 64, 4)])
def test_every_image_is_measured_by_one_process_in_equally_many_batches(count, batch_size, world_size):
    parts = [divide(count, batch_size, world_size, rank) for rank in range(world_size)]
    assert sorted(index for batches in parts for batch in batches for index in batch) == list(range(count))
    assert len({len(batches) for batches in parts}) == 1 and all(all(batches) for batches in parts)
    with pytest.raises(ValueError, match="too few for 9 devices"):
        divide(8, 1, 9, 0)
