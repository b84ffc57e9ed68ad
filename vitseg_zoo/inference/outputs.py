"""What is made of an image's labels: a palette mask, an overlay with a legend, areas, polygons."""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitseg_zoo.palette import mix_colors
from vitseg_zoo.terminal import printable

Palette = Sequence[Sequence[int]]

# An overlay is to look at: longer sides are reduced to this.
OVERLAY_SIDE = 2048

# Classes that a legend names; the rest are in the areas.
_LEGEND_CLASSES = 12


def palette_image(labels: np.ndarray, palette: Palette) -> Image.Image:
    """Return a picture whose pixels are class indices, which viewers show in the palette's colors.

    Args:
        labels: (H, W) uint8.
        palette: one RGB color (0 to 255) for each class.
    """
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    return picture


def count_classes(labels: np.ndarray, classes: int) -> np.ndarray:
    """Count the pixels of each class.

    Args:
        labels: (H, W) class indices, uint8 or uint16; other values are not counted. Or (H, W, classes) bool,
            where a pixel may have several.
        classes: Number of classes.

    Returns:
        (classes,) int64.

    Example:
        >>> count_classes(np.array([[0, 1], [1, 1]], np.uint8), 3)
        array([1, 3, 0])
    """
    if labels.ndim == 3:
        return np.count_nonzero(labels, axis=(0, 1))
    counts = np.zeros(classes, np.int64)
    for strip in np.array_split(labels, math.ceil(labels.size / 2**24)):  # OpenCV counts in float32
        found = cv2.calcHist([np.ascontiguousarray(strip)], [0], None, [classes], [0, classes])
        counts += found.ravel().astype(np.int64)
    return counts


def class_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Give the share of each class, (classes,), in the pixels of labels as `count_classes` takes them."""
    counts = count_classes(labels, classes)
    total = labels.shape[0] * labels.shape[1] if labels.ndim == 3 else counts.sum()
    return counts / max(int(total), 1)


def reduced(array: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3), or labels, no longer than `OVERLAY_SIDE` on any side."""
    scale = OVERLAY_SIDE / max(array.shape[:2])
    if scale >= 1:
        return array
    height, width = (max(round(side * scale), 1) for side in array.shape[:2])
    if array.dtype == bool:  # of each class, of which there may be more than OpenCV's channels
        rows, columns = (
            np.arange(side) * full // side for side, full in zip((height, width), array.shape, strict=False)
        )
        return array[rows[:, None], columns]
    kind = cv2.INTER_AREA if array.ndim == 3 else cv2.INTER_NEAREST
    return cv2.resize(array, (width, height), interpolation=kind)


def overlay(picture: np.ndarray, labels: np.ndarray, names: Sequence[str], palette: Palette) -> Image.Image:
    """Lay the classes' colors over a picture, with a legend of the largest classes below.

    The class `background` is left as it is, and so are pixels of no class; colors of several are mixed.

    Args:
        picture: (H, W, 3) uint8.
        labels: (H, W) class indices, or (H, W, classes) bool, where a pixel may have several.
        names: One a class.
        palette: One RGB color (0 to 255) a class.

    Returns:
        A picture that is no wider than the larger of W and the legend; its first H rows and W columns are the
        overlay.

    Example:
        >>> labels = np.eye(64, dtype=np.uint8)
        >>> colors = [(0, 0, 0), (255, 0, 0)]
        >>> overlay(np.zeros((64, 64, 3), np.uint8), labels, ["rest", "line"], colors).size
        (160, 106)
    """
    if labels.ndim == 3:
        colored = mix_colors(labels, palette)
        rest = ~labels.any(2)
    else:
        colors = np.zeros((max(len(names), int(labels.max()) + 1), 3), np.uint8)
        colors[: len(names)] = np.asarray(palette, np.uint8)
        colored = colors[labels]
        rest = labels == (names.index("background") if "background" in names else -1)
    mixed = cv2.addWeighted(picture, 0.5, colored, 0.5, 0)
    mixed[rest] = picture[rest]  # stays as it is
    legend = _legend(class_shares(labels, len(names)), names, palette, max(mixed.shape[1], 160))
    result = Image.new("RGB", (max(mixed.shape[1], legend.width), mixed.shape[0] + legend.height), "white")
    result.paste(Image.fromarray(mixed))
    result.paste(legend, (0, mixed.shape[0]))
    return result


def overlay_frame(
    picture: np.ndarray, labels: np.ndarray, names: Sequence[str], palette: Palette
) -> np.ndarray:
    """Make an `overlay` whose size does not depend on the labels, with even sides, as the frames of a video.

    Example:
        >>> labels = np.zeros((65, 201), np.uint8)
        >>> overlay_frame(np.zeros((65, 201, 3), np.uint8), labels, ["rest"], [(0, 0, 0)]).shape
        (90, 202, 3)
    """
    made = overlay(picture, labels, names, palette)
    height = picture.shape[0] + _legend(np.ones(len(names)), names, palette, made.width).height
    canvas = Image.new("RGB", (made.width + made.width % 2, height + height % 2), "white")
    canvas.paste(made)
    return np.asarray(canvas)


def _legend(shares: np.ndarray, names: Sequence[str], palette: Palette, width: int) -> Image.Image:
    size = min(max(width // 50, 12), 28)
    font: Any = ImageFont.load_default(size)
    entries, x, row = [], size // 2, 0
    for index in [index for index in np.argsort(-shares, kind="stable")[:_LEGEND_CLASSES] if shares[index]]:
        text = f"{printable(names[index])[:40]} {shares[index]:.1%}"
        length = math.ceil(font.getlength(text)) + 2 * size
        if x + length > width and x > size // 2:
            x, row = size // 2, row + 1
        entries.append((x, row, text, tuple(palette[index])))
        x += length + size // 2
    picture = Image.new("RGB", (width, (row + 1) * size * 3 // 2 + size // 2), "white")
    draw = ImageDraw.Draw(picture)
    for x, row, text, color in entries:
        top = size // 2 + row * size * 3 // 2
        draw.rectangle((x, top, x + size, top + size), fill=color, outline="gray")
        draw.text((x + size * 3 // 2, top + size / 2), text, fill="black", font=font, anchor="lm")
    return picture


def areas(
    name: str,
    counts: np.ndarray,
    names: Sequence[str],
    pixel_area: float | None = None,
    total: int | None = None,
) -> list[dict]:
    """Say how much of an image each class that is in it covers, the largest first.

    Args:
        name: What the image is called.
        counts: (classes,) pixels of each class.
        names: One a class.
        pixel_area: Square meters of a pixel, if known.
        total: Pixels of the image, where they may have several classes or none; by default all of `counts`.

    Example:
        >>> areas("a.png", np.array([1, 3]), ["sky", "road"])[0]
        {'image': 'a.png', 'class': 'road', 'pixels': 3, 'share': 0.75}
    """
    total = max(int(counts.sum()) if total is None else total, 1)
    rows = []
    for index in np.argsort(-counts, kind="stable"):
        if counts[index]:
            pixels = int(counts[index])
            rows.append(
                {"image": name, "class": names[index], "pixels": pixels, "share": round(pixels / total, 6)}
            )
            if pixel_area is not None:
                rows[-1]["square_meters"] = round(pixels * pixel_area, 3)
    return rows
