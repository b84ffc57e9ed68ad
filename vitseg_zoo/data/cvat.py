"""CVAT's XML ("CVAT for images 1.1"): polygons, boxes, ellipses and masks, in the order of their layers.

Format: https://docs.cvat.ai/docs/other/xml_format. As in CVAT's own export of masks, objects are drawn by
`z_order` and, within a layer, in the file's order; lines and points have no area and are left out.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree

import numpy as np

from vitseg_zoo.data.outlines import MOST_PIXELS, AnnotationFile, Objects, Runs, checked_label

_CORNERS = 64  # of the polygon that stands for an ellipse


def read_cvat(path: Path) -> AnnotationFile:
    """Read a CVAT file; what was read last is kept. Labels are in the order of the task.

    Raises:
        ValueError: If it is no XML, or not of "CVAT for images".
    """
    return _read(path, path.stat().st_mtime_ns)


class _Builder(ElementTree.TreeBuilder):
    def doctype(self, *_: object) -> None:
        raise ValueError("it declares a document type, which CVAT does not")


@lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> AnnotationFile:
    try:
        root = ElementTree.parse(path, ElementTree.XMLParser(target=_Builder())).getroot()
        if root.tag != "annotations":
            raise ValueError(f"its first element is {root.tag[:50]!r} and not 'annotations'")
        if root.find("image") is None and root.find("track") is not None:
            raise ValueError("it holds the tracks of a video: export it as 'CVAT for images 1.1'")
        labels = [name.text or "" for name in root.iterfind("meta//labels/label/name")]
        images = {}
        for image in root.iterfind("image"):
            height, width = int(image.attrib["height"]), int(image.attrib["width"])
            if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
                raise ValueError(f"an image of {height} x {width} pixels")
            shapes = sorted(
                (int(shape.get("z_order", 0)), position, checked_label(shape.attrib["label"]), outline)
                for position, shape in enumerate(image)
                if (outline := _outline(shape.tag, shape.attrib)) is not None
            )
            drawn = tuple((label, outline) for _, _, label, outline in shapes)
            found = Objects(drawn, (height, width), subset=image.get("subset", ""))
            labels += [label for label, _ in drawn]
            name = image.attrib["name"].replace("\\", "/")
            images[name] = found
            images.setdefault(PurePosixPath(name).name, found)
        return AnnotationFile(tuple(dict.fromkeys(map(checked_label, labels))), images)
    except (ElementTree.ParseError, ValueError, KeyError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a file of CVAT for images: {reason[:200]}.") from None


def _outline(tag: str, values: Mapping[str, str]) -> Any:
    """Return the outline of a shape as `Objects` has it; None if it has no area."""
    if tag == "polygon":
        return [[float(number) for point in values["points"].split(";") for number in point.split(",")]]
    if tag == "box":
        left, top, right, bottom = (float(values[key]) for key in ("xtl", "ytl", "xbr", "ybr"))
        corners = np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
        return [_turned(corners, float(values.get("rotation", 0)))]
    if tag == "ellipse":
        angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        center, radii = ((float(values[a]), float(values[b])) for a, b in (("cx", "cy"), ("rx", "ry")))
        points = np.stack([np.cos(angles), np.sin(angles)], 1) * radii + center
        return [_turned(points, float(values.get("rotation", 0)))]
    if tag == "mask":
        lengths = np.array([int(length) for length in values["rle"].split(",")], np.int64)
        top, left, height, width = (int(float(values[key])) for key in ("top", "left", "height", "width"))
        return Runs(top, left, height, width, lengths)
    return None


def _turned(points: np.ndarray, degrees: float) -> list[float]:
    """Turn points (N, 2) clockwise, as they are seen, about their middle."""
    middle = (points.min(0) + points.max(0)) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((points - middle) @ np.array([[cos, sin], [-sin, cos]]) + middle).ravel().tolist()
