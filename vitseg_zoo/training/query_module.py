"""The Lightning module for EoMT: its queries' own loss, and masked attention that fades with the training."""

from typing import Any

from torch import Tensor

from vitseg_zoo.losses import QueryLoss
from vitseg_zoo.training.finetuning import FineTuningModule


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
