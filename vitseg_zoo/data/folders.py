"""A user's own images and masks in folders, and their check before a training starts."""

import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vitseg_zoo.data.class_files import read_class_file
from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.layouts import IMAGE_ENDINGS, list_files
from vitseg_zoo.data.masks import read_mask
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.terminal import printable

_MASK_ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".gif", ".npy")


class ImageFolders(Sequence):
    """Photographs with masks, as `root`/`split`/images/NAME.jpg and `root`/`split`/masks/NAME.png.

    `SegmentationFolder` reads any other layout, and masks of colors or of 0 and 255.

    A mask has one channel (or a palette), whose values are the lines of `root`/classes.txt, counted from 0.
    Files are found and paired here; `check` reads them all.

    Args:
        root: the folder.
        split: name of the part, such as "train" or "val".
        ignore_index: mask value of pixels without a label; None if there are none.

    Attributes:
        class_names: lines of classes.txt.
        palette: a color for each of them.

    Raises:
        FileNotFoundError: a folder, classes.txt or the partner of an image or a mask is missing; or there are
            no images.
        ValueError: two images or masks have the same name but for the suffix; or classes.txt is empty, is not
            UTF-8, has an empty line between classes, or names a class twice; or `ignore_index` is a class.

    Example:
        >>> folders = ImageFolders("clothing", "train")  # doctest: +SKIP
        >>> image, mask = folders.check()[0]  # uint8 (H, W, 3) and uint8 (H, W)  # doctest: +SKIP
    """

    channels = 3  # gray becomes RGB

    def __init__(self, root: str | Path, split: str, ignore_index: int | None = None) -> None:
        root = Path(root).expanduser()
        classes = root / "classes.txt"
        images, masks = (root / split / kind for kind in ("images", "masks"))
        for needed in (images, masks, classes):
            kind = "file" if needed == classes else "folder"
            if not (needed.is_file() if kind == "file" else needed.is_dir()):
                raise FileNotFoundError(
                    f"there is no {kind} {needed}: {root} should hold {split}/images/NAME.jpg, "
                    f"{split}/masks/NAME.png and classes.txt, a class a line."
                )
        self.class_names, _ = read_class_file(classes)
        if ignore_index is not None and 0 <= ignore_index < len(self.class_names):
            raise ValueError(
                f"ignore_index {ignore_index} is the class {self.class_names[ignore_index]} of {classes}: "
                "pixels without a label need a value that is no class."
            )
        self.palette = distinct_colors(len(self.class_names))
        self.ignore_index = ignore_index
        self.folder = root / split
        self.path, self.split = root, split
        found, labeled = _by_name(images, IMAGE_ENDINGS), _by_name(masks, _MASK_ENDINGS)
        if not found:
            raise FileNotFoundError(f"{images} has no images ({', '.join(IMAGE_ENDINGS)}).")
        for kind, lacking in (("masks", found.keys() - labeled), ("images", labeled.keys() - found)):
            if lacking:
                raise FileNotFoundError(
                    f"{len(lacking)} of {len(found | labeled)} pairs in {root / split} have no file in "
                    f"{kind}: {_few(sorted(lacking))}."
                )
        self.pairs = [(found[name], labeled[name]) for name in sorted(found)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(  # type: ignore[override]  # no slices
        self, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        mask = read_mask(mask_path)
        if mask.ndim != 2:
            raise ValueError(
                f"{mask_path} has {mask.shape[2]} channels: a mask has one, with the number of a class in "
                "each pixel, not its color; `vitseg check` and SegmentationFolder understand colors."
            )
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"{mask_path} is {mask.shape[1]} x {mask.shape[0]} pixels, but its image is "
                f"{image.shape[1]} x {image.shape[0]}."
            )
        return image, mask

    def name(self, index: int) -> str:
        """Return the path of an image, relative to the split's folder of images."""
        return self.pairs[index][0].relative_to(self.folder / "images").as_posix()

    def check(self) -> "ImageFolders":
        """Read all images and masks, in threads, and return itself.

        Raises:
            ValueError: a file cannot be read, a mask has another size than
                its image or several channels, or masks have values that are no class; one sentence names the
                files.
        """
        with ThreadPoolExecutor() as pool:
            values = list(pool.map(self._values, range(len(self))))
        count = len(self.class_names)
        declared = {*range(count), self.ignore_index}
        wrong = [index for index, seen in enumerate(values) if seen - declared]
        seen = set().union(*values)
        if wrong:
            undeclared = sorted(set().union(*(values[index] for index in wrong)) - declared)
            advice = "add the classes, or, if it means pixels without a label, name the value as ignore_index"
            if len(seen) == count and undeclared == sorted(seen)[-len(undeclared) :]:
                levels = _few(f"{value} instead of {i}" for i, value in enumerate(sorted(seen)) if value != i)
                advice = (
                    f"they hold gray levels, {levels}; `vitseg check` and SegmentationFolder understand them"
                )
            raise ValueError(
                f"{len(wrong)} of {len(self)} masks have the values {_few(undeclared)}, but classes.txt "
                f"declares 0 to {count - 1}: {advice} ({_few(self.pairs[i][1].name for i in wrong)})."
            )
        lacking = [name for index, name in enumerate(self.class_names) if index not in seen]
        if lacking:
            said = f"no mask of {self.folder} has a pixel of {_few(lacking)}."
            warnings.warn(printable(said), stacklevel=2)
        return self

    def _values(self, index: int) -> set[int]:
        return set(np.unique(self[index][1]).tolist())


def _by_name(folder: Path, endings: Sequence[str]) -> dict[str, Path]:
    """Return the files of a folder by their paths without ending, which say what belongs together."""
    found: dict[str, Path] = {}
    for path in map(folder.joinpath, list_files(folder)):
        if path.suffix.lower() in endings:
            other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
            if other is not path:
                raise ValueError(
                    f"{folder} has both {other.name} and {path.name}, which only their suffixes tell apart: "
                    "rename or remove one."
                )
    return found


def _few(values) -> str:
    values = list(map(str, values))
    return ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
