"""What is measured of each image and mask of a data set: read once, in threads, and kept in a few numbers."""

import hashlib
import io
import mmap
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from os import cpu_count
from pathlib import Path

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from vitseg_zoo.data.annotations import draw_pair, is_annotation
from vitseg_zoo.data.class_files import Color
from vitseg_zoo.data.images import open_image, read_pixels, read_size, read_window, to_unit
from vitseg_zoo.data.layouts import Pair
from vitseg_zoo.data.masks import as_mask, count_values, pack, read_mask
from vitseg_zoo.data.outlines import is_background
from vitseg_zoo.data.planes import has_planes, read_planes

Window = tuple[int, int, int, int]  # top, left, height and width

_AT_ONCE = 8  # pairs that a thread reads in a row
_MAPPED = 2**26  # bytes of a file that is not read at once
# More values than these in one mask are no classes; the most frequent are kept.
_MOST_VALUES = 4096


@dataclass
class Record:
    """What is kept of a pair; sizes are (height, width).

    Attributes:
        channels: Channels of the image as stored, the last for transparency if `has_alpha`.
        largest: Number in an image of 16 bits; 0 of others.
        errors: What cannot be read and why, one sentence each, naming the file.
        values: Value of the mask -> pixels, packed colors if `colored`.
        palette: Number -> color, of a mask with a palette.
        digest: Hash of the image file's content.
        difference_hash: 64 bits, of which near duplicates share nearly all (D. Krawetz' dHash).
        brightness: Mean of the image, as `to_unit` makes it: in range [0, 1] if it holds whole numbers.
        sharpness: Variance of the Laplacian over that of the gray levels, at a side of at most 256 pixels.
        specks: Single pixels whose four neighbors agree with each other and not with them.
        overlaps: Pixels that masks of several classes claim.
        label_pixels: Position of a label, from 1 -> pixels, of masks of one class each.
        covering: Position of a label -> pixels that it takes from labels before it.
    """

    split: str
    pair: Pair
    errors: list[str] = field(default_factory=list)
    image_size: tuple[int, int] | None = None
    mask_size: tuple[int, int] | None = None
    channels: int = 0
    dtype: str = ""
    largest: int = 0
    has_alpha: bool = False
    values: dict[int, int] = field(default_factory=dict)
    colored: bool = False
    palette: dict[int, Color] = field(default_factory=dict)
    digest: bytes = b""
    difference_hash: int = 0
    brightness: float = 0.0
    sharpness: float = 0.0
    specks: int = 0
    overlaps: int = 0
    label_pixels: dict[int, int] = field(default_factory=dict)
    covering: dict[int, int] = field(default_factory=dict)


def survey(
    root: Path,
    pairs: Iterable[tuple[str, Pair]],
    images: bool = True,
    masks: bool = True,
    workers: int | None = None,
) -> Iterator[Record]:
    """Read pairs in threads, which decode side by side, and yield what is measured of each, in order.

    Args:
        root: Folder of the data.
        pairs: Pairs with their splits.
        images: Whether images are read.
        masks: Whether masks are read.
        workers: Number of threads; as many as cores by default.
    """
    workers = workers or cpu_count() or 1
    remaining = iter(pairs)
    pending: deque[Future[list[Record]]] = deque()

    def measure_all(some: list[tuple[str, Pair]]) -> list[Record]:
        return [measure(root, split, pair, images, masks) for split, pair in some]

    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(remaining, _AT_ONCE)):
            pending.append(pool.submit(measure_all, some))
            if len(pending) > 2 * workers:  # few at a time: memory does not grow with the data
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()


def measure(root: Path, split: str, pair: Pair, images: bool = True, masks: bool = True) -> Record:
    """Read one pair."""
    record = Record(split, pair)
    if images:
        try:
            _measure_image(record, root / pair.image)
        except ValueError as error:
            record.errors.append(str(error))
    if masks:
        try:
            _measure_mask(record, root)
        except ValueError as error:
            record.errors.append(str(error))
    return record


def read_masks(root: Path, pair: Pair, colors: bool = False, window: Window | None = None) -> np.ndarray:
    """Read the mask of a pair; of several, one an object, the largest value in each pixel.

    Args:
        root: Folder of the data.
        pair: The pair.
        colors: Whether a palette's colors are wanted and not its numbers.
        window: A part; by default all.

    Raises:
        ValueError: If one cannot be read, or sizes differ.
    """
    if pair.classes or has_planes(pair):
        return _merge_classes(root, pair, window)[0]
    if is_annotation(pair.masks[0]):
        return _cut(draw_pair(root, pair, lambda: read_size(root / pair.image)), window)
    first = root / pair.masks[0]
    if window and len(pair.masks) == 1 and (part := read_window(first, window)) is not None:
        return as_mask(part, first)
    merged = read_mask(first, colors)
    for path in pair.masks[1:]:
        mask = read_mask(root / path, colors)
        if mask.shape != merged.shape:
            raise ValueError(f"{root / path} is of another size than {pair.masks[0]}.")
        merged = np.maximum(merged, mask)
    return _cut(merged, window)


