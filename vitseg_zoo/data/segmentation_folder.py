"""Anybody's images and masks as a sequence of pairs, whatever `vitseg check` understands."""

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from vitseg_zoo.data.annotations import guess_annotations
from vitseg_zoo.data.class_files import Color, find_class_file, read_class_file
from vitseg_zoo.data.description import FILE_NAME, DatasetDescription, match_parts, read_description
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.guess_layout import guess_layout, has_masks, split_lists
from vitseg_zoo.data.images import as_image, read_image, read_size, read_window
from vitseg_zoo.data.layouts import Matched, Pair, Part, list_files
from vitseg_zoo.data.masks import MaskEncoding, Proposal, propose, propose_planes
from vitseg_zoo.data.outlines import is_background
from vitseg_zoo.data.pair_tables import guess_tables
from vitseg_zoo.data.planes import find_planes, has_planes
from vitseg_zoo.data.survey import Record, Window, choose_channels, read_masks, read_multilabel, survey
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.terminal import say

_LOOKED_AT = 16  # images that say how many channels all have, where there is no dataset.yaml
_LOOSE = 1e-3  # of the labeled pixels: that many may have several classes where one is meant


class SegmentationFolder(Sequence):
    """Images with masks in a folder of any layout, as pairs (image, mask) with class numbers.

    Where the masks are multi-label, one of each class that may overlap, a mask is (H, W, classes) of 0 and 1.

    Args:
        path: The folder, or its dataset.yaml as `vitseg check DIR --write` writes it. A folder without one is
            looked through first: all masks are read. Or what `load_description` found out of it.
        split: Name of the part, such as "train" or "val".

    Attributes:
        description: What is known of the data.
        class_names: Names of the classes.
        palette: Their colors (red, green, blue).
        ignore_index: Value of pixels without a label in the masks that come out; None if there are none.
        channels: Of the images.
        mode: SMP's word: "multiclass" or "multilabel".
        pairs: The files.

    Raises:
        FileNotFoundError: If the folder is not there or has no images with masks.
        ValueError: If the masks cannot be understood, or there is no such split.

    Example:
        >>> train = SegmentationFolder("camvid", "train")  # doctest: +SKIP
        >>> image, mask = train[0]  # uint8 (H, W, 3) and class numbers (H, W)  # doctest: +SKIP
    """

    def __init__(self, path: str | Path | DatasetDescription, split: str) -> None:
        self.description = path if isinstance(path, DatasetDescription) else load_description(path)
        path = self.description.root if isinstance(path, DatasetDescription) else path
        if split not in self.description.splits:
            raise ValueError(f"{path} has no split {split!r}, only {', '.join(self.description.splits)}.")
        self.split = split
        self.path = Path(path).expanduser()
        self.class_names = self.description.class_names
        self.palette = self.description.palette
        self.ignore_index = self.description.ignore_index
        self.channels = self.description.channels
        self.mode = "multilabel" if self.description.multilabel else "multiclass"
        matched = self.description.match()[split]
        if not matched.pairs:
            raise FileNotFoundError(f"{path} has no images with masks for {split}.")
        self.pairs = matched.pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(  # type: ignore[override]  # no slices
        self, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        pair = self.pairs[index]
        image = read_image(self.description.root / pair.image, self.channels)
        mask = read_classes(self.description, pair)
        if mask.shape[:2] != image.shape[:2]:
            raise ValueError(
                f"{self.description.root / pair.masks[0]} is {mask.shape[1]} x {mask.shape[0]} pixels, but "
                f"its image is {image.shape[1]} x {image.shape[0]}."
            )
        return image, mask

    def name(self, index: int) -> str:
        """Return the path of an image, relative to the data's folder."""
        return self.pairs[index].image

    def size(self, index: int) -> tuple[int, int]:
        """Return the (height, width) of an image, without decoding it."""
        return read_size(self.description.root / self.pairs[index].image)

    def mask(self, index: int) -> np.ndarray:
        """Return the class numbers (H, W) of an image, or 0 and 1 (H, W, classes)."""
        return read_classes(self.description, self.pairs[index])

    def window(self, index: int, window: Window) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a part (top, left, height, width) of an image and its mask, read by region.

        None if the image's format has no regions; its mask is read whole where only that has none.
        """
        root, pair = self.description.root, self.pairs[index]
        pixels = read_window(root / pair.image, window)
        if pixels is None:
            return None
        image = as_image(pixels, self.channels)
        mask = read_classes(self.description, pair, window)
        if mask.shape[:2] != image.shape[:2]:
            raise ValueError(f"{root / pair.masks[0]} is of another size than its image.")
        return image, mask


def open_folders(
    path: str | Path,
    splits: Sequence[str],
    ignore_index: int | None = None,
    pets: bool = False,
    skip_bad: bool = False,
) -> list[Sequence]:
    """Open the parts of a data set for a training.

    Args:
        path: The folder, or its dataset.yaml.
        splits: Names of the parts.
        ignore_index: Mask value of pixels without a label, where masks hold class numbers beside it and the
            folder has the layout of `ImageFolders`; by default it is found out.
        pets: The folder is that of the Oxford-IIIT Pet data set.
        skip_bad: Read all at once, and leave out what cannot be read, which is named on the error stream; not
            for `pets`.

    Returns:
        One sequence of pairs (image, mask) for each part, with `class_names`, `palette`, `ignore_index` and
        `channels`.
    """
    if pets:
        from vitseg_zoo.data.oxford_pets import OxfordPets  # imports torchvision, which a check does not need

        return [OxfordPets(path, split) for split in splits]
    if ignore_index is not None:
        folders = [ImageFolders(path, split, ignore_index) for split in splits]
        if skip_bad:
            for images in folders:
                _leave_out_bad(images)
        return [images.check() for images in folders]
    description = load_description(path)  # once: without dataset.yaml all masks are read
    opened: list[Sequence] = []
    for split in splits:
        folder = SegmentationFolder(description, split)
        folder.path = Path(path).expanduser()  # and not the data's folder, for dataset.yaml
        if skip_bad:
            _leave_out_bad(folder)
        opened.append(folder)
    return opened


def _leave_out_bad(folder: SegmentationFolder | ImageFolders) -> None:
    """Read all pairs, in threads, and leave out those that cannot be read.

    Raises:
        ValueError: If none is left.
    """

    def error_of(index: int) -> ValueError | None:
        try:
            folder[index]
        except ValueError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        errors = list(pool.map(error_of, range(len(folder))))
    for error in filter(None, errors):
        say(f"passed over: {error}", file=sys.stderr, flush=True)
    for index in reversed(range(len(errors))):
        if errors[index]:
            del folder.pairs[index]
    if not folder.pairs:
        raise ValueError(f"none of the images of {folder.path} for {folder.split} can be read.")


def read_classes(description: DatasetDescription, pair: Pair, window: Window | None = None) -> np.ndarray:
    """Read the class numbers (H, W) of a pair's mask, or of multi-label ones 0 and 1 (H, W, classes).

    Args:
        description: The data.
        pair: The pair.
        window: Top, left, height and width of a part, by region where the format allows that; all by default.

    Raises:
        ValueError: If it cannot be read or has values that are no class; the message names the file.
    """
    if description.multilabel:
        return read_multilabel(description.root, pair, description.encoding.values, window)
    pixels = read_masks(description.root, pair, description.encoding.kind == "colors", window)
    try:
        return description.encoding.decode(pixels)
    except ValueError as error:
        raise ValueError(
            f"{description.root / pair.masks[0]}: {error}. Mend it, or name the values in dataset.yaml."
        ) from None


def load_description(path: str | Path) -> DatasetDescription:
    """Read dataset.yaml, or find out what it would say of a folder that has none.

    Args:
        path: The file or the folder.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return read_description(path)
    if (path / FILE_NAME).is_file():
        return read_description(path / FILE_NAME)
    root, parts, matched, files = find_parts(path)
    pairs = [(split, pair) for split, found in matched.items() for pair in found.pairs]
    description = describe(root, parts, files, survey(root, pairs, images=False))[0]
    some = pairs[:: max(1, len(pairs) // _LOOKED_AT)]
    return replace(description, channels=choose_channels(survey(root, some, masks=False)))


def find_parts(path: Path) -> tuple[Path, dict[str, Part], dict[str, Matched], list[str]]:
    """Find where the images and masks of a folder lie.

    Raises:
        FileNotFoundError: If it has no images with masks.
    """
    files = list_files(path)
    parts = guess_tables(path, files) or guess_layout(files)
    if set(parts) == {"all"} and parts["all"].table is None and (lists := split_lists(files)):
        listed = {
            split: Part(parts["all"].images, parts["all"].masks, names) for split, names in lists.items()
        }
        found = match_parts(path, listed, files)
        # A list that names images of this folder, and not something else of that name.
        listed = {split: part for split, part in listed.items() if found[split].pairs}
        if "train" in listed:
            parts = listed
    if not any(part.table or has_masks(part) for part in parts.values()):
        parts = guess_annotations(path, files) or parts
    if not parts:
        raise FileNotFoundError(
            f"{path} has no images with masks: it should hold images/NAME.jpg and masks/NAME.png, or "
            "NAME.jpg beside NAME_mask.png, with or without train and val."
        )
    matched = match_parts(path, parts, files)
    pairs = (pair for found in matched.values() for pair in found.pairs if not pair.labels)
    if labels := find_planes(path, pairs, find_class_file(files)):
        matched = match_parts(path, parts, files, labels=labels)
    return path, parts, matched, files


def describe(
    root: Path, parts: dict[str, Part], files: list[str], records: Iterable[Record]
) -> tuple[DatasetDescription, Proposal, list[Record]]:
    """Find out what the masks mean from what was measured of them."""
    kept: list[Record] = []
    gray: Counter[int] = Counter()
    colors: Counter[int] = Counter()
    palette: dict[int, Color] = {}
    one_palette = True
    for record in records:
        kept.append(record)
        (colors if record.colored else gray).update(record.values)
        for value, color in record.palette.items():
            one_palette &= palette.setdefault(value, color) == color
    if not one_palette:  # each file numbers its colors anew: the colors count
        gray = Counter()
        for record in kept:
            if record.palette:
                for value, (red, green, blue) in record.palette.items():
                    colors[red << 16 | green << 8 | blue] += record.values[value]
            elif not record.colored:
                gray.update(record.values)
    class_file = find_class_file(files)
    labels = next((record.pair.labels for record in kept), ())
    names, name_colors = None, None
    if labels:
        names = ("background", *labels)
    elif class_file:
        names, name_colors = read_class_file(root / class_file)
    if _are_several(kept):
        found = _propose_multilabel(labels, kept)
    elif labels and has_planes(kept[0].pair):
        found = propose_planes(labels, any(0 in record.values for record in kept))
    else:
        found = propose(gray, colors, names, name_colors, palette if one_palette else None)
    description = DatasetDescription(
        *(root, parts, found.encoding, found.class_names, found.palette, found.ignore_index),
        channels=choose_channels(kept),
        labels=labels,
    )
    return description, found, kept


def _are_several(records: Sequence[Record]) -> bool:
    """Say whether pixels have several classes on purpose, and not from borders that were drawn loosely."""
    labeled = sum(count for record in records for value, count in record.values.items() if value)
    if sum(record.overlaps for record in records) > _LOOSE * labeled:
        return True
    own, shared = Counter[int](), Counter[int]()  # a small class that lies in others
    for record in records:
        own.update(record.label_pixels)
        shared.update(record.covering)
        for position, count in record.label_pixels.items():
            shared[position] += count - record.values.get(position, 0)
    return any(2 * shared[position] > count for position, count in own.items())


def _propose_multilabel(labels: Sequence[str], records: Sequence[Record]) -> Proposal:
    """Make each label a class of its own, and no background."""
    several = [record.overlaps for record in records if record.overlaps]
    images = f"{len(several)} image{'s' * (len(several) > 1)}"
    note = (
        f"{images} with pixels of several classes, {sum(several)} in all: the masks are multi-label, each "
        "class is learned by itself"
    )
    kept = [(position, label) for position, label in enumerate(labels, 1) if not is_background(label)]
    encoding = MaskEncoding("multilabel", {position: index for index, (position, _) in enumerate(kept)})
    palette = distinct_colors(len(kept) + 1)[1:]  # black is for pixels of no class
    return Proposal(encoding, tuple(label for _, label in kept), tuple(palette), None, (note,))
