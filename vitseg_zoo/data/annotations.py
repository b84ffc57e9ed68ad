"""Files of outlines in place of masks: which they are, which images they are of, and what their labels are.

Each format has a reader of its own, as no library reads all of them right: datumaro 1.13 refuses CVAT's
exports of single jobs, knows neither labelme's JSON nor YOLO's outlines, and brings pandas, pyarrow and an
older OpenCV; supervision 0.31 draws YOLO's objects in the file's order, skips labelme's masks and circles,
and reads nothing of CVAT; labelformat 0.1 reads only boxes of CVAT, and no labelme.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import takewhile
from pathlib import Path, PurePosixPath

import numpy as np

from vitseg_zoo.data.coco import read_coco
from vitseg_zoo.data.cvat import read_cvat
from vitseg_zoo.data.guess_layout import guess_layout
from vitseg_zoo.data.labelme import read_labelme
from vitseg_zoo.data.layouts import IMAGE_ENDINGS, Matched, Pair, Part, match
from vitseg_zoo.data.outlines import AnnotationFile, Objects, draw, is_background
from vitseg_zoo.data.yolo import find_names, read_yolo

ENDINGS = (".json", ".xml", ".txt")
_TRIED = 8  # files that say whether all are of a format
_SPLIT = re.compile(r"(?<![a-z])(train|val|test)(?:id|idation|ing)?(?![a-z])")


def is_annotation(template: str) -> bool:
    """Say whether a `Part`'s masks, or a `Pair`'s, are files of outlines and no images."""
    return template.lower().endswith(ENDINGS)


def is_shared(template: str) -> bool:
    """Say whether a `Part`'s masks are one file on all images."""
    return is_annotation(template) and "{name}" not in template


def read_shared(path: Path) -> AnnotationFile:
    """Read a file on many images: COCO's JSON or CVAT's XML.

    Raises:
        ValueError: If it is none.
    """
    return read_cvat(path) if path.suffix.lower() == ".xml" else read_coco(path)


def read_single(path: Path) -> Objects:
    """Read a file on one image: labelme's JSON or YOLO's text.

    Raises:
        ValueError: If it is none.
    """
    return read_yolo(path) if path.suffix.lower() == ".txt" else read_labelme(path)


def draw_pair(root: Path, pair: Pair, size: Callable[[], tuple[int, int]]) -> np.ndarray:
    """Draw the mask of a pair whose mask is a file of outlines; see `draw`.

    Args:
        root: Folder of the data.
        pair: The pair.
        size: Gives the (height, width) of the image, where the file does not say it.
    """
    path = root / pair.masks[0]
    if pair.is_shared:
        found = read_shared(path).find(pair.image)
        if found is None:
            raise ValueError(f"{path} says nothing of {pair.image}.")
    else:
        found = read_single(path)
    try:
        return draw(found if found.size else replace(found, size=size()), pair.labels, path)
    except ValueError as error:
        raise ValueError(f"{pair.image}: {error}") from None


def match_annotations(root: Path, split: str, part: Part, files: Sequence[str]) -> Matched:
    """Pair the images of one split with what files of outlines say of them.

    Raises:
        FileNotFoundError: If a file on many images is not in the data's folder.
        ValueError: If it cannot be read.
    """
    if not is_shared(part.masks):
        return match(part, files)
    if part.masks not in files:  # and so none outside the folder either
        raise FileNotFoundError(f"there is no {part.masks} in {root}.")
    shared = read_shared(root / part.masks)
    # One file may have several splits.
    subsets = {split_of(objects.subset) for objects in shared.images.values()}
    images = match(Part(part.images, "{name}.none"), files).images_alone
    found = {path: shared.find(path) for path in images}
    matched = Matched()
    for path, objects in found.items():
        if objects is None:
            matched.images_alone.append(path)
        elif split not in subsets or split_of(objects.subset) == split:
            matched.pairs.append(Pair(path.rpartition(".")[0], path, (part.masks,), is_shared=True))
    names = {PurePosixPath(path).name for path in images}
    matched.masks_alone = sorted(
        path
        for path, objects in shared.images.items()
        if PurePosixPath(path).name not in names
        and (split not in subsets or split_of(objects.subset) == split)
    )
    return matched


