"""What the pixels of masks mean: class numbers, gray levels such as 0 and 255, or colors.

A mask file is read by `read_mask`; `MaskEncoding.decode` makes class numbers of its pixels. `propose` finds
the encoding from the values of all masks of a data set.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import cv2
import numpy as np

from vitseg_zoo.data.class_files import Color
from vitseg_zoo.data.images import read_pixels
from vitseg_zoo.data.outlines import is_background
from vitseg_zoo.palette import distinct_colors

IGNORE_INDEX = 255
_MANY = 100  # classes that are hardly meant, where no file names them
# Names under which data sets keep pixels without a label.
_VOID = {
    "void",
    "unlabelled",
    "unlabeled",
    "ignore",
    "ignored",
    "unknown",
    "undefined",
    "unlabel",
    "__ignore__",
}


def read_mask(path: Path, colors: bool = False) -> np.ndarray:
    """Read a mask's pixels as they are stored, turned as its EXIF orientation says; transparency is dropped.

    Args:
        path: File in one of `data.images.FORMATS`, or `.npy`.
        colors: Whether a palette's colors are wanted and not its numbers.

    Returns:
        (H, W) integers, or (H, W, 3) uint8.

    Raises:
        ValueError: If the file is missing, damaged, or its pixels are neither integers nor colors.
    """
    pixels, palette = read_pixels(path, "a mask")
    if palette is not None:
        return palette[pixels] if colors else pixels
    return as_mask(pixels, path)


def as_mask(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Make (H, W) integers or (H, W, 3) uint8 of what a file holds, or say why that is no mask."""
    if pixels.ndim == 3:
        # The last is transparency; of an array it may be anything.
        if pixels.shape[2] in (2, 4) and (path.suffix.lower() != ".npy" or (pixels[..., -1] == 255).all()):
            pixels = pixels[..., :-1]
        if pixels.shape[2] == 1:
            pixels = pixels[..., 0]
        elif pixels.shape[2] != 3 or pixels.dtype != np.uint8:
            raise ValueError(
                f"{path} has {pixels.shape[2]} channels of {pixels.dtype}: a mask has one with integers, or "
                "three with the colors of classes."
            )
    if pixels.dtype == bool:
        return pixels.astype(np.uint8)
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all() or np.abs(pixels).max(initial=0) >= 2**31 or (pixels % 1).any():
            raise ValueError(f"{path} has fractions in it: a mask holds the number of a class in each pixel.")
        pixels = pixels.astype(np.int64)
    return pixels


def pack(colors: np.ndarray) -> np.ndarray:
    """Make one number of each color (..., 3): 65536 red + 256 green + blue, as int32."""
    wide = colors.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def unpack(value: int) -> Color:
    """Make a color of a number of `pack`.

    Example:
        >>> unpack(0xFF0001)
        (255, 0, 1)
    """
    return value >> 16 & 255, value >> 8 & 255, value & 255


