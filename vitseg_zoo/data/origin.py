"""Where images and masks come from, in words that a file can hold, and the way back to them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Subset

from vitseg_zoo.data.ade20k import Ade20k
from vitseg_zoo.data.camvid import CamVid
from vitseg_zoo.data.cityscapes import Cityscapes
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.data.segmentation_folder import SegmentationFolder, load_description

# All have `path` and `split`, with which they were opened.
_READERS: dict[str, Any] = {
    reader.__name__: reader
    for reader in (Ade20k, CamVid, Cityscapes, ImageFolders, OxfordPets, SegmentationFolder)
}


def origin_of(pairs: Any) -> dict[str, Any] | None:
    """Say where pairs of images and masks come from.

    Args:
        pairs: One of the package's readers, or a `Subset` of one.

    Returns:
        `reader`, `path` and `split`, and an `ignore_index` that was given; None for anything else.

    Example:
        >>> origin_of(CamVid("data/CamVid", "test"))  # doctest: +SKIP
        {'reader': 'CamVid', 'path': '/home/me/data/CamVid', 'split': 'test'}
    """
    while isinstance(pairs, Subset):
        pairs = pairs.dataset
    name = type(pairs).__name__
    if _READERS.get(name) is not type(pairs):
        return None
    origin = {"reader": name, "path": str(Path(pairs.path).resolve()), "split": pairs.split}
    if name == "ImageFolders" and pairs.ignore_index is not None:
        origin["ignore_index"] = pairs.ignore_index
    return origin


def open_origin(origin: Mapping[str, Any]) -> Sequence:
    """Open what `origin_of` described.

    Raises:
        ValueError: If there is no such reader.
        FileNotFoundError: If the data are not there.
    """
    name, path, split = (origin.get(key) for key in ("reader", "path", "split"))
    if not (name in _READERS and isinstance(path, str) and isinstance(split, str)):
        raise ValueError(f"there is no reader {name!r} of images and masks, only {', '.join(_READERS)}")
    options = {"ignore_index": origin["ignore_index"]} if "ignore_index" in origin else {}
    return _READERS[name](path, split, **options)


def open_split(path: str | Path, split: str | None = None) -> SegmentationFolder | OxfordPets:
    """Open the part of a data set that models are measured on.

    Args:
        path: A folder that `vitseg check` understands, its dataset.yaml, or the Oxford-IIIT Pet data set.
        split: Name of the part; by default "test", or "val" where there is no such part.

    Returns:
        Pairs (image, mask), with `class_names`, `palette`, `ignore_index` and `name`.

    Raises:
        FileNotFoundError: If there are no images with masks.
        ValueError: If there is no such part, or the masks cannot be understood.

    Example:
        >>> open_split("camvid").split  # doctest: +SKIP
        'test'
    """
    path = Path(path).expanduser()
    if any((folder / "annotations" / "trimaps").is_dir() for folder in (path, path / "oxford-iiit-pet")):
        return OxfordPets(path, split or "test")
    description = load_description(path)
    splits = description.splits
    return SegmentationFolder(
        description, split or next((name for name in ("test", "val") if name in splits), splits[-1])
    )
