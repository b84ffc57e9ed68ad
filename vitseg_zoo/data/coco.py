"""COCO JSON: polygons and run-length codes.

Format: https://cocodataset.org/#format-data. Objects are drawn from the largest to the smallest, so that what
lies on something else stays to be seen; an object's polygons are joined, and holes are those of its code.
"""

import json
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from vitseg_zoo.data.outlines import MOST_PIXELS, AnnotationFile, Objects, checked_label


def read_coco(path: Path) -> AnnotationFile:
    """Read a COCO file; what was read last is kept. Labels are in the order of the categories' ids.

    Raises:
        ValueError: If it is no JSON, or no COCO: lists of `images`, `annotations` and `categories`.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> AnnotationFile:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        names = {category["id"]: checked_label(category["name"]) for category in content["categories"]}
        objects: dict[Any, list] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            if entry.get("segmentation"):
                area = float(entry.get("area", 0))
                objects[entry["image_id"]].append((-area, names[entry["category_id"]], entry["segmentation"]))
        images = {}
        for image in content["images"]:
            height, width = int(image["height"]), int(image["width"])
            if not (height > 0 and width > 0 and height * width <= MOST_PIXELS):
                raise ValueError(f"an image of {height} x {width} pixels")
            drawn = sorted(objects[image["id"]], key=lambda item: item[0])
            found = Objects(tuple((label, code) for _, label, code in drawn), (height, width))
            file_name = str(image["file_name"]).replace("\\", "/")
            images[file_name] = found
            images.setdefault(PurePosixPath(file_name).name, found)
        return AnnotationFile(tuple(dict.fromkeys(names[number] for number in sorted(names))), images)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a COCO file: {reason[:200]}.") from None
