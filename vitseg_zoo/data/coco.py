"""COCO JSON: polygons and run-length codes as masks, drawn by pycocotools (extra `annotations`).

Format: https://cocodataset.org/#format-data. Objects are drawn from the largest to the smallest, so that what
lies on something else stays to be seen; an object's polygons are joined, and holes are those of its code.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vitseg_zoo.data.layouts import IMAGE_ENDINGS, Matched, Pair, Part, match

# Pixels of an image that a file may claim; Pillow refuses larger images too.
_MOST_PIXELS = 2**28


@dataclass(frozen=True)
class CocoImage:
    """One image's size and objects: (category, segmentation as in the file)."""

    size: tuple[int, int]
    objects: tuple[tuple[int, Any], ...]


@dataclass(frozen=True)
class CocoFile:
    """Categories, in the order of their ids, and images by the path that the file says."""

    names: tuple[str, ...]
    images: Mapping[str, CocoImage]

    def find(self, path: str) -> CocoImage | None:
        """Find an image by its path in the data's folder, or by its name alone."""
        return self.images.get(path) or self.images.get(PurePosixPath(path).name)


def read_coco(path: Path) -> CocoFile:
    """Read a COCO file; what was read last is kept.

    Raises:
        ValueError: If it is no JSON, or no COCO: lists of `images`, `annotations` and `categories`.
    """
    return _read(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _read(path: Path, modified: int) -> CocoFile:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        ids = sorted({category["id"]: category["name"] for category in content["categories"]}.items())
        number = {identity: index for index, (identity, _) in enumerate(ids)}
        objects: dict[Any, list] = {image["id"]: [] for image in content["images"]}
        for entry in content["annotations"]:
            if entry.get("segmentation"):
                area = float(entry.get("area", 0))
                objects[entry["image_id"]].append(
                    (-area, number[entry["category_id"]], entry["segmentation"])
                )
        images = {}
        for image in content["images"]:
            height, width = int(image["height"]), int(image["width"])
            if not (height > 0 and width > 0 and height * width <= _MOST_PIXELS):
                raise ValueError(f"an image of {height} x {width} pixels")
            drawn = sorted(objects[image["id"]], key=lambda item: item[0])
            found = CocoImage((height, width), tuple((category, code) for _, category, code in drawn))
            file_name = str(image["file_name"]).replace("\\", "/")
            images[file_name] = found
            images.setdefault(PurePosixPath(file_name).name, found)
        return CocoFile(tuple(str(name).strip() for _, name in ids), images)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"{path} is not a COCO file: {reason[:200]}.") from None


def is_coco(template: str) -> bool:
    """Say whether a `Part`'s masks are one COCO file and no template."""
    return template.lower().endswith(".json") and "{name}" not in template


def match_coco(root: Path, part: Part, files: Sequence[str]) -> Matched:
    """Pair the images of one split with what a COCO file says of them.

    Raises:
        FileNotFoundError: If the file is not in the data's folder.
    """
    if part.masks not in files:  # and so none outside the folder either
        raise FileNotFoundError(f"there is no {part.masks} in {root}.")
    coco = read_coco(root / part.masks)
    matched = Matched()
    for path in match(Part(part.images, "{name}.none"), files).images_alone:
        if coco.find(path) is None:
            matched.images_alone.append(path)
        else:
            matched.pairs.append(Pair(path.rpartition(".")[0], path, (part.masks,)))
    names = {PurePosixPath(pair.image).name for pair in matched.pairs}
    matched.masks_alone = sorted(path for path in coco.images if PurePosixPath(path).name not in names)
    return matched


def guess_coco(root: Path, files: Sequence[str]) -> dict[str, Part]:
    """Find COCO files and the folders of their images: split, or "all", -> `Part`."""
    parts: dict[str, Part] = {}
    images = [path for path in files if path.lower().endswith(IMAGE_ENDINGS)]
    for file in files:
        if not file.lower().endswith(".json"):
            continue
        try:
            coco = read_coco(root / file)
        except (ValueError, OSError):
            continue
        found = [path for path in images if coco.find(path)]
        # train/_annotations.coco.json and train2017/x.jpg: names recur in other splits' folders.
        split = _split(file)
        of_split = [path for path in found if _split(path) == split]
        folders = {PurePosixPath(path).parent.parts for path in of_split or found}
        if folders:
            levels = zip(*folders, strict=False)
            common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
            parts.setdefault(split, Part("/".join([*common, "{name}.*"]), file))
    if len(parts) > 1:
        parts.pop("all", None)
    return {split: parts[split] for split in ("train", "val", "test", "all") if split in parts}


def _split(path: str) -> str:
    found = re.search(r"(?<![a-z])(train|val|test)(?:id|idation|ing)?(?![a-z])", path.lower())
    return found[1] if found else "all"


def draw(image: CocoImage, path: Path) -> np.ndarray:
    """Draw an image's objects.

    Args:
        image: What the file says of it.
        path: The file, for messages.

    Returns:
        (H, W): 0 is the background, and the n-th category n + 1; uint8, or uint16 beyond 255.

    Raises:
        ModuleNotFoundError: If pycocotools is missing.
        ValueError: If a polygon or code is none.
    """
    from pycocotools import mask as rasterizer

    height, width = image.size
    farthest = 4 * max(image.size)
    classes = np.zeros(image.size, np.uint16)
    for category, segmentation in image.objects:
        try:
            if isinstance(segmentation, list):
                points = np.concatenate([np.asarray(polygon, np.float64) for polygon in segmentation])
                if not (np.abs(points) <= farthest).all():  # each edge is drawn from end to end
                    raise ValueError("points far outside the image")
                codes = rasterizer.merge(rasterizer.frPyObjects(segmentation, height, width))
                inside = rasterizer.decode(codes).astype(bool)
            else:
                inside = _decode(segmentation, image.size)
            classes[inside] = category + 1
        except Exception as error:  # pycocotools raises even Exception itself
            raise ValueError(f"{path} has a segmentation that cannot be drawn: {str(error)[:100]}.") from None
    return classes.astype(np.uint8) if classes.max(initial=0) < 256 else classes


def _decode(code: Mapping[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Make (H, W) bool of a run-length code: lengths of runs, outside first, along the columns.

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
