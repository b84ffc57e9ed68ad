"""Cityscapes: street scenes of 50 cities, 19 of their 34 labels.

M. Cordts et al.: The Cityscapes Dataset, CVPR 2016, https://arxiv.org/abs/1604.01685. Not for commercial use.
Files are found and labels numbered by torchvision.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torchvision.datasets

from vitseg_zoo.class_names import CITYSCAPES_CLASSES, CITYSCAPES_PALETTE
from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.masks import read_mask

# Labels of the files (labelIds) -> the 19 classes (train ids), and 255.
_TRAIN_IDS = np.full(256, 255, np.uint8)
for _label in torchvision.datasets.Cityscapes.classes:
    if 0 <= _label.train_id < 255:
        _TRAIN_IDS[_label.id] = _label.train_id


class Cityscapes(Sequence):
    """Street scenes with masks of 19 classes, 0 to 18; 255 is no class.

    Args:
        root: folder with `leftImg8bit`/SPLIT/CITY/*_leftImg8bit.png and `gtFine`/SPLIT/CITY/*_labelIds.png,
            as in leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip of
            https://www.cityscapes-dataset.com.
        split: "train" (2975 images) or "val" (500).

    Raises:
        FileNotFoundError: the data are not there.
        ValueError: when a pair is read, a file that is missing or damaged.

    Example:
        >>> image, mask = Cityscapes("cityscapes", "val")[0]  # doctest: +SKIP
    """

    class_names, palette, ignore_index = CITYSCAPES_CLASSES, CITYSCAPES_PALETTE, 255

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root).expanduser()
        self.path, self.split = root, split
        try:
            found = torchvision.datasets.Cityscapes(str(root), split, target_type="semantic")
        except RuntimeError as error:
            raise FileNotFoundError(
                f"no Cityscapes data in {root}: it should hold leftImg8bit/{split} and gtFine/{split} of "
                "leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, from https://www.cityscapes-dataset.com."
            ) from error
        self.pairs = sorted(
            (Path(image), Path(masks[0])) for image, masks in zip(found.images, found.targets, strict=True)
        )

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        image, mask = self.pairs[index]
        return read_image(image), _TRAIN_IDS[read_mask(mask)]

    def name(self, index: int) -> str:
        """Return the file name of an image."""
        return self.pairs[index][0].name
