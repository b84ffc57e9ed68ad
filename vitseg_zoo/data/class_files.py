"""Names and colors of classes, from the files in which people keep them."""

import csv
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

Color = tuple[int, int, int]

# In the order of trust; compared in lower case, by name, at any depth of the folder.
FILE_NAMES = (
    *("classes.txt", "class_dict.csv", "label_colors.txt", "label_colours.txt", "labelmap.txt", "labels.txt"),
    *("class_names.txt", "classes.csv", "class_dict_seg.csv", "labels.csv", "classes.json", "labels.json"),
    *("class_dict.json", "label_colors.json", "obj.names"),
)  # fmt: skip


def find_class_file(files: Sequence[str]) -> str | None:
    """Find the file that names the classes among the files of a folder, the highest first.

    Example:
        >>> find_class_file(["a.jpg", "old/classes.txt", "class_dict.csv"])
        'class_dict.csv'
    """
    found = [path for path in files if PurePosixPath(path).name.lower() in FILE_NAMES]
    return min(
        found,
        key=lambda path: (path.count("/"), FILE_NAMES.index(PurePosixPath(path).name.lower()), path),
        default=None,
    )


def read_class_file(path: Path) -> tuple[tuple[str, ...], tuple[Color, ...] | None]:
    """Read the names of classes, and their colors if the file has them, in the order of their numbers.

    A text file has one class a line: `sky`, `128 128 128 sky`, `sky,128,128,128`, or `sky:128,128,128::` as
    CVAT writes; a first line that is a heading, and lines beginning with `#`, are passed over where colors
    are given. A JSON file has a list of names, a list of objects with `name` and `color`, an object
    `name: color`, or `number: name`.

    Args:
        path: The file.

    Returns:
        Names, and as many colors (red, green, blue) or None.

    Raises:
        ValueError: If the file is not UTF-8 or JSON, names no class, one twice, or none in a line between.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors of Windows put a mark before the first name
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8: save it in that encoding.") from None
    if path.suffix.lower() == ".json":
        rows = _rows_of_json(path, text)
    else:
        text = text.rstrip()
        lines = text.split("\n") if text else []  # `splitlines` also splits at what may stand in a name
        colored = [_colored(line) for line in lines if line.strip() and not line.startswith("#")]
        if len(lines) > 1 and colored and all(colored[1:]):  # the first may be a heading
            rows = [row for row in colored if row]
        else:
            rows = [(line.strip().strip('"'), None) for line in lines]
    names = tuple(name for name, _ in rows)
    if not names:
        raise ValueError(f"{path} is empty: it should name the classes, one a line.")
    if "" in names:
        raise ValueError(
            f"{path} has nothing in line {names.index('') + 1}: the numbers of lines are the values of "
            "masks, so name that class or take the line out."
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:  # their scores would become one
        raise ValueError(
            f"{path} names {', '.join(repeated[:3])} more than once: give each class a name of its own."
        )
    colors = tuple(color for _, color in rows if color is not None)
    return names, colors if len(set(colors)) == len(names) else None


def _colored(line: str) -> tuple[str, Color] | None:
    """Return a name and three numbers, in either order."""
    fields = (
        next(csv.reader([line])) if "," in line and ":" not in line else re.split(r"[\s,:]+", line.strip())
    )
    fields = [field.strip() for field in fields]
    for start in (0, 1, len(fields) - 3):
        numbers = fields[start : start + 3]
        if len(numbers) == 3 and all(re.fullmatch(r"\d{1,3}", n) and int(n) < 256 for n in numbers):
            name = " ".join(fields[:start] if start else fields[3:]).strip()
            return (name, (int(numbers[0]), int(numbers[1]), int(numbers[2]))) if name else None
    return None


def _rows_of_json(path: Path, text: str) -> list[tuple[str, Color | None]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if isinstance(content, dict):
        for key in ("classes", "labels", "names", "categories"):
            if isinstance(content.get(key), (list, dict)):
                content = content[key]
                break
    if isinstance(content, dict):
        if all(re.fullmatch(r"\d{1,5}", key) and isinstance(name, str) for key, name in content.items()):
            content = [content[key] for key in sorted(content, key=int)]
        else:
            content = [{"name": name, "color": color} for name, color in content.items()]
    rows = [row for entry in content if (row := _row(entry))] if isinstance(content, list) else []
    if not isinstance(content, list) or len(rows) < len(content):
        raise ValueError(
            f'{path} should hold a list of names, or of objects as {{"name": "sky", "color": [0, 0, 255]}}.'
        )
    return rows


def _row(entry: object) -> tuple[str, Color | None] | None:
    if isinstance(entry, str):
        return entry.strip(), None
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    return entry["name"].strip(), parse_color(entry.get("color", entry.get("rgb")))


def parse_color(value: object) -> Color | None:
    """Read a color as `[255, 0, 0]` or `"#ff0000"`; None if it is neither.

    Example:
        >>> parse_color("#ff0000")
        (255, 0, 0)
    """
    if isinstance(value, str) and re.fullmatch(r"#?[0-9a-fA-F]{6}", value):
        value = tuple(bytes.fromhex(value.lstrip("#")))
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        return None
    red, green, blue = value
    return (red, green, blue) if all(type(part) is int and 0 <= part <= 255 for part in value) else None
