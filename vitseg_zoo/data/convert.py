"""A copy of a data set in the plain layout: SPLIT/images, SPLIT/masks with class numbers, and classes.txt.

Where a pixel may have several classes, SPLIT/masks has a folder a class, with masks of 0 and 255.
"""

import shutil
import tempfile
from concurrent.futures import ThreadPoolExecutor
from os import cpu_count
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from vitseg_zoo.data.description import DatasetDescription
from vitseg_zoo.data.layouts import Pair
from vitseg_zoo.data.segmentation_folder import read_classes
from vitseg_zoo.files import file_names


def convert(description: DatasetDescription, out: str | Path) -> int:
    """Write a copy that every tool reads: images as they are, masks as PNG with class numbers.

    Args:
        description: The data.
        out: Folder to make; it appears when all is written.

    Returns:
        How many images were written.

    Raises:
        FileExistsError: If `out` is there already.
        ValueError: If it would lie in the data's own folder, or a mask cannot be read.
    """
    out = Path(out).expanduser().resolve()
    if out.exists():
        raise FileExistsError(f"{out} is there already: give the copy a new folder.")
    root = description.root.resolve()
    if out.is_relative_to(root):
        raise ValueError(f"{out} lies in the data's own folder: give the copy a folder elsewhere.")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=out.parent))
    try:
        pairs = [(split, pair) for split, found in description.match().items() for pair in found.pairs]
        for split in description.splits:
            for kind in ("images", "masks"):
                (partial / split / kind).mkdir(parents=True)
        with ThreadPoolExecutor(cpu_count()) as pool:
            for _ in pool.map(lambda item: _write(description, partial, *item), pairs):
                pass
        names = file_names(description.class_names) if description.multilabel else description.class_names
        (partial / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return len(pairs)


def _write(description: DatasetDescription, folder: Path, split: str, pair: Pair) -> None:
    ending = PurePosixPath(pair.image).suffix
    image = folder / split / "images" / (pair.name + ending)
    name, pixels = pair.name + ".png", read_classes(description, pair)
    masks = {name: pixels}
    if description.multilabel:
        layers = zip(file_names(description.class_names), np.moveaxis(pixels, 2, 0), strict=True)
        masks = {f"{label}/{name}": layer * np.uint8(255) for label, layer in layers}
    image.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(description.root / pair.image, image)
    for file, mask in masks.items():
        path = folder / split / "masks" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
