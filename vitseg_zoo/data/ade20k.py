"""ADE20K's scene parsing benchmark: 150 classes, the label 0 ("other") ignored.

B. Zhou et al.: Scene Parsing through ADE20K Dataset, CVPR 2017, https://arxiv.org/abs/1608.05442. Images are
for research and teaching alone.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vitseg_zoo.class_names import ADE20K_CLASSES, ADE20K_PALETTE
from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.masks import read_mask


class Ade20k(Sequence):
    """Photographs with masks of 150 classes, 0 to 149; 255 is no class.

    Args:
        root: folder ADEChallengeData2016 of http://sceneparsing.csail.mit.edu, with `images`/SPLIT/*.jpg and
            `annotations`/SPLIT/*.png.
        split: "training" (20,210 images) or "validation" (2000).

    Raises:
        FileNotFoundError: the images are not there.
        ValueError: when a pair is read, a file that is missing or damaged.

    Example:
        >>> image, mask = Ade20k("ADEChallengeData2016", "validation")[0]  # doctest: +SKIP
    """

    class_names, palette, ignore_index = ADE20K_CLASSES, ADE20K_PALETTE, 255

    def __init__(self, root: str | Path, split: str) -> None:
        root = Path(root).expanduser()
        self.path, self.split = root, split
        self.masks = root / "annotations" / split
        self.images = sorted((root / "images" / split).glob("*.jpg"))
        if not self.images:
            raise FileNotFoundError(
                f"{root}/images/{split} has no images: {root} should be the folder ADEChallengeData2016 of "
                "the zip file of http://sceneparsing.csail.mit.edu."
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:  # type: ignore[override]
        mask = read_mask(self.masks / f"{self.images[index].stem}.png")
        return read_image(self.images[index]), mask.astype(np.uint8) - np.uint8(1)  # 0 becomes 255

    def name(self, index: int) -> str:
        """Return the file name of an image."""
        return self.images[index].name
