"""How a folder of images and masks is laid out, guessed by its names: templates, and lists of splits."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product, takewhile
from pathlib import PurePosixPath

from vitseg_zoo.data.layouts import IMAGE_ENDINGS, Part

_OUTLINE_ENDINGS = (".json", ".txt")  # of files on one image each

_IMAGE_WORDS = {
    *("image", "images", "img", "imgs", "jpegimages", "x", "input", "inputs", "photo", "photos", "picture"),
    *("pictures", "rgb", "leftimg8bit", "orig", "original", "originals", "raw", "frame", "frames"),
}  # fmt: skip
_MASK_WORDS = {
    *("mask", "masks", "ann", "anns", "annot", "annots", "annotation", "annotations", "label", "labels"),
    *("gt", "groundtruth", "segmentation", "segmentations", "segmentationclass", "seg", "segs", "target"),
    *("targets", "gtfine", "gtcoarse", "labelids", "trimap", "trimaps", "y", "lbl", "matte"),
}  # fmt: skip
_SPLITS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    "trainval": "trainval",
}
_MOST_CLASSES = 64  # with a folder or an ending of names for each
# Masks of single objects, which lie beside those of classes.
_INSTANCES = {"segmentationobject", "instances", "instanceids", "instance"}


def guess_layout(files: Sequence[str], endings: Sequence[str] = IMAGE_ENDINGS) -> dict[str, Part]:
    """Find the templates of a folder's images and masks.

    Args:
        files: All files, as `list_files` returns them.
        endings: Of images, and of files of outlines in place of masks.

    Returns:
        Split ("train", "val", "test", or "all" where the folder has no splits) -> its `Part`; empty where
        nothing looks like images with masks.

    Example:
        >>> guess_layout(["train/0.jpg", "trainannot/0.png"])
        {'train': Part(images='train/{name}.jpg', masks='trainannot/{name}.png', names=None, table=None)}
        >>> guess_layout(["a.jpg", "a_mask.png", "b.jpg", "b_mask.png"])
        {'all': Part(images='{name}.jpg', masks='{name}_mask.png', names=None, table=None)}
    """
    folders: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for path in files:
        if PurePosixPath(path).suffix.lower() in endings:
            folders[PurePosixPath(path).parent.parts].append(path)
    groups = _group(folders, {stem for paths in folders.values() for stem in _stems(_file_names(paths))})
    found: dict[str, list[tuple[_Base, _Base]]] = defaultdict(list)
    for (split, _), group in groups.items():
        if pair := _best_pair(group):
            found[split].append(pair)
    if not found:  # folders of any names: those whose file names agree
        everything = [base for group in groups.values() for base in group]
        if pair := _best_pair([_without_role(base) for base in everything]):
            found[pair[0].split].append(pair)
    parts = {split: _part(pairs) for split, pairs in found.items()} or _folder_an_image(files, endings)
    if "trainval" in parts:
        parts.setdefault("train", parts.pop("trainval"))
    if len(parts) > 1:
        parts.pop("all", None)
    order = ("train", "val", "test", "all")
    return {split: parts[split] for split in order if split in parts}


def has_masks(part: Part) -> bool:
    """Say whether a folder's or file's name says that these are masks, and not only that names agree."""
    return any(role_of(word) == "mask" for word in part.masks.replace("{name}", "_").split("/"))


def split_lists(files: Sequence[str]) -> dict[str, str]:
    """Find the text files that list the names of splits, as `train.txt`.

    Example:
        >>> split_lists(["ImageSets/Segmentation/train.txt", "ImageSets/Segmentation/val.txt", "classes.txt"])
        {'train': 'ImageSets/Segmentation/train.txt', 'val': 'ImageSets/Segmentation/val.txt'}
    """
    found: dict[str, str] = {}
    for path in sorted(files, key=lambda path: ("segmentation" not in path.lower(), path.count("/"), path)):
        split = _SPLITS.get(PurePosixPath(path).stem.lower())
        if split and path.lower().endswith((".txt", ".lst")):
            found.setdefault(split, path)
    if "trainval" in found:
        found.setdefault("train", found.pop("trainval"))
        found.pop("trainval", None)
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _folder_an_image(files: Sequence[str], endings: Sequence[str]) -> dict[str, Part]:
    """Find folders that hold one image and its mask or masks each, under the same names in all."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in files:
        if PurePosixPath(path).suffix.lower() in endings and "/" in path:
            folders[path.rpartition("/")[0]].append(path.rpartition("/")[2])
    if len(folders) < 2:
        return {}
    names = Counter(name for inside in folders.values() for name in inside)
    images = [name for name in names if role_of(PurePosixPath(name).stem) == "image"]
    masks = sorted(name for name in names if role_of(PurePosixPath(name).stem) == "mask")
    if len(images) != 1 or not masks:
        return {}
    mask = masks[0] if len(masks) == 1 else _common_mask(masks)
    parts: dict[str, Part] = {}
    for parent in dict.fromkeys(folder.rpartition("/")[0] for folder in folders):
        split = next((split for part in parent.split("/") if (split := split_of(part))), "all")
        inside = f"{parent}/{{name}}" if parent else "{name}"
        parts.setdefault(split, Part(f"{inside}/{images[0]}", f"{inside}/{mask}"))
    return parts


