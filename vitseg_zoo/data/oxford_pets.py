"""The Oxford-IIIT Pet data set as pet / background / border.

O. M. Parkhi, A. Vedaldi, A. Zisserman, C. V. Jawahar: Cats and Dogs, CVPR 2012 (CC BY-SA 4.0). Files are
found, read and downloaded by torchvision; this file turns trimaps into class indices and holds out a part for
validation.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torchvision.datasets import OxfordIIITPet

CLASS_NAMES = ("pet", "background", "border")  # trimap values 1, 2, 3
PALETTE = ((240, 200, 40), (70, 20, 90), (30, 150, 140))  # RGB
BACKGROUND = 1

VALIDATION_FRACTION = 0.15
# Fixed, and apart from a training's own seed: all runs are validated on the same images.
_SPLIT_SEED = 0


class OxfordPets(Sequence):
    """Photographs of cats and dogs with masks of three classes: 0 pet, 1 background, 2 border.

    torchvision knows the official parts `trainval` and `test`. Here "val" is a fixed random 15 % of
    `trainval`, "train" is the rest and "test" is `test`, which stays unseen until the end of a training.

    Args:
        root: folder that holds `oxford-iiit-pet`, or that folder itself.
        split: "train", "val", "trainval" (both) or "test".
        download: fetch the data set (800 MB) into `root` if it is not there.

    Raises:
        FileNotFoundError: the data set is not in `root` (and could not be downloaded); says what is expected
            there.
        ValueError: unknown `split`, or, when a pair is read, a file that is missing or damaged, a trimap
            of another size than its image, or one with other values than 1, 2 and 3.

    Example:
        >>> pets = OxfordPets("data", split="train", download=True)  # doctest: +SKIP
        >>> image, mask = pets[0]  # uint8 (H, W, 3) and uint8 (H, W)  # doctest: +SKIP
    """

    class_names, palette, ignore_index, channels = CLASS_NAMES, PALETTE, None, 3

    def __init__(self, root: str | Path, split: str = "train", download: bool = False) -> None:
        if split not in ("train", "val", "trainval", "test"):
            raise ValueError(f'split must be "train", "val", "trainval" or "test", not {split!r}.')
        self.pets = _open(Path(root).expanduser(), "test" if split == "test" else "trainval", download)
        self.path, self.split = Path(self.pets._base_folder), split
        order = np.arange(len(self.pets))
        if split in ("train", "val"):
            generator = torch.Generator().manual_seed(_SPLIT_SEED)
            order = torch.randperm(len(self.pets), generator=generator).numpy()
            held_out = round(VALIDATION_FRACTION * len(order))
            order = order[:held_out] if split == "val" else order[held_out:]
        self.order = order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(  # type: ignore[override]  # no slices
        self, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        number = self.order[index]
        paths = self.pets._images[number], self.pets._segs[number]
        try:
            image, trimap = map(np.asarray, self.pets[number])
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{paths[0]} or its trimap {paths[1]} cannot be read: {error}.") from error
        if trimap.shape != image.shape[:2]:
            raise ValueError(
                f"{paths[1]} is {trimap.shape[1]} x {trimap.shape[0]} pixels, but its image {paths[0]} is "
                f"{image.shape[1]} x {image.shape[0]}."
            )
        if trimap.min() < 1 or trimap.max() > 3:
            undeclared = sorted({int(v) for v in np.unique(trimap)} - {1, 2, 3})
            raise ValueError(
                f"the trimap of {self.name(index)} has the values {undeclared}; a trimap holds only 1 (pet), "
                "2 (background) and 3 (border)."
            )
        return image, trimap - 1

    def name(self, index: int) -> str:
        """Return the file name of an image, without its extension."""
        return self.pets._images[self.order[index]].stem


def _open(root: Path, split: str, download: bool) -> OxfordIIITPet:
    if root.name == "oxford-iiit-pet" and (root / "annotations").is_dir():
        root = root.parent  # torchvision adds the folder's name itself
    expected = (
        f"{root / 'oxford-iiit-pet'} should hold the folders images (*.jpg) and annotations (trimaps/*.png, "
        "trainval.txt, test.txt), as in images.tar.gz and annotations.tar.gz of "
        "https://www.robots.ox.ac.uk/~vgg/data/pets/"
    )
    try:
        return OxfordIIITPet(root, split=split, target_types="segmentation", download=download)
    except (RuntimeError, FileNotFoundError) as error:  # RuntimeError: torchvision found no such folders
        raise FileNotFoundError(f"no Oxford-IIIT Pet data in {root}: {expected}.") from error
    except OSError as error:  # urllib's URLError: no network
        raise FileNotFoundError(
            f"no Oxford-IIIT Pet data in {root}, and downloading failed ({error}); without a network, "
            f"fetch and unpack it by hand: {expected}."
        ) from error
