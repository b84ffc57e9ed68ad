"""Callbacks: a line of metrics for each epoch, and the same validation images predicted after each epoch."""

import csv
import math
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import Dataset

from vitseg_zoo.files import atomic_path
from vitseg_zoo.palette import mix_colors
from vitseg_zoo.terminal import printable
from vitseg_zoo.training import pictures


class TrainingStopped(RuntimeError):
    """A training that cannot go on, for a reason that the user can do something about."""


class FiniteLoss(Callback):
    """Stops a training whose loss is no longer finite, before its weights are saved or measured.

    Args:
        names: Names the images of a batch of the running epoch, given its number.
    """

    def __init__(self, names: Callable[[int], list[str]]) -> None:
        self.names = names
        self.losses: list[torch.Tensor] = []  # of the steps that are not looked at yet

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_index: int
    ) -> None:
        self.losses.append(outputs["loss"].detach())
        # Read where it costs nothing: on a GPU it would wait for each step.
        if module.device.type == "cpu" or batch_index % 50 == 49:
            self._check(trainer, batch_index)
        self.last_batch = batch_index

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.on_train_epoch_end(trainer, module)
        if "val_loss" in trainer.callback_metrics:  # shows what the epoch's last step did
            self.losses.append(trainer.callback_metrics["val_loss"].to(module.device))
            self._check(trainer, None)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.losses:
            self._check(trainer, self.last_batch)

    def _check(self, trainer: Trainer, last_batch: int | None) -> None:
        """Look at the losses, of which the last is of this batch, or of the validation."""
        losses, self.losses = torch.stack(self.losses).tolist(), []
        wrong = next((at for at, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if wrong is None:
            return
        where = f"epoch {trainer.current_epoch + 1}, "
        if last_batch is None:
            where += f"measured after step {trainer.global_step}"
        else:
            batch = last_batch - (len(losses) - 1 - wrong)
            names = self.names(batch)
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            where += f"batch {batch + 1}, of {', '.join(map(printable, names[:8]))}{more}"
        raise TrainingStopped(
            f"the loss is {losses[wrong]} in {where}: give a lower --lr, --gradient-clip-val 1 or "
            "--precision 32-true, and look at these images and masks."
        )


class ParameterStrides(Callback):
    """Gives gradients the strides of their parameters, where several processes exchange them.

    Dimensions of size 1, as those of a 1 x 1 convolution, have no meaningful stride, and kernels write any.
    DistributedDataParallel warns of each difference, though memory is laid out alike.
    """

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.world_size > 1:
            for parameter in module.parameters():
                if parameter.requires_grad and 1 in parameter.shape:
                    parameter.register_hook(partial(_restride, parameter.stride()))


def _restride(stride: tuple[int, ...], gradient: torch.Tensor) -> torch.Tensor:
    """Change strides of dimensions of size 1."""
    pairs = zip(gradient.shape, gradient.stride(), stride, strict=True)
    if gradient.stride() != stride and all(size == 1 or a == b for size, a, b in pairs):
        return gradient.as_strided(gradient.shape, stride)
    return gradient


class EpochLog(Callback):
    """Writes metrics.csv, one row for each epoch, and prints the row with the time that is left.

    Lightning's CSVLogger spreads an epoch over several rows and deletes the file when a training is resumed.

    Args:
        path: the CSV file; rows of epochs before the resumed one are kept.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.first, self.first_step = trainer.current_epoch, trainer.global_step
        self.started = self.epoch_started = time.monotonic()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and self.first:
            with open(self.path, newline="") as file:
                self.rows = [row for row in csv.DictReader(file) if int(row["epoch"]) < self.first]

    def on_train_epoch_start(self, trainer: Trainer, module: LightningModule) -> None:
        # At the epoch's end the scheduler has already chosen the next one's.
        self.learning_rate = trainer.optimizers[0].param_groups[0]["lr"]
        self.validated = False

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.validated = True

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        now = time.monotonic()
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name != "loss"}
        if not self.validated:  # scores of an earlier epoch
            values = {name: value for name, value in values.items() if not name.startswith("val_")}
        # Callbacks are called before the module, whose logged train scores are still of the epoch before.
        values |= {f"train_{name}": float(value) for name, value in module.train_metrics.compute().items()}
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {"learning_rate": self.learning_rate, "seconds": now - self.epoch_started}
        self.epoch_started = now
        self.rows.append(row | values)
        if not trainer.is_global_zero:
            return
        with atomic_path(self.path) as partial, open(partial, "w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(name for row in self.rows for name in row)))
            writer.writeheader()
            writer.writerows(self.rows)

        done = trainer.current_epoch + 1
        shown = ("train_loss", "val_loss", "val_pixel_accuracy", "val_miou")
        scores = "  ".join(f"{name} {values[name]:.4f}" for name in shown if name in values)
        steps_left = trainer.estimated_stepping_batches - trainer.global_step  # knows of max_steps too
        if math.isinf(steps_left):  # max_epochs=-1: until somebody stops it
            module.print(f"epoch {done}  {scores}  {row['seconds']:.1f} s", flush=True)
            return
        left = (now - self.started) / (trainer.global_step - self.first_step) * steps_left
        of = "" if trainer.max_epochs == -1 else f"/{trainer.max_epochs}"
        module.print(
            f"epoch {done}{of}  {scores}  {row['seconds']:.1f} s, {timedelta(seconds=round(left))} left",
            flush=True,
        )


class PredictionGallery(Callback):
    """Predicts the same validation images after each epoch.

    Each epoch's masks are one small picture in `folder`/epochs, so that a resumed training has the earlier
    ones. At the end they become `folder`/training.gif, and the last ones, beside images and truth,
    `folder`/predictions.png.

    Args:
        dataset: validation data set of (image, mask) pairs, of which some are shown: spread evenly over it,
            as neighbors may be frames of one video.
        folder: where to write.
        count: number of images; the article shows 21.
    """

    def __init__(self, dataset: Dataset, folder: Path, count: int = 21) -> None:
        count = min(count, len(dataset))
        pairs = [dataset[index * len(dataset) // count] for index in range(count)]
        self.images = torch.stack([image for image, _ in pairs])  # (N, C, H, W) in [0, 1]
        self.masks = torch.stack([mask for _, mask in pairs])  # (N, H, W), or (N, classes, H, W) of 0 and 1
        self.folder = Path(folder)

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        tiles = self._color(self._predict(module), module)
        target = self.folder / "epochs" / f"{trainer.current_epoch:04d}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        pictures.save_png(pictures.frame(tiles, f"epoch {trainer.current_epoch + 1}"), target)

    def _predict(self, module: LightningModule) -> torch.Tensor:
        labels = []
        with torch.no_grad(), module.trainer.precision_plugin.forward_context():
            for image in self.images.split(8):
                labels.append(module.labels(module(image.to(module.device))).to("cpu", torch.uint8))
        return torch.cat(labels)

    @staticmethod
    def _color(labels: torch.Tensor, module: LightningModule) -> np.ndarray:
        """Color (N, H, W), or (N, classes, H, W) of several classes a pixel: (N, H, W, 3)."""
        if labels.ndim == 4:
            return mix_colors(labels.movedim(1, -1).numpy(), module.hparams.palette)
        background = [[0, 0, 0]] if module.hparams.mode == "binary" else []
        return pictures.color(labels.numpy(), background + module.hparams.palette)

    def save(self, module: LightningModule) -> None:
        """Write predictions.png and training.gif from the module as it is and the epochs so far."""
        images = pictures.from_tensors(self.images)
        truth = self._color(self.masks, module)
        predictions = {"prediction": self._color(self._predict(module), module)}
        pictures.save_png(pictures.comparison(images, truth, predictions), self.folder / "predictions.png")
        epochs = sorted((self.folder / "epochs").glob("[0-9]*.png"))
        if epochs:
            # What a comparison shows above them.
            for name, tiles in (("image", images), ("truth", truth)):
                pictures.save_png(pictures.frame(tiles, name), self.folder / "epochs" / f"{name}.png")
            frames = [Image.open(path, formats=["PNG"]).convert("RGB") for path in epochs]
            pictures.save_gif(frames, self.folder / "training.gif")

    # Not in `on_train_end`, where averaged weights (EMA) may still have to replace the last ones.
    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            was_training = module.training
            module.eval()
            self.save(module)
            module.train(was_training)