def split_of(text: str) -> str:
    """Say which split a path or a name means; "all" if none."""
    found = _SPLIT.search(text.lower())
    return found[1] if found else "all"


def collect_labels(root: Path, pairs: Iterable[Pair], known: Sequence[str] = ()) -> tuple[str, ...]:
    """List the labels of files of outlines, or of masks of one class: in their order, or sorted.

    Args:
        root: Folder of the data.
        pairs: All pairs.
        known: Names of classes, if a file says them; other labels come after them.
    """
    pairs = list(pairs)
    shared = sorted({pair.masks[0] for pair in pairs if pair.is_shared})
    if shared:
        listed = [label for path in shared for label in read_shared(root / path).labels]
        return tuple(dict.fromkeys(label for label in listed if not is_background(label)))
    known = [name for name in known if not is_background(name)]
    classes = {name for pair in pairs for name in pair.classes if not is_background(name)}
    if classes:
        return (*(name for name in known if name in classes), *sorted(classes - set(known)))
    with ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda pair: _labels_of(root / pair.masks[0]), pairs))
    used = {label for labels in found for label in labels}
    if any(pair.masks[0].lower().endswith(".txt") for pair in pairs):
        numbers = [label for label in used if isinstance(label, int)]
        names = find_names(root) or tuple(known)
        return (*names, *(f"class {index}" for index in range(len(names), max(numbers, default=-1) + 1)))
    return (*known, *sorted({str(label) for label in used if not is_background(label)} - set(known)))


def _labels_of(path: Path) -> set[str | int]:
    try:
        return {label for label, _ in read_single(path).shapes}
    except (ValueError, OSError):
        return set()  # a finding of its own


def guess_annotations(root: Path, files: Sequence[str]) -> dict[str, Part]:
    """Find files of outlines and the images that they are of: split, or "all", -> `Part`."""
    images = [path for path in files if path.lower().endswith(IMAGE_ENDINGS)]
    stems = {PurePosixPath(path).stem for path in images}
    for ending in (".json", ".txt"):
        own = [path for path in files if path.lower().endswith(ending) and PurePosixPath(path).stem in stems]
        if own and _are_single([root / path for path in own[:: max(1, len(own) // _TRIED)]]):
            return guess_layout([*images, *own], (*IMAGE_ENDINGS, ending))
    return _guess_shared(root, images, [path for path in files if path.lower().endswith((".json", ".xml"))])


def _are_single(paths: Sequence[Path]) -> bool:
    """Say whether some files are outlines of one image each."""
    read = 0
    for path in paths:
        try:
            objects = read_single(path)
        except (ValueError, OSError):
            continue
        read += bool(objects.shapes) or path.suffix.lower() == ".json"
    return 2 * read > len(paths) or read >= _TRIED // 2


def _guess_shared(root: Path, images: Sequence[str], candidates: Sequence[str]) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    for file in candidates:
        try:
            shared = read_shared(root / file)
        except (ValueError, OSError):
            continue
        found = [path for path in images if shared.find(path)]
        # train/_annotations.coco.json and train2017/x.jpg: names recur in other splits' folders.
        split = split_of(file)
        of_split = [path for path in found if split_of(path) == split]
        folders = {PurePosixPath(path).parent.parts for path in of_split or found}
        if not folders:
            continue
        levels = zip(*folders, strict=False)
        common = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        part = Part("/".join([*common, "{name}.*"]), file)
        subsets = {split_of(objects.subset) for objects in shared.images.values()} - {"all"}
        for subset in subsets if len(subsets) > 1 else {split}:
            parts.setdefault(subset, part)
    if len(parts) > 1:
        parts.pop("all", None)
    return {split: parts[split] for split in ("train", "val", "test", "all") if split in parts}
