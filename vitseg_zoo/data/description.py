"""dataset.yaml: where a data set's images and masks lie and what the masks' values mean."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from vitseg_zoo.data.annotations import collect_labels, is_annotation, is_shared, match_annotations
from vitseg_zoo.data.class_files import Color, find_class_file, parse_color, read_class_file
from vitseg_zoo.data.images import MAX_CHANNELS
from vitseg_zoo.data.layouts import Matched, Part, list_files, match
from vitseg_zoo.data.masks import IGNORE_INDEX, MaskEncoding, pack
from vitseg_zoo.data.pair_tables import match_table
from vitseg_zoo.data.splits import split_names
from vitseg_zoo.files import atomic_path

FILE_NAME = "dataset.yaml"
_LARGEST = 16 * 2**20  # bytes: more is no description
_HEADING = """\
# Written by `vitseg check`; edit what is wrong, then `vitseg check` and `vitseg train` read this file.
# {name} is what an image and its mask share. Values are those of the masks' pixels.
"""


@dataclass(frozen=True)
class DatasetDescription:
    """What has to be known of a data set to train on it.

    Args:
        root: Folder of the data.
        parts: Split -> where its files are; the only split "all" is divided at random.
        encoding: What the masks' values mean.
        class_names: Names of the classes.
        palette: Color of each class.
        ignore_index: Class number of pixels without a label, or None if there are none.
        val: Share of the images that are measured on, where `parts` has only "all".
        seed: Seed of that division.
        labels: Names in files of outlines, or of masks or planes of one class each, the n-th of which is
            drawn with the value n, and nothing with 0.
        channels: How many channels images are read with, as `vitseg_zoo.data.images.read_image` does.
    """

    root: Path
    parts: Mapping[str, Part]
    encoding: MaskEncoding
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int | None
    val: float = 0.2
    seed: int = 0
    channels: int = 3
    labels: tuple[str, ...] = ()

    @property
    def multilabel(self) -> bool:
        """Whether a pixel may have several classes."""
        return self.encoding.kind == "multilabel"

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return ("train", "val") if set(self.parts) == {"all"} else tuple(self.parts)

    def match(self, files: list[str] | None = None) -> dict[str, Matched]:
        """Find the images and masks of each split.

        Args:
            files: All files of the folder, if they are known.

        Raises:
            FileNotFoundError: If a list of names is not there.
        """
        return match_parts(self.root, self.parts, files, self.val, self.seed, self.labels)


def match_parts(
    root: Path,
    parts: Mapping[str, Part],
    files: list[str] | None = None,
    val: float = 0.2,
    seed: int = 0,
    labels: Sequence[str] = (),
) -> dict[str, Matched]:
    """Find the images and masks of each split; the only split "all" is divided into "train" and "val".

    Args:
        root: The data's folder.
        parts: Where the files of each split lie.
        files: All files of the folder, if they are known.
        val: Share of "val", where "all" is divided.
        seed: Seed of that.
        labels: Of files of outlines, or of masks of one class each, by default those that they use; or of
            the planes of other masks.
    """
    files = list_files(root) if files is None else files
    found = {}
    for split, part in parts.items():
        if part.table is not None:
            found[split] = match_table(root, split, part, files)
        elif is_annotation(part.masks):
            found[split] = match_annotations(root, split, part, files)
        else:
            found[split] = match(part, files, _names(root, part, files))
    of_labels = any(is_annotation(part.masks) or "{class}" in part.masks for part in parts.values())
    if labels or of_labels:
        class_file = find_class_file(files)
        known = read_class_file(root / class_file)[0] if class_file and not labels else ()
        pairs = [pair for matched in found.values() for pair in matched.pairs]
        labels = tuple(labels) or collect_labels(root, pairs, known)
        for matched in found.values():
            matched.pairs = [
                replace(pair, labels=labels)
                if not of_labels or pair.classes or is_annotation(pair.masks[0])
                else pair
                for pair in matched.pairs
            ]
    if set(found) == {"all"}:
        everything = found.pop("all")
        chosen = split_names([pair.name for pair in everything.pairs], val, seed)
        for split, names in chosen.items():
            kept = set(names)
            found[split] = Matched([pair for pair in everything.pairs if pair.name in kept])
        for kind in ("images_alone", "masks_alone", "doubled", "unknown_names"):
            setattr(found["train"], kind, getattr(everything, kind))
    return found


def _names(root: Path, part: Part, files: list[str]) -> list[str] | None:
    if part.names is None:
        return None
    if part.names not in files:  # and so none outside the folder either
        raise FileNotFoundError(f"there is no list of names {part.names} in {root}.")
    text = (root / part.names).read_text(encoding="utf-8-sig", errors="replace")
    return [line for line in text.split("\n") if line and not line.startswith("#")]


def write_description(description: DatasetDescription, path: Path) -> None:
    """Write dataset.yaml; the data's folder is given relative to it where it is the same.

    Args:
        description: What to write.
        path: The file, ending in .yaml, .yml or .json (which is YAML too).
    """
    encoding = description.encoding
    by_class: dict[int, list] = {}
    for value, index in encoding.values.items():
        by_class.setdefault(index, []).append(encoding.name(value) if encoding.kind == "colors" else value)
    same = path.parent.resolve() == description.root.resolve()
    content: dict[str, Any] = {
        "root": "." if same else str(description.root.resolve()),
        "splits": {
            split: {key: value for key, value in vars(part).items() if value is not None}
            for split, part in description.parts.items()
        },
    }
    if set(description.parts) == {"all"}:
        content["split_at_random"] = {"val": description.val, "seed": description.seed}
    content["channels"] = description.channels
    if description.labels:
        content["labels"] = list(description.labels)
    content["masks"] = encoding.kind
    if encoding.snap:
        content["snap"] = True
    content["classes"] = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*color),
            "values": by_class.get(index, []),
        }
        for index, (name, color) in enumerate(zip(description.class_names, description.palette, strict=True))
    ]
    content["ignore"] = by_class.get(IGNORE_INDEX, []) if description.ignore_index is not None else []
    if path.suffix == ".json":
        text = json.dumps(content, indent=2)
    else:
        text = _HEADING + yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=110)
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


class _Dumper(yaml.SafeDumper):
    """Writes a list of numbers or colors, and a class, in one line."""


def _flow_if_flat(dumper: yaml.SafeDumper, value: Any) -> yaml.Node:
    items = list(value.values()) if isinstance(value, dict) else value
    flat = all(not isinstance(item, (dict, list)) or item == [] for item in items)
    short = isinstance(value, dict) and "values" in value
    if isinstance(value, dict):
        return dumper.represent_mapping("tag:yaml.org,2002:map", value, flow_style=short)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", value, flow_style=flat)


_Dumper.add_representer(dict, _flow_if_flat)
_Dumper.add_representer(list, _flow_if_flat)


def read_description(path: Path) -> DatasetDescription:
    """Read dataset.yaml.

    Args:
        path: The file.

    Raises:
        FileNotFoundError: If there is no such file, or not the folder that it names.
        ValueError: If it is not YAML, or something in it is missing or not what it should be; the message
            names what.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is too large to be the description of a data set.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not YAML: {reason[:200]}.") from None
    try:
        return _parse(content, path)
    except _Invalid as error:
        raise ValueError(f"{path}: {error}") from None


