"""Outlines of objects, as files of any format have them, and the masks that pycocotools draws of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

# Pixels of an image that a file may claim; Pillow refuses larger images too.
MOST_PIXELS = 2**28
# Labels of what is drawn to cut holes into other objects.
_BACKGROUND = {"background", "_background_", "__background__"}


@dataclass(frozen=True)
class Runs:
    """A mask in a box: lengths of runs, outside first, along the rows."""

    top: int
    left: int
    height: int
    width: int
    lengths: np.ndarray


@dataclass(frozen=True)
class Objects:
    """What a file says of one image.

    Args:
        shapes: Label and outline of each object, what is drawn first at the start. An outline is a list of
            polygons [x, y, x, y, ...], a code of COCO, or `Runs`. A label is a name, or a number of YOLO's.
        size: (height, width) of the image; None where the file does not say.
        is_relative: Whether polygons are in parts of the image's width and height.
        subset: Split, if the file says.
    """

    shapes: tuple[tuple[str | int, Any], ...]
    size: tuple[int, int] | None = None
    is_relative: bool = False
    subset: str = ""


@dataclass(frozen=True)
class AnnotationFile:
    """A file on many images.

    Args:
        labels: In the file's order.
        images: Image's path, as the file says it, and its name alone -> its objects.
    """

    labels: tuple[str, ...]
    images: Mapping[str, Objects] = field(default_factory=dict)

    def find(self, path: str) -> Objects | None:
        """Find an image by its path in the data's folder, or by its name alone."""
        return self.images.get(path) or self.images.get(PurePosixPath(path).name)


def draw(objects: Objects, labels: Sequence[str], path: Path) -> np.ndarray:
    """Draw an image's objects.

    Args:
        objects: What the file says of it, with its size.
        labels: Names of what is drawn, in order.
        path: The file, for messages.

    Returns:
        (H, W): 0 is the background, and the n-th label n + 1; uint8, or uint16 beyond 255.

    Raises:
        ModuleNotFoundError: If pycocotools is missing.
        ValueError: If an outline is none, or a label is not among `labels`.
    """
    assert objects.size is not None
    values: dict[str | int, int] = {name: index + 1 for index, name in enumerate(labels)}
    values |= {index: index + 1 for index in range(len(labels))}
    classes = np.zeros(objects.size, np.uint16)
    for label, outline in objects.shapes:
        value = values.get(label, 0 if is_background(label) else None)
        if value is None:
            raise ValueError(f"{path} has the label {label!r}, which is none of {', '.join(labels)[:200]}.")
        try:
            _fill(classes, outline, value, objects.is_relative)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # pycocotools raises even Exception itself
            raise ValueError(f"{path} has a segmentation that cannot be drawn: {str(error)[:100]}.") from None
    return classes.astype(np.uint8) if classes.max(initial=0) < 256 else classes


def checked_label(label: object) -> str:
    """Return a label of a file without the spaces around it.

    Raises:
        ValueError: If nothing is left.
    """
    text = str(label).strip()
    if not text:
        raise ValueError("a label without a name")
    return text


def is_background(label: str | int) -> bool:
    """Say whether a label means that there is nothing: such an object cuts a hole into those below."""
    return str(label).lower() in _BACKGROUND


def _fill(classes: np.ndarray, outline: Any, value: int, is_relative: bool) -> None:
    height, width = classes.shape
    if isinstance(outline, Runs):
        _fill_runs(classes, outline, value)
    elif isinstance(outline, Mapping):
        classes[_decode(outline, (height, width))] = value
    else:
        from pycocotools import mask as rasterizer

        polygons = [np.asarray(polygon, np.float64) for polygon in outline]
        if is_relative:
            polygons = [(polygon.reshape(-1, 2) * (width, height)).ravel() for polygon in polygons]
        if not (np.abs(np.concatenate(polygons)) <= 4 * max(height, width)).all():
            raise ValueError("points far outside the image")  # each edge is drawn from end to end
        codes = rasterizer.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
        classes[rasterizer.decode(rasterizer.merge(codes)).astype(bool)] = value


def _fill_runs(classes: np.ndarray, runs: Runs, value: int) -> None:
    if not (0 < runs.height <= 2**16 and 0 < runs.width <= 2**16):
        raise ValueError("a mask of no size")
    fits = ((runs.lengths >= 0) & (runs.lengths <= MOST_PIXELS)).all()  # so that their sum is one
    if runs.height * runs.width > MOST_PIXELS or not fits or runs.lengths.sum() != runs.height * runs.width:
        raise ValueError("a code of another length than its box")
    inside = np.repeat(np.arange(len(runs.lengths)) % 2 == 1, runs.lengths).reshape(runs.height, runs.width)
    # What lies outside the image is cut off.
    top, left = max(runs.top, 0), max(runs.left, 0)
    bottom, right = (
        min(runs.top + runs.height, classes.shape[0]),
        min(runs.left + runs.width, classes.shape[1]),
    )
    if top < bottom and left < right:
        inside = inside[top - runs.top : bottom - runs.top, left - runs.left : right - runs.left]
        classes[top:bottom, left:right][inside] = value


def _decode(code: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Make (H, W) bool of a code of COCO: lengths of runs, outside first, along the columns.

    pycocotools leaves pixels that a code does not reach as they come from memory; here its length must fit.
    """
    height, width = size
    if list(code["size"]) != [height, width]:
        raise ValueError(f"a code of the size {code['size']}")
    counts = _lengths(code["counts"]) if isinstance(code["counts"], str) else list(code["counts"])
    if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != height * width:
        raise ValueError("a code of another length than the image")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T


def _lengths(text: str) -> list[int]:
    """Read the compressed form: 5 bits a character from the lowest, differences to the last but one run."""
    counts: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 50:
            raise ValueError("a code that is none")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:  # the last character of this run
            if bits & 16:
                value -= 1 << shift
            counts.append(value + counts[-2] if len(counts) > 2 else value)
            value = shift = 0
    return counts
