"""Tables of pairs: CSV files with a column of images, one of masks, and perhaps one of splits."""

import csv
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from vitseg_zoo.data.guess_layout import role_of, split_of
from vitseg_zoo.data.layouts import IMAGE_ENDINGS, Matched, Pair, Part

_SPLIT_COLUMNS = ("split", "subset", "set", "partition", "phase", "fold")
_IMAGE_COLUMNS = ("filename", "file_name", "file", "path")  # beside those with a word for images
_LARGEST = 2**28  # bytes
_SEPARATORS = ",;\t"


def match_table(root: Path, split: str, part: Part, files: Sequence[str]) -> Matched:
    """Pair the images and masks of one split as a table says.

    Args:
        root: The data's folder.
        split: Name of the split; "all" takes all rows, where the table has a column of splits as well.
        part: Its `table`, and the names of the columns.
        files: All files, as `list_files` returns them.

    Raises:
        FileNotFoundError: If there is no such table in the folder.
        ValueError: If it is none, or lacks a column.
    """
    if part.table is None or part.table not in files:  # and so none outside the folder either
        raise FileNotFoundError(f"there is no table {part.table} in {root}.")
    rows = _read(root / part.table)
    columns = list(rows[0]) if rows else []
    for column in (part.images, part.masks):
        if column not in columns:
            raise ValueError(
                f"{root / part.table} has no column {column!r}, only {', '.join(columns)[:200]}."
            )
    of_splits = next((column for column in columns if column.strip().lower() in _SPLIT_COLUMNS), None)
    find = _Finder(files, part.table)
    matched, seen = Matched(), dict[str, str]()
    for row in rows:
        if of_splits and split != "all" and split_of(row[of_splits]) not in (split, None):
            continue
        image = find(row[part.images], "image")
        masks = [find(cell, "mask") for cell in _cells(row[part.masks])]
        if image is None:
            matched.unknown_names.append(row[part.images])
        elif not masks or None in masks:
            matched.images_alone.append(image)
        elif image in seen:
            matched.doubled.append((image, image))
        else:
            seen[image] = image
            found = tuple(mask for mask in masks if mask is not None)
            matched.pairs.append(Pair(image.rpartition(".")[0], image, found))
    return matched


def guess_tables(root: Path, files: Sequence[str]) -> dict[str, Part]:
    """Find tables whose rows name images and masks of the folder: split, or "all", -> `Part`."""
    parts: dict[str, Part] = {}
    for table in files:
        if not table.lower().endswith((".csv", ".tsv")):
            continue
        try:
            rows = _read(root / table)
        except (ValueError, OSError):
            continue
        columns = list(rows[0]) if rows else []
        masks = [column for column in columns if role_of(column) == "mask"]
        images = [column for column in columns if role_of(column) == "image"]
        images += [column for column in columns if column.strip().lower() in _IMAGE_COLUMNS]
        if not images or not masks:
            continue
        part = Part(images[0], masks[0], table=table)
        of_splits = next((column for column in columns if column.strip().lower() in _SPLIT_COLUMNS), None)
        splits = {split_of(row[of_splits]) for row in rows} - {None} if of_splits else set()
        for split in splits or {split_of(PurePosixPath(table).stem) or "all"}:
            matched = match_table(root, str(split), part, files)
            lost = len(matched.images_alone) + len(matched.unknown_names)
            if len(matched.pairs) > lost:
                parts.setdefault(str(split), part)
    if len(parts) > 1:
        parts.pop("all", None)
    return {split: parts[split] for split in ("train", "val", "test", "all") if split in parts}


class _Finder:
    """Finds the file that a cell means: by its path from the folder or the table, or by the path's end."""

    def __init__(self, files: Iterable[str], table: str) -> None:
        self.files = {path for path in files if path.lower().endswith(IMAGE_ENDINGS)}
        self.folder = PurePosixPath(table).parent
        self.named: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.files):
            self.named[PurePosixPath(path).name].append(path)
            self.named[PurePosixPath(path).stem].append(path)

    def __call__(self, cell: str, role: str) -> str | None:
        parts = PurePosixPath(cell.strip().replace("\\", "/")).parts
        for start in range(len(parts)):
            tail = PurePosixPath(*parts[start:])
            for path in (tail.as_posix(), (self.folder / tail).as_posix()):
                if path in self.files:
                    return path
        found = self.named.get(parts[-1], []) if parts else []
        if len(found) > 1:  # the same name in images and in masks
            found = [path for path in found if role in map(role_of, path.split("/"))] or found
        return found[0] if found else None


def _cells(text: str) -> list[str]:
    return [cell for cell in text.replace("|", ";").split(";") if cell.strip()]


def _read(path: Path) -> list[dict[str, str]]:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"{path} is too large for a table of pairs.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.partition("\n")[0]
        separator = max(_SEPARATORS, key=first.count)
        rows = list(csv.DictReader(text.splitlines(), delimiter=separator, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a table: {error}.") from None
    return [{key: value for key, value in row.items() if key is not None} for row in rows]
