"""The Lightning module around any SMP segmentation model, built as SMP's own examples build theirs."""

from collections.abc import Sequence
from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning.pytorch import LightningModule
from segmentation_models_pytorch.encoders import get_preprocessing_params
from torch import Tensor
from torchmetrics import MeanMetric

from vitseg_zoo.losses import CrossEntropy, create_loss
from vitseg_zoo.metrics import MultilabelMetrics, SegmentationMetrics
from vitseg_zoo.training.results import command


class SegmentationModule(LightningModule):
    """Trains a model of `smp.create_model` with cross-entropy, Adam and StepLR, and measures it by epoch.

    Its hyper-parameters are plain values and lie in every checkpoint, so that `vitseg predict` can rebuild
    the model. Subclass it and override `configure_optimizers` for another optimizer, or set `loss` for
    another loss.

    Args:
        arch: architecture, as `smp.create_model` takes it.
        encoder_name: encoder, as `smp.create_model` takes it.
        encoder_weights: name of pretrained weights, with whose mean and deviation images are normalized;
            None starts from random weights, and images stay in [0, 1].
        class_names: one name for each class, in order; with `mode="binary"` that of the object, or those of
            background and object.
        palette: one RGB color (0 to 255) for each class.
        image_size: side of the square, or (height, width), that images are resized to.
        ignore_index: mask value of pixels that count neither in the loss nor in the metrics; None if there
            are none.
        background: class that the micro IoU leaves out; None for none.
        learning_rate: of Adam.
        lr_step: epochs after which StepLR multiplies the learning rate by `lr_gamma`.
        lr_gamma: see `lr_step`.
        seed: start of each epoch's random numbers (dropout), so that a resumed training repeats an
            uninterrupted one.
        channels_last: keep images and weights in the memory format torch.channels_last, as batches come; by
            default where there is a GPU.
        model_args: further arguments of the architecture.
        mode: SMP's word: "multiclass"; "binary" for one class, whose masks hold 0 and 1 and whose logit is
            positive where it is; "multilabel" for classes that a pixel may have several of, with masks
            (B, classes, H, W) of 0 and 1.
        mean: of each channel, by which images are normalized; by default that of `encoder_weights`.
        std: likewise, the standard deviation.

    Raises:
        ValueError: fewer than two classes, or more than one that is binary.

    Example:
        >>> palette = [(255, 0, 0), (0, 0, 0)]
        >>> module = SegmentationModule("unet", "resnet18", None, ["cat", "rest"], palette, 64)
        >>> module(torch.rand(1, 3, 64, 64)).shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(
        self,
        arch: str,
        encoder_name: str,
        encoder_weights: str | None,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]],
        image_size: int | Sequence[int],
        ignore_index: int | None = None,
        background: int | None = None,
        learning_rate: float = 4e-4,
        lr_step: int = 12,
        lr_gamma: float = 0.8,
        seed: int = 0,
        channels_last: bool | None = None,
        model_args: dict | None = None,
        mode: str = "multiclass",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        class_names, palette = list(class_names), [list(color) for color in palette]
        if mode == "binary":
            class_names, palette = class_names[-1:] if len(class_names) == 2 else class_names, palette[-1:]
        # The softmax of one class is always 1: nothing would be learned.
        if mode == "multiclass" and len(class_names) < 2:
            raise ValueError(
                f"a training needs two classes or more, got {class_names}: for one kind of object, "
                'name it and the background, or say mode="binary".'
            )
        if mode == "binary" and len(class_names) != 1:
            raise ValueError(f"binary is for one class beside the background, got {class_names}.")
        model_args = dict(model_args or {})
        self.save_hyperparameters()
        self.model = smp.create_model(
            arch,
            encoder_name=encoder_name,
            encoder_weights=encoder_weights,
            classes=len(class_names),
            **model_args,
        )
        is_last = torch.cuda.is_available() if channels_last is None else channels_last
        self.memory_format = torch.channels_last if is_last else torch.contiguous_format
        self.model.to(memory_format=self.memory_format)
        usual_mean, usual_std = _normalization(encoder_name, encoder_weights)
        mean, std = list(mean or usual_mean), list(std or usual_std)
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.loss = (
            CrossEntropy(ignore_index)
            if mode == "multiclass"
            else create_loss("cross_entropy", mode, ignore_index=ignore_index)
        )
        # A mean that knows how many images each process had; Lightning's own rounds their average down.
        self.train_loss, self.val_loss, self.test_loss = (
            MeanMetric(nan_strategy="disable") for _ in range(3)
        )
        # Not in a ModuleDict named by stage: "train" is a method of every module.
        measured = class_names if mode != "binary" else ["background", *class_names]
        self.train_metrics, self.val_metrics, self.test_metrics = (
            MultilabelMetrics(measured, ignore_index)
            if mode == "multilabel"
            else SegmentationMetrics(measured, ignore_index, background)
            for _ in range(3)
        )

    @property
    def channels(self) -> int:
        """Channels of the images."""
        return self.hparams.model_args.get("in_channels", 3)

    def checkpoint_gradients(self) -> None:
        """Make the encoder trade time for memory.

        Raises:
            ValueError: If it cannot.
        """
        if not hasattr(self.model.encoder, "set_grad_checkpointing"):
            raise ValueError(
                f"{self.hparams.encoder_name} cannot do gradient checkpointing: leave --grad-checkpointing "
                "out, or take an encoder of the zoo (vz-...)."
            )
        self.model.encoder.set_grad_checkpointing()

    def describe(self) -> dict[str, Any]:
        """Give what a file of `vitseg_zoo.save_model` can say of the model from its training."""
        size = self.hparams.image_size
        return {
            "class_names": list(self.hparams.class_names),
            "palette": [list(color) for color in self.hparams.palette],
            "mean": self.mean.expand(1, self.channels, 1, 1).flatten().tolist(),
            "std": self.std.expand(1, self.channels, 1, 1).flatten().tolist(),
            "input_size": [size, size] if isinstance(size, int) else list(size),
            "mode": self.hparams.mode,
            "recipe": command(names_folders=False),
        }

    def forward(self, image: Tensor, **kwargs: Any) -> Any:
        """Return the logits (B, classes, H, W) of images (B, C, H, W) in [0, 1]; the model gets `kwargs`."""
        image = (image - self.mean) / self.std
        return self.model(image.contiguous(memory_format=self.memory_format), **kwargs)

    def labels(self, logits: Tensor) -> Tensor:
        """Return the class of each pixel (B, H, W), or 0 and 1 (B, classes, H, W) of several labels."""
        if self.hparams.mode == "multiclass":
            return logits.argmax(1)
        present = (logits > 0).long()
        return present if self.hparams.mode == "multilabel" else present[:, 0]

    def loss_and_logits(self, image: Tensor, mask: Tensor, stage: str) -> tuple[Tensor, Tensor]:
        """Return the loss of images (B, C, H, W) and masks (B, H, W), and logits (B, classes, H, W).

        Override it for a model that is trained on something else than its logits.
        """
        logits = self(image)
        return self.loss(logits.float(), mask), logits

    def shared_step(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        """Return the loss of a batch of (B, C, H, W) images and (B, H, W) masks, and count it."""
        image, mask = batch
        loss, logits = self.loss_and_logits(image, mask, stage)
        getattr(self, f"{stage}_metrics").update(self.labels(logits), mask)
        mean = getattr(self, f"{stage}_loss")
        mean.update(
            loss.detach().expand(len(image))
        )  # an image, a value: it has no weights without nan checks
        self.log(f"{stage}_loss", mean, on_step=False, on_epoch=True)
        return loss

    def shared_epoch_end(self, stage: str) -> None:
        """Log the metrics of the whole split."""
        metrics = getattr(self, f"{stage}_metrics")
        # All devices have the same already; to say so keeps Lightning from warning.
        self.log_dict({f"{stage}_{name}": value for name, value in metrics.compute().items()}, sync_dist=True)
        metrics.reset()

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        # Not at the epoch's start: a new loader draws a random number before or, after resuming, behind that.
        if batch_index == 0:
            torch.manual_seed(self.hparams.seed + self.current_epoch)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        loss = self.shared_step(batch, "train")
        self.log("loss", loss.detach(), prog_bar=True, logger=False)
        return loss

    def on_train_epoch_end(self) -> None:
        self.shared_epoch_end("train")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.shared_step(batch, "val")

    def on_validation_epoch_end(self) -> None:
        self.shared_epoch_end("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        self.shared_step(batch, "test")

    def on_test_epoch_end(self) -> None:
        self.shared_epoch_end("test")

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, self.hparams.lr_step, self.hparams.lr_gamma)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def _normalization(encoder_name: str, encoder_weights: str | None) -> tuple[list[float], list[float]]:
    """Return mean and deviation of the images (in [0, 1]) that the weights were trained on."""
    if encoder_weights is None:
        return [0.0], [1.0]
    settings = get_preprocessing_params(encoder_name, encoder_weights)
    return list(settings["mean"]), list(settings["std"])
