"""Segmentation metrics from one confusion matrix over a whole split.

torchmetrics' `segmentation.MeanIoU` and SMP's `iou_score(reduction="micro-imagewise")` average over images;
published mIoU does not: it sums one confusion matrix over all pixels of a split first.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_confusion_matrix, multilabel_confusion_matrix


def segmentation_scores(confusion: Tensor, background: int | None = None) -> dict[str, Tensor]:
    """Compute the scores of a confusion matrix.

    Args:
        confusion: (classes, classes) counts of pixels; rows are the truth, columns the prediction.
        background: class whose true pixels `micro_iou` leaves out; None for none.

    Returns:
        `pixel_accuracy`: share of right pixels. `iou`: (classes,) intersection over union, NaN for a class
        that is neither in the truth nor predicted. `miou`: mean of `iou` over the classes that are not NaN.
        `micro_iou`: intersections summed over classes, over unions summed over classes, without the pixels
        whose truth is `background`, which is torchmetrics'
        `MulticlassJaccardIndex(average="micro", ignore_index=background)`.

    Example:
        >>> segmentation_scores(torch.tensor([[3, 1], [0, 4]]))["iou"]
        tensor([0.7500, 0.8000], dtype=torch.float64)
    """
    confusion = confusion.double()
    right = confusion.diagonal()
    union = confusion.sum(0) + confusion.sum(1) - right
    iou = right / union  # 0 / 0 is NaN: the class does not occur

    seen = torch.ones_like(right)
    if background is not None:
        seen[background] = 0
    rows = confusion * seen[:, None]  # pixels whose truth is background are left out
    micro_union = ((rows.sum(0) + rows.sum(1) - rows.diagonal()) * seen).sum()
    return {
        "pixel_accuracy": right.sum() / confusion.sum(),
        "iou": iou,
        "miou": iou.nanmean(),
        "micro_iou": rows.diagonal().sum() / micro_union,
    }


class SegmentationMetrics(Metric):
    """Pixel accuracy, per-class IoU, mIoU and micro IoU of all batches since the last reset.

    Args:
        class_names: one name for each class, in order.
        ignore_index: value of mask pixels that count nowhere; None if there are none.
        background: class whose true pixels the micro IoU leaves out; None for none.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metrics = SegmentationMetrics(["pet", "background"])
        >>> metrics.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
        >>> {name: round(value.item(), 2) for name, value in metrics.compute().items()}
        {'pixel_accuracy': 0.5, 'miou': 0.25, 'micro_iou': 0.33, 'iou_pet': 0.5, 'iou_background': 0.0}
    """

    full_state_update = False

    def __init__(
        self,
        class_names: Sequence[str],
        ignore_index: int | None = None,
        background: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        self.background = background
        zeros = torch.zeros(len(self.class_names), len(self.class_names), dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, H, W) class indices.
            truth: (B, H, W) class indices or `ignore_index`.
        """
        self.confusion += multiclass_confusion_matrix(
            prediction, truth, len(self.class_names), ignore_index=self.ignore_index, validate_args=False
        )

    def compute(self) -> dict[str, Tensor]:
        """Return `pixel_accuracy`, `miou`, `micro_iou` and `iou_<class name>`, each a scalar in [0, 1]."""
        scores = segmentation_scores(self.confusion, self.background)
        per_class = scores.pop("iou")
        return scores | {f"iou_{name}": iou for name, iou in zip(self.class_names, per_class, strict=True)}


class MultilabelMetrics(Metric):
    """Accuracy and IoU of classes that a pixel may have several of, over all batches since the last reset.

    Args:
        class_names: one name for each class, in order.
        ignore_index: value of mask pixels that count nowhere; None if there are none.
        kwargs: of `torchmetrics.Metric`.

    Example:
        >>> metrics = MultilabelMetrics(["cat", "fur"])
        >>> metrics.update(torch.ones(1, 2, 1, 1), torch.tensor([1, 0]).view(1, 2, 1, 1))
        >>> {name: round(value.item(), 2) for name, value in metrics.compute().items()}
        {'pixel_accuracy': 0.5, 'miou': 0.5, 'micro_iou': 0.5, 'iou_cat': 1.0, 'iou_fur': 0.0}
    """

    full_state_update = False

    def __init__(self, class_names: Sequence[str], ignore_index: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.class_names = tuple(class_names)
        self.ignore_index = ignore_index
        zeros = torch.zeros(len(self.class_names), 2, 2, dtype=torch.int64)
        self.add_state("confusion", default=zeros, dist_reduce_fx="sum")

    def update(self, prediction: Tensor, truth: Tensor) -> None:
        """Count a batch.

        Args:
            prediction: (B, classes, H, W) of 0 and 1.
            truth: (B, classes, H, W) of 0 and 1, or `ignore_index`.
        """
        self.confusion += multilabel_confusion_matrix(
            prediction, truth, len(self.class_names), ignore_index=self.ignore_index, validate_args=False
        )

    def compute(self) -> dict[str, Tensor]:
        """Return `pixel_accuracy`, `miou`, `micro_iou` and `iou_<class name>`, each a scalar in [0, 1]."""
        confusion = self.confusion.double()
        right, union = confusion[:, 1, 1], confusion.sum((1, 2)) - confusion[:, 0, 0]
        iou = right / union  # 0 / 0 is NaN: the class does not occur
        scores = {
            "pixel_accuracy": confusion.diagonal(dim1=1, dim2=2).sum() / confusion.sum(),
            "miou": iou.nanmean(),
            "micro_iou": right.sum() / union.sum(),
        }
        return scores | {f"iou_{name}": value for name, value in zip(self.class_names, iou, strict=True)}
