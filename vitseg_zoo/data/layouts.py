"""Which file is an image, which is its mask, and to which split they belong.

A layout is written as templates relative to the folder of the data: ``train/images/{name}.jpg`` and
``train/masks/{name}_mask.png`` pair what has the same ``{name}``, which may hold sub-folders. ``{folder}`` is
a folder that both share, and ``*`` is anything: ``{name}/masks/*.png`` are all the masks of one image. A mask
of one class has ``{class}`` in its path: ``masks/{class}/{name}.png``.
`vitseg_zoo.data.guess_layout` finds the templates of a folder; people correct them in dataset.yaml.
"""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".npy")


@dataclass(frozen=True)
class Part:
    """Where the images and masks of one split lie.

    Args:
        images: Template of the images' paths, relative to the data's folder, as ``train/images/{name}.*``.
        masks: Template of the masks' paths.
        names: Text file, relative too, with one name a line, where the split is a list; None where all are
            meant.
        table: CSV file whose rows are the pairs; `images` and `masks` are names of its columns then.
    """

    images: str
    masks: str
    names: str | None = None
    table: str | None = None


@dataclass(frozen=True)
class Pair:
    """An image and its masks.

    Args:
        name: What they share.
        image: Path in the data's folder.
        masks: Paths: one, or one for each object or class; or a file of outlines.
        is_shared: Whether that file is on many images.
        labels: Names of what a file of outlines, masks of single classes or planes draw, in order.
        classes: Label of each of `masks`, where each is of one class.
    """

    name: str
    image: str
    masks: tuple[str, ...]
    is_shared: bool = field(default=False, repr=False)
    labels: tuple[str, ...] = field(default=(), repr=False)
    classes: tuple[str, ...] = field(default=(), repr=False)


@dataclass
class Matched:
    """What a `Part` finds: pairs, and the files that have no partner or too many."""

    pairs: list[Pair] = field(default_factory=list)
    images_alone: list[str] = field(default_factory=list)
    masks_alone: list[str] = field(default_factory=list)
    doubled: list[tuple[str, str]] = field(default_factory=list)
    unknown_names: list[str] = field(default_factory=list)


def list_files(root: str | Path) -> list[str]:
    """List all files under a folder, sorted, as POSIX paths relative to it.

    Hidden files and folders (`.DS_Store`, `._0.jpg`) and `__MACOSX` are passed over. Symbolic links are
    followed, each folder once.

    Args:
        root: The folder.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"there is no folder {root}.")
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file: give the folder that holds images and masks.")
    files, seen = [], set()
    for folder, folders, names in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it, or to one met before
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__MACOSX")
        base = Path(folder).relative_to(root).as_posix()
        files += [name if base == "." else f"{base}/{name}" for name in names if not name.startswith(".")]
    return sorted(files)


def match(part: Part, files: Sequence[str], names: Iterable[str] | None = None) -> Matched:
    """Pair the files of one split.

    Args:
        part: Its templates.
        files: All files, as `list_files` returns them.
        names: The lines of `part.names`: names, file names or paths of images, of which only the first word
            counts.

    Raises:
        ValueError: If a template has no ``{name}``.

    Example:
        >>> files = ["images/a.jpg", "images/b.jpg", "masks/a.png"]
        >>> matched = match(Part("images/{name}.jpg", "masks/{name}.png"), files)
        >>> matched.pairs, matched.images_alone
        ([Pair(name='a', image='images/a.jpg', masks=('masks/a.png',))], ['images/b.jpg'])
    """
    image_pattern, mask_pattern = _compile(part.images), _compile(part.masks)
    of_classes = "{class}" in part.masks
    several = (
        of_classes or "*" in PurePosixPath(part.masks).stem or "*" in str(PurePosixPath(part.masks).parent)
    )
    images: dict[str, str] = {}
    masks: dict[str, list[str]] = defaultdict(list)
    matched = Matched()
    endings = {*IMAGE_ENDINGS, PurePosixPath(part.masks).suffix.lower()}
    for path in files:
        ending = PurePosixPath(path).suffix.lower()
        if ending not in endings:
            continue
        if found := mask_pattern.fullmatch(path):
            name = _name(found)
            if name in masks and not several:
                matched.doubled.append((masks[name][0], path))
            else:
                masks[name].append(path)
        elif ending in IMAGE_ENDINGS and (found := image_pattern.fullmatch(path)):
            other = images.setdefault(_name(found), path)
            if other != path:
                matched.doubled.append((other, path))
    if names is not None:
        kept = _listed(names, images, matched)
        images = {name: path for name, path in images.items() if name in kept}
        masks = {name: paths for name, paths in masks.items() if name in kept}
    for name in sorted(images):
        if name in masks:
            classes = [_class(mask_pattern, path) for path in masks[name]] if of_classes else []
            pair = Pair(name, images[name], tuple(masks[name]), classes=tuple(classes))
            matched.pairs.append(pair)
        else:
            matched.images_alone.append(images[name])
    matched.masks_alone = [path for name in sorted(masks.keys() - images.keys()) for path in masks[name]]
    return matched


def _compile(template: str) -> re.Pattern:
    if "{name}" not in template:
        raise ValueError(f"{template!r} has no {{name}}, by which images and masks are paired.")
    pattern = ""
    for piece in re.split(r"(\{name\}|\{folder\}|\{class\}|\*)", template):
        if piece == "{class}":
            pattern += "(?P<class_>[^/]+)"
        elif piece in ("{name}", "{folder}"):
            key = piece[1:-1]
            # The second time it is the same text: {name}/images/{name}.png
            pattern += f"(?P={key})" if f"(?P<{key}>" in pattern else f"(?P<{key}>.+)"
        else:
            pattern += "[^/]*" if piece == "*" else re.escape(piece)
    folder, slash, name = pattern.rpartition("/")
    stem, dot, ending = name.rpartition(r"\.")
    return re.compile(folder + slash + (stem + dot + f"(?i:{ending})" if dot else name), re.DOTALL)


def _name(found: re.Match) -> str:
    return "/".join(text for key, text in found.groupdict().items() if key != "class_")


def _class(pattern: re.Pattern, path: str) -> str:
    found = pattern.fullmatch(path)
    return found["class_"].strip(" _-.") or found["class_"] if found else ""


def _listed(lines: Iterable[str], images: dict[str, str], matched: Matched) -> set[str]:
    """Return the names that the lines of a text file mean."""
    by_word: dict[str, str] = {}
    for name, path in images.items():
        for word in (PurePosixPath(path).name, PurePosixPath(path).stem, path, name):
            by_word[word] = name
    kept = set()
    for line in lines:
        line = line.strip()
        words = [line, *line.split()[:1], *line.split(",")[:1]]
        words += [word.lstrip("./") for word in words]
        words += [PurePosixPath(word).name for word in words] + [PurePosixPath(word).stem for word in words]
        known = [by_word[word] for word in words if word in by_word]
        if known:
            kept.add(known[0])
        elif line:
            matched.unknown_names.append(line)
    return kept
