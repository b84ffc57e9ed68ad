"""A user's own images and masks in folders, and their check before a training starts."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.data.images import read_image

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")


class ImageFolders(Sequence):
    """Photographs with masks, as `root`/`split`/images/NAME.jpg and `root`/`split`/masks/NAME.png.

    A mask has one channel (or a palette), whose values are the lines of `root`/classes.txt, counted from 0.
    Files are found and paired here; `check` reads them all.

    Args:
        root: the folder.
        split: name of the part, such as "train" or "val".
        ignore_index: mask value of pixels without a label; None if there are none.

    Attributes:
        class_names: lines of classes.txt.

    Raises:
        FileNotFoundError: a folder, classes.txt or the partner of an image or a mask is missing; or there are
            no images.
        ValueError: two images or masks have the same name but for the suffix; or classes.txt is empty, is not
            UTF-8, has an empty line between classes, or names a class twice.

    Example:
        >>> folders = ImageFolders("clothing", "train")  # doctest: +SKIP
        >>> image, mask = folders.check()[0]  # uint8 (H, W, 3) and uint8 (H, W)  # doctest: +SKIP
    """

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
        self.class_names = _read_class_names(classes)
        self.ignore_index = ignore_index
        found, labeled = _by_name(images, IMAGE_SUFFIXES), _by_name(masks, (".png",))
        if not found:
            raise FileNotFoundError(f"{images} has no images ({', '.join(IMAGE_SUFFIXES)}).")
        for kind, lacking in (("masks", found.keys() - labeled), ("images", labeled.keys() - found)):
            if lacking:
                raise FileNotFoundError(
                    f"{len(lacking)} of {len(found | labeled)} pairs in {root / split} have no file in "
                    f"{kind}: {_few(sorted(lacking))}."
                )
        self.pairs = [(found[name], labeled[name]) for name in sorted(found)]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image_path, mask_path = self.pairs[index]
        image = read_image(image_path)
        try:
            with Image.open(mask_path) as file:
                mask = np.asarray(file)
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{mask_path} cannot be read as a mask: {error}.") from error
        if mask.ndim != 2:
            raise ValueError(
                f"{mask_path} has {mask.shape[2]} channels: a mask has one, with the number of a class "
                "in each pixel, not its color."
            )
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"{mask_path} is {mask.shape[1]} x {mask.shape[0]} pixels, but its image is "
                f"{image.shape[1]} x {image.shape[0]}."
            )
        return image, mask

    def check(self) -> "ImageFolders":
        """Reads all images and masks, in threads, and returns itself.

        Raises:
            ValueError: a file cannot be read or has more than 8 bits a channel, a mask has another size than
                its image or several channels, or masks have values that are no class; one sentence names the
                files.
        """
        with ThreadPoolExecutor() as pool:
            values = list(pool.map(self._values, range(len(self))))
        declared = {*range(len(self.class_names)), self.ignore_index}
        wrong = [index for index, seen in enumerate(values) if seen - declared]
        if wrong:
            undeclared = sorted(set().union(*(values[index] for index in wrong)) - declared)
            raise ValueError(
                f"{len(wrong)} of {len(self)} masks have the values {_few(undeclared)}, but classes.txt "
                f"declares 0 to {len(self.class_names) - 1}: add the classes, or, if it means pixels without "
                f"a label, name the value as ignore_index ({_few(self.pairs[i][1].name for i in wrong)})."
            )
        return self

    def _values(self, index: int) -> set[int]:
        return set(np.unique(self[index][1]).tolist())


def _by_name(folder: Path, suffixes: Sequence[str]) -> dict[str, Path]:
    """The files of a folder by their names without suffix, which say what belongs together."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes:
            other = found.setdefault(path.stem, path)
            if other is not path:
                raise ValueError(
                    f"{folder} has both {other.name} and {path.name}, which only their suffixes tell apart: "
                    "rename or remove one."
                )
    return found


def _read_class_names(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the first name
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: save it in that encoding.") from error
    names = tuple(line.strip() for line in text.rstrip().splitlines())
    if not names:
        raise ValueError(f"{path} is empty: it should name the classes, one a line.")
    if "" in names:
        raise ValueError(
            f"{path} has nothing in line {names.index('') + 1}: the numbers of lines are the values of "
            "masks, so name that class or take the line out."
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:  # their scores would become one
        raise ValueError(f"{path} names {_few(repeated)} more than once: give each class a name of its own.")
    return names


def _few(values) -> str:
    values = list(map(str, values))
    return ", ".join(values[:3]) + (f" and {len(values) - 3} more" if len(values) > 3 else "")
