"""Scores of a model on whole photographs, as `vitseg predict` segments them (extra ``train``)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitseg_zoo.inference.predictor import predict_image
from vitseg_zoo.metrics import MultilabelMetrics, SegmentationMetrics
from vitseg_zoo.weights.metadata import describe_model
from vitseg_zoo.weights.saving import load_model, save_model


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
        pairs: uint8 images (H, W, 3) and masks (H, W) of class indices; of a multi-label model 0 and 1
            (H, W, classes).
        ignore_index: mask value of pixels that do not count; None if there are none.

    Returns:
        `pixel_accuracy`, `miou`, `micro_iou` and `iou_<class name>`.

    Example:
        >>> model = torch.nn.Conv2d(3, 2, 1)
        >>> pair = np.zeros((32, 32, 3), np.uint8), np.zeros((32, 32), np.uint8)
        >>> 0 <= evaluate(model, {"class_names": ["cat", "rest"]}, [pair])["pixel_accuracy"] <= 1
        True
    """
    names = list(metadata["class_names"])
    multilabel = metadata.get("mode") == "multilabel"
    if len(names) == 1 and not multilabel:  # by a sigmoid: it is there, or not
        names = ["background", *names]
    # One of a training's processes measures alone.
    kind = MultilabelMetrics if multilabel else SegmentationMetrics
    metrics = kind(names, ignore_index, sync_on_compute=False)
    for image, mask in pairs:
        labels = predict_image(model, image, metadata)
        both = (torch.tensor(array, dtype=torch.int64) for array in (labels, mask))
        metrics.update(*(array.movedim(-1, 0)[None] if multilabel else array for array in both))
    return {name: round(float(value), 5) for name, value in metrics.compute().items()}


def save_evaluated(
    model: nn.Module,
    path: str | Path,
    pairs: Any,
    metadata: Mapping[str, Any],
) -> "EvaluatedFile":
    """Prepare to save a model that is still to be trained, with its scores.

    What the file would say is checked now; what is returned is to be called after the training. It saves the
    model in half precision, measures what the file gives on images and masks at their own sizes, and writes
    that into the file as its `metric`.

    Args:
        model: A model of `smp.create_model`.
        path: The file.
        pairs: See `evaluate`; `ignore_index` is an attribute of theirs.
        metadata: What is said of the model, see `vitseg_zoo.save_model`.

    Returns:
        What saves and measures when it is called, and returns the scores of `evaluate`.

    Raises:
        ValueError: If the metadata do not fit the model.
    """
    describe_model(model, metadata)
    return EvaluatedFile(model, Path(path), pairs, metadata)


@dataclass(frozen=True)
class EvaluatedFile:
    """A file that is written, and measured, when this is called; see `save_evaluated`."""

    model: nn.Module
    path: Path
    pairs: Any
    metadata: Mapping[str, Any]

    def __call__(self) -> dict[str, float]:
        """Save the model and return the scores of what the file gives."""
        said = {"metric_source": "one confusion matrix over all pixels, no epoch selected", **self.metadata}
        save_model(self.model, self.path, half=True, **said)
        scores = evaluate(*load_model(self.path), self.pairs, self.pairs.ignore_index)
        said["metric"] = (
            f"mIoU {100 * scores['miou']:.1f} %, pixel accuracy {100 * scores['pixel_accuracy']:.1f} % "
            f"on {len(self.pairs)} images at their own size"
        )
        save_model(self.model, self.path, half=True, **said)
        return scores
