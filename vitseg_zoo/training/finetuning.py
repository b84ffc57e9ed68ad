"""The Lightning module for a good result on few images: AdamW by layers, warm-up, cosine, dice loss."""

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from segmentation_models_pytorch.losses import DiceLoss
from torch import Tensor, nn

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
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer := torch.optim.AdamW(groups, lr=hparams.learning_rate, fused=True),
            lambda step: (
                min(1.0, (step + 1) / max(1, hparams.warmup * steps))
                * (1 + math.cos(math.pi * step / steps))
                / 2
            ),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def weight_averaging(decay: float = 0.998) -> WeightAveraging:
    """Lightning's callback for an exponential moving average (EMA) of weights that forgets their start.

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
        return torch.lerp(current, averaged, ((1 + steps) / (10 + steps)).clamp(max=decay))

    return WeightAveraging(avg_fn=average)


class CrossEntropyAndDice(nn.Module):
    """Cross-entropy plus SMP's dice loss, which keeps small classes from drowning in large ones.

    Args:
        ignore_index: mask value of pixels that do not count; None if there are none.
        dice_weight: weight of the dice loss.
    """

    def __init__(self, ignore_index: int | None = None, dice_weight: float = 1.0) -> None:
        super().__init__()
        self.cross_entropy = nn.CrossEntropyLoss(ignore_index=-100 if ignore_index is None else ignore_index)
        self.dice = DiceLoss("multiclass", ignore_index=ignore_index)
        self.dice_weight = dice_weight

    def forward(self, logits: Tensor, mask: Tensor) -> Tensor:
        """Returns the loss of logits (B, C, H, W) for masks (B, H, W)."""
        return self.cross_entropy(logits, mask) + self.dice_weight * self.dice(logits, mask)
