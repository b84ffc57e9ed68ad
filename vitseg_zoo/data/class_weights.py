"""Weights of classes for a loss, from how often the classes occur."""

from collections.abc import Iterable

import numpy as np


def median_frequency(pixels: np.ndarray, present: np.ndarray) -> np.ndarray:
    """Weigh classes by median frequency balancing: rare ones more, so that all count alike.

    The frequency of a class is its share of the pixels of those images that have it; its weight is the median
    of all frequencies over its own. D. Eigen and R. Fergus, ICCV 2015, https://arxiv.org/abs/1411.4734,
    section 6.3.2.

    Args:
        pixels: (classes,) pixels of each class.
        present: (classes,) pixels of all images that have the class.

    Returns:
        (classes,) weights; 0 for a class that does not occur.

    Example:
        >>> median_frequency(np.array([90, 10, 0]), np.array([100, 50, 0])).round(2)
        array([0.61, 2.75, 0.  ])
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        frequency = np.where(pixels > 0, pixels / present, np.nan)
        median = np.nanmedian(frequency) if (pixels > 0).any() else 0.0
        return np.nan_to_num(median / frequency)


def class_weights(masks: Iterable[np.ndarray], classes: int) -> list[float]:
    """Weigh the classes of masks by `median_frequency`; other values only make images larger.

    Args:
        masks: (H, W) class numbers, or (H, W, classes) of 0 and 1, where a pixel may have several classes.
        classes: Number of classes.

    Example:
        >>> class_weights([np.array([[0, 0, 0, 1]]), np.array([[0, 0, 255, 255]])], classes=2)
        [0.7, 1.75]
    """
    pixels, present = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for mask in masks:
        if mask.ndim == 3:
            counts = np.count_nonzero(mask, axis=(0, 1))
        else:
            counts = np.bincount(mask.ravel(), minlength=classes)[:classes]
        pixels += counts
        present[counts > 0] += mask.shape[0] * mask.shape[1]
    return median_frequency(pixels, present).tolist()
