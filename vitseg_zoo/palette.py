"""Colors for classes that have none, and of pixels that have several classes."""

import colorsys
from collections.abc import Sequence

import numpy as np


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Return colors for classes that have none: the first black, then hues a golden angle apart.

    Example:
        >>> distinct_colors(2)
        [(0, 0, 0), (230, 57, 57)]
    """
    hues = [(index * 0.618034) % 1 for index in range(count - 1)]
    colors = (colorsys.hsv_to_rgb(hue, 0.75, 0.9) for hue in hues)
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)]


def mix_colors(masks: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Color pixels that may have several classes: the mean of their colors, black where there is none.

    Args:
        masks: (..., classes) of 0 and 1.
        palette: one RGB color (0 to 255) for each class.

    Returns:
        (..., 3) uint8.

    Example:
        >>> mix_colors(np.array([[0, 0], [1, 0], [1, 1]]), [(200, 0, 0), (0, 100, 0)]).tolist()
        [[0, 0, 0], [200, 0, 0], [100, 50, 0]]
    """
    masks = masks != 0
    sums = masks.astype(np.float32) @ np.asarray(palette, np.float32)
    return (sums / np.maximum(masks.sum(-1, keepdims=True), 1)).round().astype(np.uint8)
