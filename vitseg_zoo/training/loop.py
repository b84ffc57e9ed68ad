"""Everything around a recipe: `prepare` before it builds its model, and `fit`, which trains it."""

import io
import json
import logging
import math
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, RichProgressBar
from lightning.pytorch.tuner import Tuner
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.memory import is_oom_error
from torch import nn

from vitseg_zoo.cost import describe_device
from vitseg_zoo.data.dataset import BadImage
from vitseg_zoo.data.origin import origin_of
from vitseg_zoo.files import atomic_path
from vitseg_zoo.ops.memory import keep_freed_memory
from vitseg_zoo.terminal import say
from vitseg_zoo.training.callbacks import (
    EpochLog,
    FiniteLoss,
    ParameterStrides,
    PredictionGallery,
    TrainingStopped,
)
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO, MovableCheckpoint
from vitseg_zoo.training.config import RunConfig, option
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import weight_averaging
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.pictures import read_metrics, save_curves
from vitseg_zoo.training.precision import choose_precision
from vitseg_zoo.training.results import command, save_results, summary, training_seconds, versions

# Folders that trainings of this process write to; the system lets go of them when it ends, however it ends.
_locks: dict[Path, FileLock] = {}


def prepare(config: RunConfig) -> None:
    """Take the folder of a training, refuse one that is taken, and draw all randomness from the seed.

    To be called before the model is built. The options are written to `out`/config.json; with `resume` they
    are compared with those that are there.

    Args:
        config: The recipe's options.

    Raises:
        ValueError: If `out` holds an earlier training and `resume` is not set; or if it is set, and an option
            that decides the result differs.
        FileNotFoundError: If `resume` is set and there is nothing to resume.
        OSError: If `out` cannot be written to, or another process trains into it.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greeting and hints
    warnings.filterwarnings("ignore", message=".*LeafSpec|.*does not have many workers|.*is not empty")
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)):  # the same command again, after SLURM's requeue
        config.resume = config.resume or config_file(config).exists()
    saved, metrics, last = config_file(config), config.out / "metrics.csv", _last(config)
    if config.resume:
        # Without a checkpoint, killed in its first epoch, a training begins again.
        for needed in (metrics, last) if last.exists() or not saved.exists() else ():
            if not needed.exists():
                raise FileNotFoundError(f"there is nothing to resume: {needed} does not exist.")
    elif metrics.exists() or last.exists():
        raise ValueError(
            f"{config.out} holds an earlier training: give another --out, or --resume to continue it."
        )
    _make_writable(config.out)
    _lock(config.out)
    if config.resume and saved.exists():
        before = json.loads(saved.read_text(encoding="utf-8"))
        config.keep_chosen(before)
        config.check_resumed(before, last)
    _write_config(config)
    seed_everything(config.seed, verbose=False)


def fit(
    module: SegmentationModule,
    data: SegmentationDataModule,
    config: RunConfig,
    *,
    select: str | None = "val_miou",
    score: Callable[[], dict[str, float]] | None = None,
    callbacks: Sequence[Callback] = (),
    **trainer_options: Any,
) -> dict[str, Any]:
    """Train a module, survive what may happen meanwhile, and write all that a run leaves.

    `out` receives metrics.csv, curves.png, predictions.png, training.gif, results.json and
    checkpoints/last.ckpt, with `select` best.ckpt, too. All files are whole or not there.

    Args:
        module: The model with its loss, optimizer and schedule.
        data: Loaders of the training, validation and test images.
        config: The recipe's options, for which `prepare` was called.
        select: Which score of an epoch decides what best.ckpt holds; `None` for no selection.
        score: Measures the trained model; by default the last and the best weights on the test split.
        callbacks: Further callbacks of Lightning.
        trainer_options: Passed to Lightning's `Trainer`, as `logger=TensorBoardLogger(config.out)`; there is
            no logger by default.

    Returns:
        What results.json holds: scores, parameters, epochs, seconds, precision, hardware, command, versions.
        With `config.find_lr` only the `learning_rate` that was found; nothing is trained.

    Raises:
        ValueError: If the model does not take the images; before the training starts.
        TrainingStopped: If the loss is no longer finite, memory is short, an image cannot be read, or a file
            cannot be written; the last whole checkpoint stays.

    Example:
        >>> fit(module, data, config)["test_last"]["miou"]  # doctest: +SKIP
        0.53
    """
    _write_config(config)  # with what the recipe has chosen
    if config.overfit:
        data.overfit(config.overfit)
        score = None  # the few images are what is measured
    channels = getattr(module, "channels", 3)
    for name in ("crop_size", "image_size"):
        if hasattr(config, name):
            try_size(module, getattr(config, name), option(name), data.batch_size, channels)
    for dataset in data.datasets.values():
        if dataset is not None:
            dataset.cache()  # reads all images
    last, metrics = _last(config), config.out / "metrics.csv"
    resumed = config.resume and last.exists()
    if not resumed:
        metrics.unlink(missing_ok=True)  # of a first epoch that was not finished
    for path in config.out.glob("hpc_ckpt_*.ckpt"):
        # Of Lightning's requeue by SLURM, from within an epoch: last.ckpt repeats an uninterrupted training.
        path.unlink(missing_ok=True)
    precision = config.precision
    if resumed:
        precision, data.first_epoch = _check_checkpoint(last, config)
    several = config.num_nodes > 1 or config.devices not in ("auto", "1") or "WORLD_SIZE" in os.environ
    if precision == "auto" and several and not torch.cuda.is_available():
        precision = "32-true"  # each process would measure for itself, and they must agree
    if precision == "auto":
        size = getattr(config, "crop_size", config.image_size)
        precision = choose_precision(module.model, (size, size), min(data.batch_size, 8), channels)
    if config.grad_checkpointing:
        module.checkpoint_gradients()
    if config.compile:
        module.model.compile()
    module.save_hyperparameters({"precision": precision, "batch_size": data.batch_size})
    options = {"dirpath": last.parent, "save_on_train_epoch_end": True, "enable_version_counter": False}
    savers: list[Callback] = [MovableCheckpoint(filename="last", **options)]
    if select is not None:
        savers.insert(0, MovableCheckpoint(filename="best", monitor=select, mode="max", **options))
    if config.ema is not None:
        savers.insert(0, weight_averaging(config.ema))
    if config.early_stopping is not None:
        savers.append(EarlyStopping("val_miou", mode="max", patience=config.early_stopping, min_delta=0.0))
    # FSDP has its own way of writing checkpoints, and takes no other.
    plugins = [] if "fsdp" in config.strategy else [AtomicCheckpointIO()]
    # Where no bar can be drawn, a line an epoch says enough.
    has_bar = sys.stdout.isatty() or ("ipykernel" in sys.modules and find_spec("ipywidgets") is not None)
    progress: list[Callback] = [RichProgressBar()] if has_bar else []
    trainer = Trainer(
        **{
            "max_epochs": config.epochs,
            "max_steps": config.max_steps,
            "precision": precision,
            "devices": config.devices,
            "num_nodes": config.num_nodes,
            "strategy": config.strategy,
            "sync_batchnorm": torch.cuda.is_available(),  # PyTorch has none for CPUs
            "accumulate_grad_batches": config.accumulate_grad_batches,
            "gradient_clip_val": config.gradient_clip_val,
            "default_root_dir": config.out,
            # The gallery before averaged weights, whose picture it shows at the end.
            "callbacks": [
                FiniteLoss(data.batch_names),
                ParameterStrides(),
                EpochLog(metrics),
                PredictionGallery(data.datasets["val"], config.out),
                *savers,
                *callbacks,
                *progress,
            ],
            "plugins": plugins,
            "enable_progress_bar": has_bar,
            "enable_model_summary": False,
            "logger": False,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,
            **trainer_options,
        }
    )
    # With max_steps Lightning resumes in the middle of an epoch, but checkpoints are those of an epoch's end.
    trainer.fit_loop._iteration_based_training = lambda: False
    parameters = sum(parameter.numel() for parameter in module.parameters())
    counts = [f"{len(dataset)} {split}" for split, dataset in data.datasets.items() if dataset is not None]
    if trainer.is_global_zero:
        say(
            f"{module.hparams.arch} with {module.hparams.encoder_name}: {parameters:,} parameters, "
            f"precision {precision}, {', '.join(counts)} images",
            flush=True,
        )
    if trainer.strategy.root_device.type == "cpu":
        keep_freed_memory()
    if config.find_lr:
        return {"learning_rate": _find_lr(trainer, module, data)}
    started = time.process_time()
    _train(trainer, module, data, last, resumed, config)
    cpu_seconds = time.process_time() - started
    best = last.with_name("best.ckpt")
    # --max-steps ended before the first validation
    if select is not None and trainer.is_global_zero and not best.exists():
        shutil.copy(last, best)
    trainer.strategy.barrier()
    if score is not None:
        scores = {"test_last": score()} if trainer.is_global_zero else {}
    else:
        kinds = ("last", "best") if select is not None else ("last",)
        scores = {
            f"test_{kind}": _test(trainer, module, data, last.with_name(f"{kind}.ckpt")) for kind in kinds
        }
    if not trainer.is_global_zero:  # it measured its part
        return {}
    save_curves(read_metrics(metrics), config.out / "curves.png")
    # The images that `score` looked at, which it names, or those of the epochs' scores.
    measured = getattr(score, "pairs", getattr(data.datasets["test"] or data.datasets["val"], "source", None))
    results = {
        "arch": module.hparams.arch,
        "encoder_name": module.hparams.encoder_name,
        "parameters": parameters,
        "epochs": trainer.current_epoch,
        **scores,
        "seconds": training_seconds(metrics),
        "cpu_seconds": round(cpu_seconds, 1),
        "precision": precision,
        "hardware": describe_device(trainer.strategy.root_device, trainer.world_size),
        "command": command(),
        "config": config.to_json(),
        "measured_on": origin_of(measured),
        "versions": versions(),
    }
    save_results(results, config.out / "results.json")
    for kind, values in scores.items():
        say(f"{kind.removeprefix('test_')}: {summary(values)}")
    say(f"written to {config.out}: results.json and what goes with it")
    if lock := _locks.pop(config.out.resolve(), None):
        lock.release()
    return results


def _train(
    trainer: Trainer,
    module: LightningModule,
    data: SegmentationDataModule,
    last: Path,
    resumed: bool,
    config: RunConfig,
) -> None:
    """Run Lightning's loop, and turn what can happen to a user's training into one sentence."""

    def kept() -> str:
        return f"{last} is whole: --resume goes on from it" if last.exists() else "--resume begins again"

    try:
        trainer.fit(module, data, ckpt_path=last if resumed else None, weights_only=True)
    except SIGTERMException:
        say(f"stopped in epoch {trainer.current_epoch + 1}. {kept()}.", file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM) from None
    except (KeyboardInterrupt, SystemExit):  # the latter is Lightning's answer to Ctrl-C
        say(f"stopped in epoch {trainer.current_epoch + 1}. {kept()}.", file=sys.stderr)
        raise KeyboardInterrupt from None
    except TrainingStopped:
        raise
    except BadImage as error:
        # From a worker it comes with the trace there; the sentence is its last line.
        sentence = str(error).strip().splitlines()[-1].removeprefix(f"{BadImage.__module__}.BadImage: ")
        raise TrainingStopped(
            f"{sentence.rstrip('.')}. Mend or remove it; {option('skip_bad')}, where a recipe has it, passes "
            f"over it. {kept()}."
        ) from error
    except OSError as error:  # a full disk
        raise TrainingStopped(f"The training cannot go on ({error}). {kept()}.") from error
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError) or is_oom_error(error):  # of a GPU, or of a CPU
            raise TrainingStopped(out_of_memory(config, data.batch_size)) from error
        error.inside_training = True  # type: ignore[attr-defined]  # keeps its trace
        raise


def out_of_memory(config: RunConfig, batch_size: int) -> str:
    """Say what to try where the device's memory does not hold a step of `batch_size` images."""
    size = "crop_size" if hasattr(config, "crop_size") else "image_size"
    # Two thirds of a side, half of the pixels.
    smaller = max(32, getattr(config, size) * 2 // 3 // 32 * 32)
    other = f"{option(size)} {smaller}"
    if not config.grad_checkpointing:
        other += " or --grad-checkpointing"
    if batch_size > 1:
        accumulated = f"--accumulate-grad-batches {2 * config.accumulate_grad_batches}"
        other = f"--batch-size {batch_size // 2} with {accumulated}, which makes the same steps, {other}"
    return f"The device has not enough memory for {batch_size} images at a time: try {other}."


def _find_lr(trainer: Trainer, module: LightningModule, data: SegmentationDataModule) -> float:
    """Find a learning rate by Lightning's range test: a tenth of that at which the loss was lowest."""
    trainer.callbacks = [callback for callback in trainer.callbacks if not isinstance(callback, EpochLog)]
    # Its bar is not for a log file.
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        finder = Tuner(trainer).lr_find(module, data, min_lr=1e-6, max_lr=1.0, update_attr=False)
    # Not Lightning's suggestion: the slope over the rate and not over its logarithm is steepest at the start.
    losses = torch.tensor(finder.results["loss"][10:]).nan_to_num(nan=math.inf)
    if not losses.isfinite().any():
        raise ValueError("No learning rate between 1e-6 and 1 made the loss fall: look at images and masks.")
    found = finder.results["lr"][10 + int(losses.argmin())] / 10
    say(f"a tenth of the learning rate at which the loss was lowest: train with --lr {found:.1e}", flush=True)
    return found


def _test(trainer: Trainer, module: LightningModule, data: SegmentationDataModule, path: Path) -> dict:
    trainer.test(module, data, ckpt_path=path, weights_only=True, verbose=False)
    return {
        key.removeprefix("test_"): round(float(value), 5) for key, value in trainer.callback_metrics.items()
    }


def _write_config(config: RunConfig) -> None:
    if rank_zero_only.rank == 0:
        with atomic_path(config_file(config)) as partial:
            partial.write_text(json.dumps(config.to_json(), indent=2) + "\n", encoding="utf-8")


def config_file(config: RunConfig) -> Path:
    """Say where the options of a training are written to."""
    return config.out / "config.json"


def _last(config: RunConfig) -> Path:
    return config.out / "checkpoints" / "last.ckpt"


def _check_checkpoint(last: Path, config: RunConfig) -> tuple[str, int]:
    """See whether a checkpoint can be gone on with; give its precision and the next epoch."""
    try:
        checkpoint = torch.load(last, map_location="cpu", weights_only=True)
        before, epochs, steps = (checkpoint[key] for key in ("hyper_parameters", "epoch", "global_step"))
    except Exception as error:  # PyTorch has many for a damaged file
        raise ValueError(
            f"{last} is damaged: copy best.ckpt over it to go on from there, or give another --out."
        ) from error
    if 0 < config.epochs <= epochs:
        raise ValueError(f"{last} is of epoch {epochs + 1} already: give --epochs {epochs + 1} or more.")
    if 0 <= config.max_steps < steps:
        raise ValueError(
            f"{last} is of step {steps} already: give --max-steps {steps} or more, or leave it out."
        )
    # As before, whatever a new trial would say.
    precision = before.get("precision", "auto") if config.precision == "auto" else config.precision
    return precision, epochs + 1


@torch.no_grad()
def try_size(module: nn.Module, size: int, option: str, batch_size: int, channels: int = 3) -> None:
    """See whether a model takes images (B, channels, size, size), in training and to predict.

    Raises:
        ValueError: If it does not; one sentence names the option.
    """
    module.eval()
    try:
        module(torch.zeros(1, channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:  # SMP's, ours and timm's
        raise ValueError(
            f"{option} {size} does not fit the model, give another, as {-(-size // 32) * 32}: {error}"
        ) from error
    module.train()
    if batch_size > 1:
        return
    statistics = {name: buffer.clone() for name, buffer in module.named_buffers()}
    try:
        module(torch.zeros(1, channels, size, size))
    except ValueError as error:  # a batch norm of one value
        raise ValueError(
            f"--batch-size 1 does not do for this model in training, give 2 or more: {error}"
        ) from error
    finally:
        for name, buffer in module.named_buffers():
            buffer.copy_(statistics[name])


def _make_writable(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): give another --out.") from error


def _lock(folder: Path) -> None:
    """Keep other processes from training into a folder, for as long as this one lives."""
    folder = folder.resolve()
    if folder in _locks or rank_zero_only.rank:  # the training's other processes write nothing
        return
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"Another process trains into {folder}: give another --out, or wait for it.") from None
    _locks[folder] = lock
