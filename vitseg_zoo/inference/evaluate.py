"""Scores of a model on whole photographs, as `vitseg predict` segments them (extra ``train``)."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from vitseg_zoo.inference.predictor import predict_image
from vitseg_zoo.metrics import SegmentationMetrics


def evaluate(
    model: nn.Module,
    metadata: Mapping[str, Any],
    pairs: Iterable[tuple[np.ndarray, np.ndarray]],
    ignore_index: int | None = None,
) -> dict[str, float]:
    """Measure a model on images and masks at their own sizes, by one confusion matrix over all of them.

    Args:
        model: as `vitseg_zoo.load_model` returns it.
        metadata: likewise; `class_names` is needed.
        pairs: uint8 images (H, W, 3) and masks (H, W) of class indices.
        ignore_index: mask value of pixels that do not count; None if there are none.

    Returns:
        `pixel_accuracy`, `miou`, `micro_iou` and `iou_<class name>`.

    Example:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> pair = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        >>> 0 <= evaluate(model, {"class_names": ["cat", "rest"]}, [pair])["pixel_accuracy"] <= 1
        True
    """
    metrics = SegmentationMetrics(metadata["class_names"], ignore_index)
    for image, mask in pairs:
        labels = predict_image(model, image, metadata)
        metrics.update(torch.tensor(labels, dtype=torch.int64), torch.tensor(mask, dtype=torch.int64))
    return {name: round(float(value), 5) for name, value in metrics.compute().items()}
