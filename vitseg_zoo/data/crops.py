"""A segmentation data set of parts of large images, at the images' own resolution."""

from collections.abc import Sequence
from functools import partial
from math import ceil
from typing import Any

import cv2
import numpy as np

from vitseg_zoo.data.dataset import BadImage, Pair, SegmentationDataset, in_threads
from vitseg_zoo.data.masks import count_values
from vitseg_zoo.data.transforms import resize

_PLACES = 64  # of each class in an image that parts may lie around

Window = tuple[int, int, int, int]  # top, left, height, width


class CropDataset(SegmentationDataset):
    """Parts of images at their own resolution: tiles that cover them, or in training as many random ones.

    An epoch has as many parts of each image as tiles cover it. Images are kept in memory where they fit;
    else only the part is read, of TIFFs (see `vitseg_zoo.data.images.read_window`), or the image decoded for
    each part. Parts beyond an image that is smaller are filled with its mirror image.

    Args:
        source: as for `SegmentationDataset`. Where it has them, `size(index)` gives the (height, width) of an
            image, `mask(index)` its mask alone and `window(index, (top, left, height, width))` a part of
            both, or None where that would cost as much as all.
        crop_size: side of the parts, or (height, width), in pixels.
        classes: as for `SegmentationDataset`, and so are `ignore_index`, `augment`, `seed` and `skip_bad`.
        random: whether parts are random, and not tiles; by default where there is an `augment`.
        scale: how much random parts are enlarged: between these, and no smaller than fits into the image.
        by_class: share of random parts that lie around a pixel of a class that is drawn first, each class of
            the image alike: so rare ones are seen, as in nnU-Net, whose share this is. All masks are read for
            it at once.

    Example:
        >>> mask = np.zeros((90, 150), np.uint8)
        >>> source = [(np.zeros((90, 150, 3), np.uint8), mask)]
        >>> dataset = CropDataset(source, 64, classes=1)
        >>> len(dataset), dataset[0][0].shape
        (6, torch.Size([3, 64, 64]))
    """

    def __init__(
        self,
        source: Sequence[Pair],
        crop_size: int | tuple[int, int],
        classes: int,
        ignore_index: int | None = None,
        augment: Any = None,
        seed: int = 0,
        skip_bad: bool = False,
        *,
        random: bool | None = None,
        scale: tuple[float, float] = (0.5, 2.0),
        by_class: float = 1 / 3,
    ) -> None:
        super().__init__(source, None, classes, ignore_index, augment, seed, skip_bad)
        self.image_size = self._crop = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
        self.random = augment is not None if random is None else random
        self.scale, self.by_class = scale, by_class
        self._shrink = resize(self._crop)
        self._enlarge = resize(self._crop, cv2.INTER_LINEAR)
        self._whole: tuple[int, Pair] | None = None  # the image that was decoded last
        count = len(source)
        sizes = in_threads(partial(self._try, read=self._size), count)
        self._sizes = [size or (0, 0) for size in sizes]
        self._ends = np.cumsum([len(self._tiles(index)) for index in range(count)])
        has_places = self.random and by_class > 0
        places = in_threads(partial(self._try, read=self._find_classes), count) if has_places else ()
        self._places = [place or {} for place in places] or [{}] * count

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def name(self, index: int) -> str:
        """Name the image of a part."""
        return self._source_name(self._place(index)[0])

    def plain(self, index: int) -> Pair:
        """Return a tile and its mask."""
        image, tile = self._place(range(len(self))[index])

        def read(image: int) -> Pair:
            tiles = self._tiles(image) or [(0, 0, 0, 0)]
            return self._part(image, tiles[tile % len(tiles)])

        return self._first(image, read)

    def _chosen(self, index: int) -> Pair:
        if not self.random:
            return self.plain(index)
        return self._first(self._place(index)[0], partial(self._random_part, index=index))

    def _place(self, index: int) -> tuple[int, int]:
        """Return the number of the image, and of the tile in it."""
        image = int(np.searchsorted(self._ends, index, side="right"))
        return image, index - (int(self._ends[image - 1]) if image else 0)

    def _tiles(self, image: int) -> list[Window]:
        """Return windows that cover an image, the last of each row and column at its border."""
        starts = []
        for side, part in zip(self._sizes[image], self._crop, strict=True):
            count = ceil(side / part)
            starts.append([round(i * max(side - part, 0) / max(count - 1, 1)) for i in range(count)])
        return [(top, left, *self._crop) for top in starts[0] for left in starts[1]]

    def _random_part(self, image: int, index: int) -> Pair:
        random = np.random.default_rng([self.seed, self.epoch, index, 1])
        size = self._sizes[image]
        fitting = max(part / max(side, 1) for part, side in zip(self._crop, size, strict=True))
        smallest = max(self.scale[0], min(fitting, 1.0))
        factor = np.exp(random.uniform(np.log(smallest), np.log(max(smallest, self.scale[1]))))
        parts = [max(1, round(part / factor)) for part in self._crop]
        lowest, highest = [0, 0], [max(0, side - part) for side, part in zip(size, parts, strict=True)]
        if self._places[image] and random.random() < self.by_class:
            pixels = self._places[image][random.choice(sorted(self._places[image]))]
            for axis, place in enumerate(divmod(int(random.choice(pixels)), size[1])):
                lowest[axis] = min(highest[axis], max(0, place - parts[axis] + 1))
                highest[axis] = min(highest[axis], place)
        top, left = (int(random.integers(low, high + 1)) for low, high in zip(lowest, highest, strict=True))
        pixels, mask = self._part(image, (top, left, *parts))
        if tuple(parts) != self._crop:
            resized = (self._enlarge if factor > 1 else self._shrink)(image=pixels, mask=mask)
            pixels, mask = resized["image"], resized["mask"]
        return pixels, mask

    def _part(self, image: int, window: Window) -> Pair:
        top, left, height, width = window
        size = self._sizes[image]
        if not min(size):  # could not be read before
            raise BadImage(f"{self._source_name(image)} cannot be read.")
        bottom, right = min(size[0], top + height), min(size[1], left + width)
        part = None
        if self._kept is None:
            read, index = self._of_source("window", image)
            with self._naming(image):
                part = read(index, (top, left, bottom - top, right - left)) if read else None
                if part is not None:
                    self._check(part[1], image)
        if part is None:
            whole = self._last_decoded(image)
            part = whole[0][top:bottom, left:right], whole[1][top:bottom, left:right]
        pixels, mask = part
        missing = ((0, top + height - bottom), (0, left + width - right))
        if any(after for _, after in missing):
            pixels, mask = (
                np.pad(array, missing + ((0, 0),) * (array.ndim - 2), mode="reflect")
                for array in (pixels, mask)
            )
        return pixels, mask

    def _last_decoded(self, image: int) -> Pair:
        """Return a whole image and its mask, which tiles ask for one after the other."""
        if self._kept is not None:
            return self._stored(image)
        last = self._whole
        if last is None or last[0] != image:
            last = self._whole = (image, self._read(image))
        return last[1]

    def _size(self, image: int) -> tuple[int, int]:
        read, index = self._of_source("size", image)
        with self._naming(image):
            return read(index) if read else self.source[image][0].shape[:2]

    def _find_classes(self, image: int) -> dict[int, np.ndarray]:
        """Return places of each class in the flattened mask, evenly spread over its pixels."""
        read, index = self._of_source("mask", image)
        with self._naming(image):
            mask = read(index) if read else self.source[image][1]
        if mask.ndim == 3:
            found = {number: np.flatnonzero(mask[..., number]) for number in range(mask.shape[2])}
        else:
            values = [value for value in count_values(mask) if 0 <= value < self.classes]
            found = {value: np.flatnonzero(mask == value) for value in values if value != self.ignore_index}
        return {
            value: pixels[np.linspace(0, len(pixels) - 1, min(_PLACES, len(pixels))).round().astype(int)]
            for value, pixels in found.items()
            if len(pixels)
        }