class _Invalid(ValueError):
    pass


def _take(mapping: Any, key: str, kind: Any, default: Any = ..., where: str = "") -> Any:
    value = mapping.get(key, default) if isinstance(mapping, dict) else default
    if value is ...:
        raise _Invalid(f"{where}{key} is missing.")
    if value is not default and (not isinstance(value, kind) or isinstance(value, bool) != (kind is bool)):
        named = {
            dict: "a mapping",
            list: "a list",
            str: "a text",
            int: "a whole number",
            bool: "true or false",
        }
        raise _Invalid(f"{where}{key} should be {named.get(kind, 'a number')}, got {str(value)[:60]!r}.")
    return value


def _parse(content: Any, path: Path) -> DatasetDescription:
    root = path.parent / Path(_take(content, "root", str, ".")).expanduser()
    if not root.is_dir():
        raise FileNotFoundError(f"{path}: root names the folder {root}, which is not there.")
    parts = {}
    for split, entry in _take(content, "splits", dict).items():
        where = f"splits, {split}: "
        names = _take(entry, "names", str, None, where)
        images, masks = (_take(entry, key, str, ..., where) for key in ("images", "masks"))
        part = Part(images, masks, names, _take(entry, "table", str, None, where))
        parts[str(split)] = part
        if part.table is not None:
            continue
        for template in (part.images, part.masks):
            if is_shared(template) and template == part.masks:
                continue
            if "{name}" not in template or template.count("*") + template.count("{") > 4:
                raise _Invalid(f"{where}{template!r} should have {{name}}, as images/{{name}}.jpg.")
    if not parts:
        raise _Invalid("splits is empty.")
    if "all" in parts and len(parts) > 1:
        raise _Invalid('splits has "all", which is divided at random, beside others: take one out.')
    kind = _take(content, "masks", str, "gray")
    if kind not in ("gray", "colors", "multilabel"):
        raise _Invalid(f"masks should be gray, colors or multilabel, got {kind[:60]!r}.")
    labels = tuple(map(str, _take(content, "labels", list, [])))
    if kind == "multilabel" and not all(
        "{class}" in part.masks or (labels and not is_annotation(part.masks)) for part in parts.values()
    ):
        raise _Invalid(
            "multilabel masks should be a file a class, as masks/{class}/{name}.png, or have a plane a class "
            "with their names in `labels`."
        )
    if kind == "multilabel" and _take(content, "ignore", list, []):
        raise _Invalid("multilabel masks have no values of pixels without a label: leave out ignore.")
    names, palette, values = _parse_classes(content, kind)
    if kind == "multilabel" and 0 in values:
        raise _Invalid("multilabel masks have no background: 0 is what no class covers, so leave it out.")
    channels = _take(content, "channels", int, 3)
    if not 0 < channels <= MAX_CHANNELS:
        raise _Invalid(f"channels should be in range [1, {MAX_CHANNELS}], got {channels}.")
    divided = _take(content, "split_at_random", dict, {})
    val = _take(divided, "val", (int, float), 0.2, "split_at_random: ")
    if not 0 < val < 1:
        raise _Invalid(f"split_at_random, val should be in range (0, 1), got {val}.")
    return DatasetDescription(
        root=root,
        parts=parts,
        encoding=MaskEncoding(kind, values, _take(content, "snap", bool, False)),
        class_names=tuple(names),
        palette=tuple(palette),
        ignore_index=IGNORE_INDEX if IGNORE_INDEX in values.values() else None,
        val=float(val),
        seed=_take(divided, "seed", int, 0, "split_at_random: "),
        channels=channels,
        labels=labels,
    )