def count_values(pixels: np.ndarray) -> dict[int, int]:
    """Count how many pixels have each value: gray levels of (H, W), packed colors of (H, W, 3)."""
    if pixels.ndim == 2 and pixels.dtype == np.uint8:
        # Four times as fast as np.bincount; float32 counts exactly to 2**24.
        exact = pixels.size <= 2**24
        counts = cv2.calcHist([pixels], [0], None, [256], [0, 256]) if exact else np.bincount(pixels.ravel())
        counts = counts.ravel().astype(np.int64)
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(pack(pixels) if pixels.ndim == 3 else pixels, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class MaskEncoding:
    """Which value or color of a mask is which class.

    Args:
        kind: "gray" (`values` are gray levels or numbers of a palette), "colors" (`values` are packed), or
            "multilabel" (a mask a class, of which a pixel may have several: `values` are the positions, from
            1, of the masks' labels).
        values: Value -> class number, or `IGNORE_INDEX` for pixels without a label.
        snap: Whether other values become the nearest one that is known, as for JPEG and smoothed masks.

    Example:
        >>> MaskEncoding("gray", {0: 0, 255: 1}).decode(np.array([[0, 255]], np.uint8))
        array([[0, 1]], dtype=uint8)
    """

    kind: str
    values: Mapping[int, int]
    snap: bool = False

    @property
    def is_plain(self) -> bool:
        """Whether the values are the class numbers themselves."""
        return self.kind == "gray" and not self.snap and all(k == v for k, v in self.values.items())

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        known = np.array(sorted(self.values), np.int64)
        classes = np.array([self.values[value] for value in known.tolist()])
        return known, classes.astype(np.uint8 if classes.max(initial=0) < 256 else np.uint16)

    def decode(self, pixels: np.ndarray) -> np.ndarray:
        """Make class numbers of pixels, as `read_mask` returns them.

        Args:
            pixels: (H, W) integers or (H, W, 3) uint8.

        Returns:
            (H, W) uint8, or uint16 beyond 256 classes.

        Raises:
            ValueError: If pixels have values that the encoding does not know, or colors where it wants gray.
        """
        numbers = self._numbers(pixels)
        known, classes = self._table
        # The usual case, which is quick: bytes that are all known.
        if numbers.dtype == classes.dtype == np.uint8 and count_values(numbers).keys() <= self.values.keys():
            every = np.searchsorted(known, np.arange(256)).clip(max=len(known) - 1)
            return cv2.LUT(numbers, classes[every])
        at = np.searchsorted(known, numbers).clip(max=len(known) - 1)
        strange = known[at] != numbers
        if strange.any():
            values, inverse, counts = np.unique(numbers[strange], return_inverse=True, return_counts=True)
            if not self.snap:
                few = ", ".join(self.name(value) for value in values[:3].tolist())
                raise ValueError(
                    f"{counts.sum()} pixels have the values {few}"
                    f"{' and others' if len(values) > 3 else ''}, which are no class"
                )
            at[strange] = self._nearest(values)[inverse.ravel()]
        return classes[at]

    def knows(self, pixels: np.ndarray) -> np.ndarray:
        """Say of each pixel (H, W) whether its value is a class or ignored, without `snap`."""
        try:
            return np.isin(self._numbers(pixels), self._table[0])
        except ValueError:  # colors where it wants gray
            return np.zeros(pixels.shape[:2], bool)

    def name(self, value: int) -> str:
        """Write a value as people know it: `255`, or `#ff0000`."""
        return str(value) if self.kind != "colors" else "#{:02x}{:02x}{:02x}".format(*unpack(value))

    def _numbers(self, pixels: np.ndarray) -> np.ndarray:
        if self.kind == "colors":
            return pack(pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2))
        if pixels.ndim == 3:
            if (pixels != pixels[..., :1]).any():
                raise ValueError("it has colors where the other masks have gray levels")
            return pixels[..., 0]
        return pixels

    def _nearest(self, values: np.ndarray) -> np.ndarray:
        """Return the positions in the table of the known values that are nearest to others."""
        known = self._table[0]
        if self.kind == "gray":
            return np.abs(values.astype(np.int64)[:, None] - known).argmin(1)
        colors = np.array([unpack(value) for value in known.tolist()], np.int64)
        # In portions: a photograph taken for a mask has millions of colors.
        return np.concatenate(
            [
                ((np.array([unpack(v) for v in some.tolist()])[:, None] - colors) ** 2).sum(-1).argmin(1)
                for some in np.split(values, range(4096, len(values), 4096))
            ]
        )


@dataclass(frozen=True)
class Proposal:
    """An encoding of masks, the classes it leads to, and what a person should know of how it was found."""

    encoding: MaskEncoding
    class_names: tuple[str, ...]
    palette: tuple[Color, ...]
    ignore_index: int | None
    notes: tuple[str, ...] = field(default=())


def propose(
    gray: Mapping[int, int],
    colors: Mapping[int, int],
    names: Sequence[str] | None = None,
    name_colors: Sequence[Color] | None = None,
    palette: Mapping[int, Color] | None = None,
) -> Proposal:
    """Find what the values of a data set's masks mean.

    Args:
        gray: Gray level or number of a palette -> pixels, over all masks of one channel.
        colors: Packed color -> pixels, over all masks of three channels.
        names: Names of the classes, if a file says them.
        name_colors: Their colors.
        palette: Number -> color, where masks have a palette.

    Raises:
        ValueError: If there are no values, or too many for classes.

    Example:
        >>> found = propose({0: 900, 255: 100}, {})
        >>> dict(found.encoding.values), found.class_names
        ({0: 0, 255: 1}, ('background', 'foreground'))
    """
    if colors:
        merged = Counter(colors)
        for value, count in gray.items():
            merged[(value & 255) * 0x010101] += count
        if name_colors or any(len(set(unpack(value))) > 1 for value in merged):
            return _propose_colors(merged, names, name_colors)
        gray, palette = {value & 255: count for value, count in merged.items()}, None
    if not gray:
        raise ValueError("no mask could be read: there is nothing to find classes in.")
    if name_colors and names and not palette and _matches_colors(gray, name_colors, len(names)):
        return _propose_colors({value * 0x010101: count for value, count in gray.items()}, names, name_colors)
    return _propose_gray(gray, names, name_colors, palette)


def propose_planes(labels: Sequence[str], has_rest: bool) -> Proposal:
    """Make class numbers of planes that do not overlap: what is in none of them is the background.

    Args:
        labels: Names of the planes, one of which may be the background's.
        has_rest: Whether there are pixels in no plane.
    """
    named = next((label for label in labels if is_background(label)), "background" if has_rest else None)
    names, values = ([named], {0: 0}) if named else ([], {})
    for position, label in enumerate(labels, 1):
        if not is_background(label):
            values[position] = len(names)
            names.append(label)
    note = f"masks have a plane a class, {_list(labels)}, which become class numbers"
    return _without_void(MaskEncoding("gray", values), names, distinct_colors(len(names)), [note])