def _common_mask(masks: Sequence[str]) -> str:
    """Return the template of masks in one folder: mask_cat.png, mask_dog.png; or mask1.png, mask2.png."""
    stems, ending = _stems(masks), _ending(masks)
    alike = takewhile(lambda letters: len(set(letters)) == 1, zip(*stems, strict=False))
    start = "".join(letters[0] for letters in alike)
    rests = [stem[len(start) :] for stem in stems]
    return (
        f"{start}*{ending}"
        if all(rest.isdigit() or not rest for rest in rests)
        else f"{start}{{class}}{ending}"
    )


@dataclass(frozen=True)
class _Base:
    """A folder below which names begin: its path, role, split, and its files relative to it."""

    parts: tuple[str, ...]
    role: str  # image, mask or none
    split: str
    files: tuple[str, ...]
    template: str = ""


def _words(component: str) -> list[str]:
    """Return the words of a folder's or file's name, in lower case: "train_Masks" -> train, masks."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", component)
    words = [component.lower(), *(word.lower() for word in re.split(r"[\W_]+", spaced) if word)]
    for ending in ("annot", "masks", "labels", "images"):  # trainannot
        rest = component.lower().removesuffix(ending)
        if rest != component.lower() and rest in _SPLITS:
            words += [rest, ending]
    return words


def role_of(component: str) -> str:
    """Say what a folder, file or column holds by its name: "image", "mask", "instances" or "none"."""
    words = set(_words(component))
    if words & _INSTANCES:
        return "instances"
    return "mask" if words & _MASK_WORDS else "image" if words & _IMAGE_WORDS else "none"


def _file_names(paths: Sequence[str]) -> list[str]:
    return [path.rpartition("/")[2] for path in paths]


def _group(folders: dict[tuple[str, ...], list[str]], stems: set[str]) -> dict[tuple, list[_Base]]:
    """List folders that may belong together: of one split, in the same folders but for words of a role.

    Below masks a folder that is called as a file is that image's, whatever its name means: masks/img_0/1.png.
    """
    bases: dict[tuple, list[str]] = defaultdict(list)
    plain = [
        parts for parts in folders if not any(split_of(part) or role_of(part) != "none" for part in parts)
    ]
    levels = zip(*plain, strict=False)
    common = tuple(level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels))
    for parts, paths in folders.items():
        roles = [role_of(part) for part in parts]
        own = next(
            (at for at, part in enumerate(parts) if part in stems and "mask" in roles[:at]), len(parts)
        )
        roles[own:] = ["none"] * (len(parts) - own)
        if "instances" in roles:
            continue
        role = "mask" if "mask" in roles else "image" if "image" in roles else "none"
        splits = [split for part in parts[:own] if (split := split_of(part))]
        marked = [i for i, part in enumerate(parts[:own]) if split_of(part) or roles[i] != "none"]
        end = marked[-1] + 1 if marked else len(common)
        bases[parts[:end], role, splits[0] if splits else "all"] += paths
    groups: dict[tuple, list[_Base]] = defaultdict(list)
    for (parts, role, split), paths in sorted(bases.items()):
        if all(path.lower().endswith(_OUTLINE_ENDINGS) for path in paths):
            role = "mask"
        skip = len("/".join(parts)) + 1 if parts else 0
        rest = tuple(part for part in parts if role_of(part) == "none" and not split_of(part))
        groups[split, rest].append(_Base(parts, role, split, tuple(path[skip:] for path in paths)))
    return groups


def split_of(component: str) -> str | None:
    """Say which split a folder, file or value means by its name; None if none."""
    return next((_SPLITS[word] for word in _words(component) if word in _SPLITS), None)


def _without_role(base: _Base) -> _Base:
    return _Base(base.parts, "none" if base.role == "image" else base.role, base.split, base.files)


def _best_pair(bases: list[_Base]) -> tuple[_Base, _Base] | None:
    """Return the folders of images and of masks (or the same) whose file names agree in most cases."""
    best: tuple[int, int, tuple[_Base, _Base]] | None = None
    masks = [base for base in bases if base.role == "mask"]
    images = [base for base in bases if base.role == "image"] or [b for b in bases if b.role == "none"]
    candidates = [(image, mask) for image in images for mask in masks] or [(base, base) for base in bases]
    if not masks and len(images) > 1:
        candidates += [(image, mask) for image in images for mask in images if image is not mask]
    for image, mask in candidates:
        if image is mask:
            count, templates = _pair_within(image.files)
        else:
            count, templates = _pair_names(image.files, mask.files)
            if mask.role == "mask":
                count, templates = max(
                    (count, templates),
                    _pair_class_folders(image.files, mask.files),
                    _pair_several(image.files, mask.files),
                    _pair_image_folders(image.files, mask.files),
                    key=lambda found: found[0],
                )
            alone = len(image.files) == 1 and image.parts[:-1] == mask.parts[:-1] != ()
            if not count and alone and mask.role == "mask":  # one mask an object
                count, templates = 1, ("*" + _ending(image.files), "*" + _ending(mask.files))
        # Among equals, the folder with fewer words: masks before masks_color.
        rank = sum(len(_words(part)) for part in mask.parts)
        if count and (best is None or (count, -rank) > best[:2]):
            image, mask = (
                replace(base, template=template)
                for base, template in zip((image, mask), templates, strict=True)
            )
            best = (count, -rank, (image, mask))
    return best[2] if best else None


def _ending(files: Sequence[str]) -> str:
    endings = {PurePosixPath(file).suffix.lower() for file in files}
    return endings.pop() if len(endings) == 1 else ".*"


def _stems(files: Sequence[str]) -> list[str]:
    return [file[: -len(suffix)] if (suffix := PurePosixPath(file).suffix) else file for file in files]


def _affixes(stems: Iterable[str], words: set[str]) -> list[tuple[str, str]]:
    """Say what precedes and follows the name in most stems, if words of a role do: ("", "_mask")."""
    counts: Counter = Counter()
    for stem in stems:
        tail = re.search(r"((?:[\W_]+[A-Za-z0-9]+)+)$", PurePosixPath(stem).name)
        if tail:
            pieces = re.findall(r"[\W_]+[A-Za-z0-9]+", tail[1])
            at = next((i for i, piece in enumerate(pieces) if words & set(_words(piece.strip(" _-.")))), None)
            if at is not None:
                counts["", "".join(pieces[at:])] += 1
        head = re.match(r"([A-Za-z0-9]+[\W_]+)", PurePosixPath(stem).name)
        if head and words & set(_words(head[1].rstrip(" _-."))):
            counts[head[1], ""] += 1
        joined = re.fullmatch(r"([A-Za-z]+)\d+", PurePosixPath(stem).name)  # mask12
        if joined and joined[1].lower() in words:
            counts[joined[1], ""] += 1
    # Cityscapes has the same masks as class numbers, as colors and as objects: the first are wanted.
    found = [affix for affix, _ in counts.most_common(6)]
    return [("", ""), *sorted(found, key=lambda affix: bool(re.search("color|instance", affix[1].lower())))]


def _cut(stem: str, affix: tuple[str, str]) -> str | None:
    folder, slash, name = stem.rpartition("/")
    before, after = affix
    if len(name) > len(before) + len(after) and name.startswith(before) and name.endswith(after):
        return folder + slash + name[len(before) : len(name) - len(after)]
    return None


def _pair_names(images: Sequence[str], masks: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Say how many names agree at best, and the templates with which they do."""
    image_stems, mask_stems = _stems(images), _stems(masks)
    image_affixes = _affixes(image_stems, _IMAGE_WORDS)
    mask_affixes = _affixes(mask_stems, _MASK_WORDS)
    known = set(image_stems)
    rests: Counter[tuple[str, str]] = Counter()
    for stem in mask_stems[:: max(1, len(mask_stems) // 200)]:  # 0001_L of 0001
        at = next((at for at in range(len(stem), 0, -1) if stem[:at] in known), None)
        if at is not None and at < len(stem):
            rests["", stem[at:]] += 1
    mask_affixes += [affix for affix, _ in rests.most_common(3)]
    best = (0, ("", ""), ("", ""))
    for image_affix, mask_affix in product(image_affixes, mask_affixes):
        names = {_cut(stem, image_affix) for stem in image_stems} - {None}
        count = len(names & {_cut(stem, mask_affix) for stem in mask_stems})
        if count > best[0]:
            best = (count, image_affix, mask_affix)
    count, image_affix, mask_affix = best
    return count, (
        f"{image_affix[0]}{{name}}{image_affix[1]}{_ending(_having(images, image_affix))}",
        f"{mask_affix[0]}{{name}}{mask_affix[1]}{_ending(_having(masks, mask_affix))}",
    )


def _pair_class_folders(images: Sequence[str], masks: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Return the same for masks in a folder for each class: cat/a.png, dog/a.png."""
    folders: dict[str, list[str]] = defaultdict(list)
    for path in masks:
        folder, slash, rest = path.partition("/")
        if not slash:
            return 0, ("", "")
        folders[folder].append(rest)
    names = Counter(stem for rests in folders.values() for stem in _stems(rests))
    # A name in one of several folders only: those are scenes.
    if not folders or len(folders) > _MOST_CLASSES or (len(folders) > 1 and max(names.values()) == 1):
        return 0, ("", "")
    count, (image, mask) = _pair_names(images, sorted({rest for rests in folders.values() for rest in rests}))
    return count, (image, "{class}/" + mask)


def _pair_image_folders(images: Sequence[str], masks: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Return the same for masks in a folder an image: a/0.png, a/1.png of objects, a/cat.png of classes."""
    folders = {path.rpartition("/")[0] for path in masks}
    names, known = Counter(path.rpartition("/")[2] for path in masks), set(_stems(images))
    # Classes may be called as some images are, but not as most.
    if not folders <= known or 2 * len(folders) <= len(known):
        return 0, ("", "")
    are_objects = max(names.values()) == 1 or len(names) > _MOST_CLASSES
    mask = f"*{_ending(masks)}" if are_objects else _common_mask(sorted(names))
    return len(folders) + 1, (f"{{name}}{_ending(images)}", f"{{name}}/{mask}")


def _pair_several(images: Sequence[str], masks: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Return the same for several masks an image in one folder: a_cat.png, a_dog.png; or a_1.png, a_2.png."""
    known = set(_stems(images))
    rests: Counter[str] = Counter()
    owners: Counter[str] = Counter()
    for stem in _stems(masks):
        at = next((at for at in range(len(stem), 0, -1) if stem[:at] in known), None)
        if at is None or not re.fullmatch(r"[_.-][^/]+", stem[at:]):
            return 0, ("", "")
        rests[stem[at:]] += 1
        owners[stem[:at]] += 1
    if not owners or max(owners.values()) == 1:
        return 0, ("", "")
    image = f"{{name}}{_ending(images)}"
    separator = next(iter(rests))[0]
    if all(re.fullmatch(r"[_.-]?[A-Za-z]*[_.-]?\d+", rest) for rest in rests):
        return len(owners) + 1, (image, f"{{name}}{separator}*{_ending(masks)}")
    # The same labels as class numbers, as colors and as objects are no classes.
    strange = any(re.search("color|instance|label|mask|gt", rest.lower()) for rest in rests)
    if strange or len(rests) > _MOST_CLASSES or any(rest[0] != separator for rest in rests):
        return 0, ("", "")
    return len(owners) + 1, (image, f"{{name}}{separator}{{class}}{_ending(masks)}")


def _having(files: Sequence[str], affix: tuple[str, str]) -> list[str]:
    return [file for file, stem in zip(files, _stems(files), strict=True) if _cut(stem, affix) is not None]


def _pair_within(files: Sequence[str]) -> tuple[int, tuple[str, str]]:
    """Return the same for one folder that holds both: a.jpg and a_mask.png, or a.jpg and a.png."""
    stems = _stems(files)
    for affix in _affixes(stems, _MASK_WORDS)[1:]:
        masks = _having(files, affix)
        rest = sorted(set(files) - set(masks))
        count, templates = _pair_names(rest, masks)
        if count:
            return count, templates
    outlines = [file for file in files if file.lower().endswith(_OUTLINE_ENDINGS)]
    photographs = [file for file in files if file.lower().endswith((".jpg", ".jpeg"))]
    if outlines:
        photographs = [file for file in files if not file.lower().endswith(_OUTLINE_ENDINGS)]
    others = sorted(set(files) - set(photographs))
    if len(set(stems)) < len(stems) and photographs and len(endings := {_ending([o]) for o in others}) == 1:
        count = len(set(_stems(photographs)) & set(_stems(others)))
        return count, (f"{{name}}{_ending(photographs)}", f"{{name}}{endings.pop()}")
    return 0, ("", "")


def _part(pairs: list[tuple[_Base, _Base]]) -> Part:
    """Merge one part of all the folders of a split: the folder that differs becomes a placeholder."""
    images, masks = ([pair[kind] for pair in pairs] for kind in (0, 1))
    most = max(range(len(pairs)), key=lambda index: len(images[index].files))
    if len(pairs) == 1:
        placeholder = "{folder}"
    else:
        # As many folders as images: the folder is the name (DSB2018).
        placeholder = "{name}" if all("{name}" not in base.template for base in images) else "{folder}"
    return Part(*(_template(bases, most, placeholder) for bases in (images, masks)))


def _template(bases: list[_Base], most: int, placeholder: str) -> str:
    name = _common_template([base.template for base in bases])
    depth = len(bases[most].parts)
    parts = list(bases[most].parts)
    same_depth = [base.parts for base in bases if len(base.parts) == depth]
    differing = [at for at in range(depth) if len({other[at] for other in same_depth}) > 1]
    if differing:
        parts[differing[0] : differing[-1] + 1] = [placeholder]
    elif "{name}" not in name:  # a single folder with one image
        at = next((at for at, part in reversed(list(enumerate(parts))) if role_of(part) == "none"), None)
        if at is None:
            name = name.replace("*", "{name}", 1)
        else:
            parts[at] = "{name}"
    return "/".join([*parts, name])


def _common_template(templates: list[str]) -> str:
    """Return the most frequent of file names' templates; `.*` where only endings differ."""
    stems = Counter(template.rpartition(".")[0] for template in templates)
    stem = stems.most_common(1)[0][0]
    endings = {template.rpartition(".")[2] for template in templates if template.rpartition(".")[0] == stem}
    return f"{stem}.{endings.pop() if len(endings) == 1 else '*'}"