def read_multilabel(
    root: Path, pair: Pair, values: Mapping[int, int], window: Window | None = None
) -> np.ndarray:
    """Read masks of one class each, or a plane each, as (H, W, classes) uint8: 1 where a pixel has the class.

    Args:
        root: Folder of the data.
        pair: The pair; of a class without a mask there is nothing in the image.
        values: Position of a label, from 1 -> number of its class.
        window: A part; by default all.

    Raises:
        ValueError: If a mask cannot be read or is of no class, or sizes differ.
    """
    stacked = None
    for position, path, inside in _masks_of_classes(root, pair, window):
        if stacked is None:
            stacked = np.zeros((*inside.shape, max(values.values(), default=-1) + 1), np.uint8)
        if position and position not in values:
            raise ValueError(f"{root / path} is a mask of {pair.labels[position - 1]!r}, which is no class.")
        if position:
            stacked[..., values[position]] |= inside
    assert stacked is not None
    return stacked


def _cut(mask: np.ndarray, window: Window | None) -> np.ndarray:
    if window is None:
        return mask
    top, left, height, width = window
    return mask[top : top + height, left : left + width]


def _masks_of_classes(root: Path, pair: Pair, window: Window | None) -> Iterator[tuple[int, str, np.ndarray]]:
    """Read masks of one class each in the order of the labels: position, from 1, file, and (H, W) bool.

    What lies above half of a mask's largest value is inside. The background comes first, with position 0.
    """
    if has_planes(pair):
        planes = read_planes(root / pair.masks[0], pair.labels, window)
        for at in sorted(range(len(pair.labels)), key=lambda at: not is_background(pair.labels[at])):
            yield 0 if is_background(pair.labels[at]) else at + 1, pair.masks[0], planes[..., at]
        return
    masks = sorted(zip(pair.classes, pair.masks, strict=True), key=lambda item: _rank(item[0], pair.labels))
    shape = None
    for label, path in masks:
        mask = read_mask(root / path)
        if mask.ndim == 3:
            mask = mask.max(2)
        shape = shape or mask.shape
        if mask.shape != shape:
            raise ValueError(f"{root / path} is of another size than {pair.masks[0]}.")
        inside = 2 * mask.astype(np.int64) > mask.max(initial=0)
        yield _rank(label, pair.labels) + 1, path, _cut(inside, window)


def _merge_classes(
    root: Path, pair: Pair, window: Window | None = None
) -> tuple[np.ndarray, dict[int, int], dict[int, int], int]:
    """Merge masks of one class each: the n-th label is n, and lies on those before it.

    Returns:
        (H, W); the pixels of each label that has some; those of them that it takes from labels before it; and
        how many pixels several labels claim.
    """
    merged, several, pixels, covering = None, None, Counter[int](), Counter[int]()
    for position, _, inside in _masks_of_classes(root, pair, window):
        if merged is None or several is None:
            merged = np.zeros(inside.shape, np.uint8 if len(pair.labels) < 256 else np.uint16)
            several = np.zeros(inside.shape, bool)
        taken = inside & (merged != 0) & (merged != position)
        several |= taken
        merged[inside] = position
        if position and inside.any():
            pixels[position] += int(inside.sum())
            covering[position] += int(taken.sum())
    assert merged is not None and several is not None
    return merged, dict(pixels), dict(covering), int(several.sum())


def _rank(label: str, labels: Sequence[str]) -> int:
    """Return the position of a label; -1, which clears, of the background."""
    if label in labels:
        return labels.index(label)
    if is_background(label):
        return -1
    raise ValueError(f"there is a mask of {label!r}, which is none of the labels {', '.join(labels)[:200]}.")


def _measure_mask(record: Record, root: Path) -> None:
    if record.pair.classes or has_planes(record.pair):
        pixels, record.label_pixels, record.covering, record.overlaps = _merge_classes(root, record.pair)
        palette = None
    elif len(record.pair.masks) == 1 and not is_annotation(record.pair.masks[0]):
        pixels, palette = read_pixels(root / record.pair.masks[0], "a mask")
        if palette is None:
            pixels = as_mask(pixels, root / record.pair.masks[0])
    else:
        pixels, palette = read_masks(root, record.pair), None
    record.mask_size = pixels.shape[:2]
    record.colored = pixels.ndim == 3
    counts = count_values(pixels)
    if len(counts) > _MOST_VALUES:
        counts = dict(Counter(counts).most_common(_MOST_VALUES))
    record.values = counts
    if palette is not None:
        record.palette = {value: tuple(palette[value].tolist()) for value in counts}
    record.specks = _count_specks(pixels) if len(counts) > 1 else 0