def _parse_classes(content: Any, kind: str) -> tuple[list[str], list[Color], dict[int, int]]:
    names: list[str] = []
    palette: list[Color] = []
    values: dict[int, int] = {}

    def add(listed: list, index: int, where: str) -> None:
        for value in listed:
            key = _value(value, kind)
            if key is None:
                wanted = 'colors as "#ff0000"' if kind == "colors" else "whole numbers"
                raise _Invalid(f"{where} should be {wanted}, got {str(value)[:60]!r}.")
            if key in values:
                raise _Invalid(f"{where}: the value {value} stands for two classes.")
            values[key] = index

    classes = _take(content, "classes", list)
    if not 0 < len(classes) <= IGNORE_INDEX:
        raise _Invalid(f"classes should be 1 to {IGNORE_INDEX}, got {len(classes)}.")
    for index, entry in enumerate(classes):
        where = f"classes, entry {index + 1}: "
        name = str(_take(entry, "name", (str, int), ..., where)).strip()
        if not name or name in names:
            raise _Invalid(f"{where}each class should have a name of its own, got {name[:60]!r}.")
        color = parse_color(_take(entry, "color", (str, list), ..., where))
        if color is None:
            raise _Invalid(f'{where}color should be as "#ff0000".')
        names.append(name)
        palette.append(color)
        add(_take(entry, "values", list, ..., where), index, f"{where}values")
    add(_take(content, "ignore", list, []), IGNORE_INDEX, "ignore")
    return names, palette, values


def _value(value: Any, kind: str) -> int | None:
    if kind != "colors":
        return value if type(value) is int and abs(value) < 2**31 else None
    color = parse_color(value)
    return None if color is None else int(pack(np.array(color)))