def _matches_colors(gray: Mapping[int, int], name_colors: Sequence[Color], count: int) -> bool:
    """Say whether gray levels are those of gray colors in the class file, and no class numbers."""
    levels = {color[0] for color in name_colors if len(set(color)) == 1}
    return set(gray) <= levels and not set(gray) <= set(range(count))


def _propose_gray(
    counts: Mapping[int, int],
    names: Sequence[str] | None,
    name_colors: Sequence[Color] | None,
    palette: Mapping[int, Color] | None,
) -> Proposal:
    values, notes = sorted(counts), []
    snap = False
    if not _are_numbers(values, names) and (peaks := _peaks(counts, 256, len(names) if names else None)):
        rest = sum(counts.values()) - sum(counts[value] for value in peaks)
        if rest:
            snap = True
            notes.append(
                f"{rest} pixels ({_percent(rest, counts)}) lie between the gray levels "
                f"{_list(sorted(peaks))}, as smoothing or JPEG makes them; each becomes the nearest. "
                "Better: export the masks as PNG, without smoothing"
            )
            values = sorted(peaks)
    if not names and len(values) > _MANY:
        notes.append(
            f"masks have {len(values)} values: are these masks, or photographs, depth maps or object numbers"
        )
    if _are_numbers(values, names):
        void = IGNORE_INDEX in values and IGNORE_INDEX not in range(len(names or ()))
        count = len(names) if names else max(value for value in values if value != 255 or not void) + 1
        mapping = {value: value for value in range(count)}
        if void:
            mapping[IGNORE_INDEX] = IGNORE_INDEX
            notes.append("255 is taken for pixels without a label, which are not trained on")
    else:
        mapping, names, note = _by_order(values, names)
        notes.append(note)
    names = list(names) if names else _default_names(max(v for v in mapping.values() if v != 255) + 1)
    if name_colors and len(name_colors) == len(names):
        class_colors: list[Color] = list(name_colors)
    else:
        class_colors = distinct_colors(len(names))
        if palette:
            own = {
                mapping[value]: color for value, color in palette.items() if mapping.get(value, 255) != 255
            }
            if len(set(own.values())) == len(own):
                class_colors = [own.get(index, color) for index, color in enumerate(class_colors)]
    return _without_void(MaskEncoding("gray", mapping, snap), names, class_colors, notes)


def _are_numbers(values: Sequence[int], names: Sequence[str] | None) -> bool:
    """Say whether values can be class numbers, with 255 for pixels without a label."""
    rest = [value for value in values if value != IGNORE_INDEX]
    if not rest or rest[0] < 0:
        return False
    if names:
        # With one name or two and the values 0 and 255, 255 is a class.
        return rest[-1] < len(names) and (len(names) > 2 or 1 in rest or IGNORE_INDEX not in values)
    if len(values) == 1:
        return values[0] in (0, 1)
    if rest == [0] or rest[0] > 0:
        return False
    return rest[-1] < 2 * len(rest) + 2 and len(rest) <= 255


def _by_order(
    values: Sequence[int], names: Sequence[str] | None
) -> tuple[dict[int, int], Sequence[str] | None, str]:
    """Return the classes in the order of gray levels."""
    count = len(names or ())
    if names and count == 1 and len(values) == 2:
        names, count = ("background", *names), 2
    if names and values == list(range(count + 1)):
        names = ("background", *names)
        note = f"masks have the values 0 to {count} for {count} names: 0 is taken for the background"
        return {value: value for value in values}, names, note
    if names and len(values) > count:
        if values[0] >= 0 and len([v for v in values if v < count]) * 2 > len(values):
            return {value: value for value in range(count)}, names, f"values of {count} and more have no name"
        raise ValueError(
            f"masks have {len(values)} values ({_list(values)}), but {count} classes have names: name all."
        )
    if len(values) > 255:
        raise ValueError(
            f"masks have {len(values)} values ({_list(values)}), too many for classes: are these masks, or "
            "photographs, depth maps or numbers of objects?"
        )
    mapping = {value: index for index, value in enumerate(values)}
    pairs = ", ".join(
        f"{value} instead of {index}" for value, index in list(mapping.items())[-3:] if value != index
    )
    if values[0] == 1 and values == list(range(1, len(values) + 1)):
        note = f"masks count their classes from 1: {_list(values)} become 0 to {len(values) - 1}"
    else:
        note = f"masks hold gray levels and no class numbers ({pairs}): {_list(values)} become the classes "
        note += f"0 to {len(values) - 1} in this order"
    return mapping, names, note


