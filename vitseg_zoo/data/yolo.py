"""YOLO's text for segmentation, a file an image: a line an object, with a number of a class and a polygon.

Format: https://docs.ultralytics.com/datasets/segment. Points are in parts of the image's width and height.
Objects are drawn from the largest to the smallest, as Ultralytics does; holes are part of the polygon.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np
import yaml

from vitseg_zoo.data.outlines import Objects


def read_yolo(path: Path) -> Objects:
    """Read a file of YOLO's; what was read last is kept.

    Raises:
        ValueError: If a line is no polygon.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=4096)
def _read(path: Path, modified: int) -> Objects:
    shapes = []
    try:
        text = path.read_text(encoding="utf-8-sig")
        for number, line in enumerate(text.splitlines(), start=1):
            if not (words := line.split()):
                continue
            if len(words) == 5:
                raise ValueError(f"line {number} is a box and no outline: this data set is for detection")
            points = np.array([float(word) for word in words[1:]])
            if not re.fullmatch(r"\d{1,5}", words[0]) or len(points) < 6 or len(points) % 2:
                raise ValueError(f"line {number} is not a number and three or more points: {line[:60]!r}")
            x, y = points[::2], points[1::2]
            area = abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2  # by the shoelace formula
            shapes.append((-area, int(words[0]), [points.tolist()]))
    except ValueError as error:
        raise ValueError(f"{path} is not a file of YOLO outlines: {str(error)[:200]}.") from None
    shapes.sort(key=lambda shape: shape[0])
    return Objects(tuple((label, outline) for _, label, outline in shapes), is_relative=True)


def find_names(root: Path) -> tuple[str, ...]:
    """Read the names of the classes in the data set's YAML file, which has `names` and `train` or `nc`.

    Returns:
        Names in the order of their numbers; none if there is no such file.

    Raises:
        ValueError: If it names a class twice or not at all.
    """
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
        except (yaml.YAMLError, ValueError, RecursionError, OSError):
            continue
        names = content.get("names") if isinstance(content, dict) else None
        if isinstance(names, dict) and all(type(key) is int and 0 <= key < 65536 for key in names):
            names = [names.get(index, f"class {index}") for index in range(max(names, default=-1) + 1)]
        if isinstance(names, list) and names and {"train", "val", "nc", "path"} & content.keys():
            found = tuple(str(name).strip() for name in names)
            if "" in found or len(set(found)) < len(found):
                raise ValueError(f"{path} names a class twice or not at all: give each a name of its own.")
            return found
    return ()
