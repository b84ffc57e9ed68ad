"""Masks with a plane a class: arrays (H, W, classes) in a .npy file, or TIFFs with a band a class."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vitseg_zoo.data.annotations import is_annotation
from vitseg_zoo.data.class_files import read_class_file
from vitseg_zoo.data.images import read_pixels, read_window
from vitseg_zoo.data.layouts import Pair
from vitseg_zoo.data.masks import as_mask
from vitseg_zoo.data.outlines import is_background

_ENDINGS = (".npy", ".tif", ".tiff")


def has_planes(pair: Pair) -> bool:
    """Say whether the mask of a pair has a plane for each of its labels."""
    return bool(pair.labels) and not pair.classes and not is_annotation(pair.masks[0])


def as_planes(pixels: np.ndarray) -> np.ndarray | None:
    """Make (H, W, classes) bool of planes that hold two values only, or of floats in [0, 1].

    Returns:
        What is true, 1, 255, or a float above one half; None if there are other values, or fewer than two
        planes.

    Example:
        >>> as_planes(np.array([[[0, 255, 255]]], np.uint8))
        array([[[False,  True,  True]]])
    """
    if pixels.ndim != 3 or pixels.shape[2] < 2:
        return None
    if pixels.dtype == bool:
        return pixels
    largest = pixels.max()
    if pixels.dtype.kind == "f" and largest <= 1 and pixels.min() >= 0:
        return pixels > 0.5
    if largest not in (0, 1, 255) or not ((pixels == 0) | (pixels == largest)).all():
        return None
    return pixels != 0


def read_planes(
    path: Path, labels: Sequence[str], window: tuple[int, int, int, int] | None = None
) -> np.ndarray:
    """Read a mask with a plane a class as (H, W, classes) bool.

    Args:
        path: `.npy` or TIFF.
        labels: Names of the planes.
        window: Top, left, height and width of a part; all by default. Of a TIFF only that is decoded.

    Raises:
        ValueError: If it cannot be read, or has other values, or another number of planes.
    """
    pixels = read_window(path, window) if window else None
    if pixels is None:
        pixels = read_pixels(path, "a mask")[0]
        if window:
            top, left, height, width = window
            pixels = pixels[top : top + height, left : left + width]
    count = pixels.shape[2] if pixels.ndim == 3 else 1
    if count != len(labels):
        raise ValueError(_wrong_count(path, count, labels))
    planes = as_planes(pixels)
    if planes is None:
        raise ValueError(
            f"{path} should have a plane a class, of 0 and 1, of 0 and 255 or of floats from 0 to 1, but has "
            f"other values ({pixels.dtype})."
        )
    return planes


def find_planes(root: Path, pairs: Iterable[Pair], class_file: str | None) -> tuple[str, ...]:
    """Name the planes of a data set's masks; empty if they have none.

    The first mask that can be only the one or the other decides. Colors of 8 bits stay colors: three channels
    of 0 and 255 are planes only where dataset.yaml says so.

    Args:
        root: Folder of the data.
        pairs: All pairs.
        class_file: File that names the classes, relative to `root`.

    Raises:
        ValueError: If there are more or fewer planes than names.
    """
    for pair in pairs:
        path = root / pair.masks[0]
        if len(pair.masks) > 1 or pair.classes or path.suffix.lower() not in _ENDINGS:
            return ()
        try:
            count = _count_planes(path)
        except ValueError:  # it is damaged, as the check says
            continue
        if count is not None:
            return _name_planes(count, path, root / class_file if class_file else None) if count else ()
    return ()


def _count_planes(path: Path) -> int | None:
    """Count the planes of a mask: 0 of numbers and colors, None if it may be either, as an empty one."""
    pixels, palette = read_pixels(path, "a mask")
    if palette is not None or as_planes(pixels) is None:
        return 0
    try:
        as_mask(pixels, path)
    except ValueError:
        return pixels.shape[2]
    largest = pixels.max()
    if largest == 1:  # equal ones are class numbers, stored as gray RGB
        return pixels.shape[2] if (pixels != pixels[..., :1]).any() else 0
    # The last of two or four that is all 255 is transparency, or a class that is everywhere.
    return 0 if largest and (pixels.shape[2] == 3 or path.suffix.lower() != ".npy") else None


def _name_planes(count: int, path: Path, class_file: Path | None) -> tuple[str, ...]:
    if class_file is None:
        return tuple(f"class_{index}" for index in range(count))
    names = read_class_file(class_file)[0]
    if len(names) != count:
        without = tuple(name for name in names if not is_background(name))
        if len(without) != count:
            raise ValueError(_wrong_count(path, count, names))
        return without
    return names


def _wrong_count(path: Path, count: int, names: Sequence[str]) -> str:
    return (
        f"{path} has {count} plane{'s' * (count > 1)}, but there are {len(names)} classes "
        f"({', '.join(names)[:200]}): it should have a plane of each."
    )