def _propose_colors(
    counts: Mapping[int, int], names: Sequence[str] | None, name_colors: Sequence[Color] | None
) -> Proposal:
    notes, snap = [], False
    if names and name_colors:
        keys = [color[0] << 16 | color[1] << 8 | color[2] for color in name_colors]
    else:
        peaks = _peaks(counts, 2**24, len(names) if names else None) if len(counts) > 32 else list(counts)
        if not peaks:
            raise ValueError(
                f"masks have {len(counts)} colors, too many for classes: are these masks, or photographs?"
            )
        # Black is the background; the others by frequency.
        keys = sorted(peaks, key=lambda value: (value != 0, -counts[value], value))
        if names and len(names) != len(keys):
            raise ValueError(
                f"masks have {len(keys)} colors and {len(names)} classes have names: give a file with the "
                "color of each, as class_dict.csv with the columns name,r,g,b."
            )
        if names:
            notes.append("the names are given to the colors in the order of their frequency: check them")
        else:
            notes.append("no file names the colors (class_dict.csv with name,r,g,b would)")
    rest = {value: count for value, count in counts.items() if value not in set(keys)}
    if len(counts) > 32 and rest and sum(rest.values()) < 0.3 * sum(counts.values()):
        snap = True
        notes.append(
            f"{sum(rest.values())} pixels ({_percent(sum(rest.values()), counts)}) have one of {len(rest)} "
            "other colors, as smoothing or JPEG makes them; each becomes the nearest class. Better: export "
            "the masks as PNG, without smoothing"
        )
    encoding = MaskEncoding("colors", {key: index for index, key in enumerate(keys)}, snap)
    if not names:
        names = ["background" if key == 0 else encoding.name(key) for key in keys]
    return _without_void(encoding, list(names), [unpack(key) for key in keys], notes)


def _peaks(counts: Mapping[int, int], levels: int, limit: int | None) -> list[int]:
    """Return the few values, far from each other, that stand for nearly all pixels; none without such."""
    if levels == 256 and (min(counts) < 0 or max(counts) > 255):
        return []
    total = sum(counts.values())
    peaks: list[int] = []
    spread = (lambda value: (value,)) if levels == 256 else unpack

    def near(value: int, distance: int) -> bool:
        return any(
            max(abs(a - b) for a, b in zip(spread(value), spread(peak), strict=True)) < distance
            for peak in peaks
        )

    for value, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if count < 0.005 * total or len(peaks) == (limit or 64):
            break
        if not near(value, 40):
            peaks.append(value)
    if levels == 256:
        peaks = [value for value in peaks if not _is_edge(value, peaks, counts, total)]
    covered = sum(count for value, count in counts.items() if near(value, 20))
    return peaks if len(peaks) > 1 and covered > 0.85 * total and len(counts) > 2 * len(peaks) else []


def _is_edge(value: int, peaks: Sequence[int], counts: Mapping[int, int], total: int) -> bool:
    """Say whether a level comes from smoothed edges: rare, as is its mirror image about the middle."""
    mirrored = min(peaks) + max(peaks) - value
    twin = next((p for p in peaks if p != value and abs(p - mirrored) <= 3), None)
    rare = counts[value] < 0.05 * total
    return bool(
        rare
        and min(peaks) < value < max(peaks)
        and twin is not None
        and 0.5 < counts[twin] / counts[value] < 2
    )


def _without_void(
    encoding: MaskEncoding, names: list[str], colors: list[Color], notes: list[str]
) -> Proposal:
    """Take classes that mean "no label" out of the classes."""
    void = [index for index, name in enumerate(names) if name.lower().strip() in _VOID]
    if void and len(void) < len(names):
        kept = [index for index in range(len(names)) if index not in void]
        number = {index: position for position, index in enumerate(kept)}
        values = {value: number.get(index, IGNORE_INDEX) for value, index in encoding.values.items()}
        encoding = MaskEncoding(encoding.kind, values, encoding.snap)
        notes.append(f"{_list([names[i] for i in void])} is taken for pixels without a label, not a class")
        names, colors = [names[i] for i in kept], [colors[i] for i in kept]
    ignored = IGNORE_INDEX if IGNORE_INDEX in encoding.values.values() and len(names) <= 255 else None
    return Proposal(encoding, tuple(names), tuple(colors), ignored, tuple(notes))


def _default_names(count: int) -> list[str]:
    if count == 2:
        return ["background", "foreground"]
    return [f"class {index}" for index in range(count)]


def _percent(part: int, counts: Mapping[int, int]) -> str:
    return f"{100 * part / sum(counts.values()):.2g} %"


def _list(values: Sequence) -> str:
    shown = ", ".join(map(str, values[:4]))
    return shown + (f", ... {values[-1]}" if len(values) > 4 else "")
