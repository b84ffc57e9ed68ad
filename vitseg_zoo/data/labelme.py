"""labelme's JSON, a file an image: polygons, rectangles, circles and masks, drawn in the file's order.

Format: https://github.com/wkentaro/labelme. Lines and points have no area and are left out.
"""

import base64
import io
import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitseg_zoo.data.outlines import MOST_PIXELS, Objects, Runs, checked_label

_CORNERS = 64  # of the polygon that stands for a circle
_LINES = {"line", "linestrip", "point", "points"}


def read_labelme(path: Path) -> Objects:
    """Read a labelme file; what was read last is kept.

    Raises:
        ValueError: If it is no JSON, or none of labelme's: an object with a list of `shapes`.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Objects:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        shapes = tuple(
            (checked_label(shape["label"]), outline)
            for shape in content["shapes"]
            if (outline := _outline(shape)) is not None
        )
        height, width = content.get("imageHeight"), content.get("imageWidth")
        if not (type(height) is int and type(width) is int and height > 0 and width > 0):
            return Objects(shapes)
        if height * width > MOST_PIXELS:
            raise ValueError(f"an image of {height} x {width} pixels")
        return Objects(shapes, (height, width))
    except Exception as error:  # decoders of masks raise many kinds
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a file of labelme: {reason[:200]}.") from None


def _outline(shape: dict[str, Any]) -> Any:
    """Return the outline of a shape as `Objects` has it; None if it has no area."""
    kind = shape.get("shape_type") or "polygon"
    points = np.array(shape["points"], np.float64).reshape(-1, 2)
    if kind == "polygon":
        return [points.ravel().tolist()] if len(points) > 2 else None
    if kind == "rectangle":
        (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
        return [[left, top, right, top, right, bottom, left, bottom]]
    if kind == "circle":
        (x, y), (edge_x, edge_y) = points[:2].tolist()
        angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], 1) * math.hypot(edge_x - x, edge_y - y) + (x, y)
        return [circle.ravel().tolist()]
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"])), formats=["PNG"]) as picture:
            if picture.width * picture.height > MOST_PIXELS:
                raise ValueError(f"a mask of {picture.height} x {picture.width} pixels")
            inside = np.asarray(picture.convert("L")) > 0
        left, top = points.min(0).round().astype(int).tolist()
        edges = np.flatnonzero(np.diff(inside.ravel())) + 1
        lengths = np.diff(np.concatenate([[0], edges, [inside.size]]))
        if inside.flat[0]:
            lengths = np.concatenate([[0], lengths])
        return Runs(top, left, inside.shape[0], inside.shape[1], lengths)
    if kind in _LINES:
        return None
    raise ValueError(f"a shape of the type {str(kind)[:50]!r}")