def _count_specks(pixels: np.ndarray) -> int:
    """Count pixels whose four neighbors agree with each other and not with them; none at the border."""
    if min(pixels.shape[:2]) < 3:
        return 0
    if pixels.ndim == 3:
        pixels = pack(pixels)
    center, above, below = pixels[1:-1, 1:-1], pixels[:-2, 1:-1], pixels[2:, 1:-1]
    left, right = pixels[1:-1, :-2], pixels[1:-1, 2:]
    specks = center != above
    for one, other in ((above, below), (left, right), (above, left)):
        specks &= one == other
    return int(np.count_nonzero(specks))


def _measure_image(record: Record, path: Path) -> None:
    content = _content(path)
    record.digest = hashlib.blake2b(content, digest_size=16).digest()
    gray = _gray_of_jpeg(record, content)
    if gray is None:
        pixels, palette = read_pixels(path)
        if palette is not None:
            pixels = palette[pixels]
        record.image_size = pixels.shape[:2]
        record.channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        record.dtype = str(pixels.dtype)
        record.largest = int(pixels.max()) if pixels.dtype == np.uint16 else 0
        record.has_alpha = _has_alpha(pixels, path)
        gray = _gray(pixels)
        if pixels.dtype != np.uint8:
            record.brightness = float(np.nanmean(to_unit(pixels)))
    scale = 256 / max(gray.shape)
    if scale < 1:
        size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
        gray = cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
    (mean,), (deviation,) = (values.ravel().tolist() for values in cv2.meanStdDev(gray))
    if record.dtype == "uint8":
        record.brightness = mean / 255
    edges = cv2.norm(cv2.Laplacian(gray, cv2.CV_16S)) ** 2 / gray.size  # their mean is nearly 0
    record.sharpness = edges / max(deviation**2, 1e-3)
    tiny = np.asarray(Image.fromarray(gray).resize((9, 8), Image.Resampling.BOX))
    bits = np.packbits(tiny[:, 1:] > tiny[:, :-1])
    record.difference_hash = int.from_bytes(bits.tobytes(), "big")


def _content(path: Path) -> bytes | mmap.mmap:
    """Return a file's bytes, mapped into memory where they are many."""
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > _MAPPED:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            return file.read()
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}.") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}.") from error


def _gray_of_jpeg(record: Record, content: bytes | mmap.mmap) -> np.ndarray | None:
    """Decode the brightness of a JPEG, at no more than twice the size that is needed: half the work or less.

    All of the file is read, so that one that was cut off is found. None for other files, and damaged ones.
    """
    if content[:2] != b"\xff\xd8":
        return None
    try:
        with open_image(io.BytesIO(content)) as image:
            if image.mode not in ("L", "RGB"):
                return None
            height, width, channels = image.height, image.width, len(image.getbands())
            image.draft("L", (256, 256))
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            if orientation > 1:
                ImageOps.exif_transpose(image, in_place=True)
            gray = np.asarray(image)
    except Exception:  # the decoders raise many kinds; `read_pixels` says which
        return None
    if gray.ndim != 2:
        return None
    record.image_size = (width, height) if orientation > 4 else (height, width)
    record.channels, record.dtype = channels, "uint8"
    return gray


def choose_channels(records: Iterable[Record]) -> int:
    """Say with how many channels a data set's images are to be read: 3 for gray and color of 8 bits.

    Gray of more bits stays one channel, and other numbers are kept; of several, the most frequent.
    """
    kinds = Counter(
        (record.channels - record.has_alpha, record.dtype) for record in records if record.channels
    )
    if all(channels in (1, 3) for channels, _ in kinds):
        return 1 if kinds and all(kind[0] == 1 and kind[1] not in ("uint8", "bool") for kind in kinds) else 3
    channels: Counter[int] = Counter()
    for (number, _), count in kinds.items():
        channels[number] += count
    return channels.most_common(1)[0][0]


def _has_alpha(pixels: np.ndarray, path: Path) -> bool:
    """Say whether the last of two or four channels is transparency and no band.

    Many programs mark the fourth band of an 8-bit TIFF as transparency, whatever is in it.
    """
    if pixels.ndim == 2 or pixels.shape[2] not in (2, 4):
        return False
    if path.suffix.lower() not in (".tif", ".tiff", ".npy"):
        return True
    last = pixels[..., -1]
    return pixels.dtype == np.uint8 and bool(((last == 0) | (last == 255)).all())


def _gray(pixels: np.ndarray) -> np.ndarray:
    """Make (H, W) uint8 of an image of any number of bands and any type."""
    if pixels.ndim == 3:
        if pixels.dtype == np.uint8 and pixels.shape[2] in (3, 4):
            return cv2.cvtColor(np.ascontiguousarray(pixels[..., :3]), cv2.COLOR_RGB2GRAY)
        pixels = pixels[..., :3].mean(2, dtype=np.float32) if pixels.shape[2] > 2 else pixels[..., 0]
    if pixels.dtype == np.uint8:
        return pixels
    wide = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(wide.min()), float(wide.max())
    return ((wide - low) * (255 / (high - low)) if high > low else wide * 0).astype(np.uint8)
