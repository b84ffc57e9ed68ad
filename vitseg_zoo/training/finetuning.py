"""Lightning modules for few images: AdamW by layers, warm-up, cosine, dice; and EoMT's own loss."""

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from vitseg_zoo.losses import CrossEntropyAndDice, QueryLoss
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.parameter_groups import parameter_groups


class FineTuningModule(SegmentationModule):
    """Trains with AdamW, a linear warm-up, a cosine to zero, and the sum of cross-entropy and dice loss.

    Args:
        args: see `SegmentationModule`, whose StepLR is not used.
        weight_decay: of AdamW, except for norms, biases and embeddings.
        layer_decay: ratio of the learning rates of successive blocks of the encoder: about 0.75 for a
            pretrained ViT, 1 (the default) for the same everywhere, as from random weights.
        warmup: share of the steps in which the learning rate rises from zero.
        dice_weight: weight of the dice loss.
        kwargs: see `SegmentationModule`.

    Example:
        >>> palette = [(255, 0, 0), (0, 0, 0)]
        >>> module = FineTuningModule("fusedsegformer", "vz-mit_b0", None, ["cat", "rest"], palette, 64)
        >>> round(module.loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)).item(), 2)
        0.86
    """

    def __init__(
        self,
        *args: Any,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup: float = 0.05,
        dice_weight: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("weight_decay", "layer_decay", "warmup", "dice_weight")
        self.loss = CrossEntropyAndDice(self.hparams.ignore_index, dice_weight)
        parameter_groups(self.model, 1.0, weight_decay, layer_decay)  # refuses what does not fit at once

    def configure_optimizers(self) -> dict:
        hparams = self.hparams
        groups = parameter_groups(
            self.model, hparams.learning_rate, hparams.weight_decay, hparams.layer_decay
        )
        steps = self.trainer.estimated_stepping_batches
        # Lightning cannot clip gradients for a fused optimizer in mixed precision.
        optimizer = torch.optim.AdamW(
            groups, lr=hparams.learning_rate, fused=not self.trainer.gradient_clip_val
        )
        scheduler = warmup_cosine(optimizer, steps, hparams.warmup)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def warmup_cosine(
    optimizer: torch.optim.Optimizer, steps: float, warmup: float = 0.05
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make a schedule by steps: a linear rise from zero, and a cosine to zero over all steps.

    Args:
        optimizer: Its learning rates are the highest.
        steps: Steps of the whole training.
        warmup: Share of them in which the rate rises.

    Example:
        >>> optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        >>> schedule = warmup_cosine(optimizer, steps=100, warmup=0.1)
        >>> [round(schedule.lr_lambdas[0](step), 2) for step in (0, 9, 50, 100)]
        [0.1, 0.98, 0.5, 0.0]
    """
    return torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            min(1.0, (step + 1) / max(1, warmup * steps)) * (1 + math.cos(math.pi * step / steps)) / 2
        ),
    )


def weight_averaging(decay: float = 0.998) -> WeightAveraging:
    """Make Lightning's callback for an exponential moving average (EMA) of weights that forgets their start.

    The average begins with the weights after the first step, which are still random. Lightning's own
    `EMAWeightAveraging` keeps decay^steps of them: 16.5 % after 900 steps of 0.998. Here the decay is
    (1 + step) / (10 + step) until it reaches `decay`, as in TensorFlow's `ExponentialMovingAverage`.

    Args:
        decay: share of the average that a step keeps.

    Example:
        >>> average = weight_averaging()._kwargs["avg_fn"]
        >>> round(average(torch.tensor(0.0), torch.tensor(1.0), torch.tensor(1)).item(), 3)  # the second step
        0.818
    """

    def average(averaged: Tensor, current: Tensor, steps: Tensor) -> Tensor:
        if not averaged.is_floating_point():  # counts of batch norms, which torch 2.5 averages, too
            return current
        return torch.lerp(current, averaged, ((1 + steps) / (10 + steps)).clamp(max=decay))

    return WeightAveraging(avg_fn=average)


class QueryModule(FineTuningModule):
    """Trains `eomt` as its paper does, with the optimizer and schedule of `FineTuningModule`.

    Args:
        args: see `SegmentationModule`.
        num_points: at how many points masks are compared, see `QueryLoss`; all pixels of the predicted masks
            by default, which for images below 512 x 512 are not many more.
        kwargs: see `FineTuningModule`, whose dice weight is not used: the queries' loss has its own.

    Example:
        >>> import torch
        >>> palette = [(255, 0, 0), (0, 0, 0)]
        >>> module = QueryModule("eomt", "vz-vitseg_tiny_patch16_128", None, ["cat", "rest"], palette, 128)
        >>> module.loss_and_logits(torch.rand(1, 3, 64, 64), torch.zeros(1, 64, 64).long(), "val")[1].shape
        torch.Size([1, 2, 64, 64])
    """

    def __init__(self, *args: Any, num_points: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.save_hyperparameters("num_points")
        classes = len(self.hparams.class_names)
        self.loss = QueryLoss(classes, self.hparams.ignore_index, num_points=num_points)

    def loss_and_logits(self, image: Tensor, mask: Tensor, stage: str) -> tuple[Tensor, Tensor]:
        if stage == "train":
            self.model.anneal_masks(self.global_step / self.trainer.estimated_stepping_batches)
        predictions = self(image, return_queries=True)
        height, width = mask.shape[1:]
        logits = self.model.segmentation_head(predictions[-1])[..., :height, :width]
        # Outside of training only the last prediction counts: the others come and go with masked attention.
        return self.loss(predictions if stage == "train" else predictions[-1:], mask), logits
