"""A segmentation data set that decodes and resizes each image once, and augments it reproducibly."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vitseg_zoo.data.class_weights import class_weights
from vitseg_zoo.data.images import to_unit
from vitseg_zoo.data.masks import count_values
from vitseg_zoo.data.shared_pairs import SharedPairs, free_memory
from vitseg_zoo.data.transforms import resize
from vitseg_zoo.terminal import say

_LOOKED_AT = 16  # images that say how much memory all would need

Pair = tuple[np.ndarray, np.ndarray]
T = TypeVar("T")


class BadImage(ValueError):
    """An image or mask that cannot be read; the message names it."""


class SegmentationDataset(Dataset):
    """Pairs of image and mask at one size, as tensors ready for a model.

    Decoding and resizing a photograph takes several times as long as augmenting the small result, so the
    resized pixels are kept, in memory that worker processes share, if half of what is free holds them all;
    else each image is decoded whenever it is needed. Randomness depends only on (seed, epoch, index): an
    interrupted and resumed training sees exactly what an uninterrupted one sees, whatever the number of
    workers.

    Args:
        source: a sequence of pairs (image, mask): (H, W, C) or (H, W) uint8, uint16 or floats, and class
            indices (H, W), of any sizes; or 0 and 1 (H, W, classes), where a pixel may have several classes.
            Images come out as `vitseg_zoo.data.images.to_unit` makes them.
        image_size: side of the square, or (height, width), in pixels; None leaves images as they are, for an
            `augment` that makes one size of them.
        classes: number of classes; masks hold 0 ... classes - 1, or `ignore_index`.
        ignore_index: mask value of pixels without a label; None if there are none.
        augment: pipeline called as ``augment(image=..., mask=...)`` with a `set_random_seed` method, as
            `vitseg_zoo.data.transforms.flip_and_jitter()`; None for none.
        seed: seed of the augmentation.
        skip_bad: pass over what cannot be read: it is named once on the error stream, and the image behind it
            stands in for it, as in timm.

    Raises:
        BadImage: when a pair is read that cannot be, or whose mask has undeclared values.

    Example:
        >>> source = [(np.zeros((20, 30, 3), np.uint8), np.ones((20, 30), np.uint8))]
        >>> image, mask = SegmentationDataset(source, image_size=16, classes=2)[0]
        >>> image.shape, image.dtype, mask.shape, mask.dtype
        (torch.Size([3, 16, 16]), torch.float32, torch.Size([16, 16]), torch.int64)
    """

    def __init__(
        self,
        source: Sequence[tuple[np.ndarray, np.ndarray]],
        image_size: int | tuple[int, int] | None,
        classes: int,
        ignore_index: int | None = None,
        augment: Any = None,
        seed: int = 0,
        skip_bad: bool = False,
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.classes = classes
        self.ignore_index = ignore_index
        self.augment = augment
        self.seed = seed
        self.skip_bad = skip_bad
        # Both are seen by workers that stay.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._named = torch.zeros(len(source), dtype=torch.bool).share_memory_()
        self._resize = None if image_size is None else resize(image_size)
        self._kept: SharedPairs | None = None

    def __len__(self) -> int:
        return len(self.source)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentations are drawn, in workers that stay alive, too."""
        self._epoch.fill_(epoch)

    @property
    def epoch(self) -> int:
        """The epoch whose augmentations are drawn."""
        return int(self._epoch)

    def cache(self) -> "SegmentationDataset":
        """Decode all images, in threads, and keep them if half of the free memory holds them."""
        if self._kept is not None or not len(self.source):
            return self
        limit = free_memory() // 2
        read = partial(self._try, read=self._read)
        some = range(0, len(self.source), max(1, len(self.source) // _LOOKED_AT))
        sizes = [sum(array.nbytes for array in pair) for pair in map(read, some) if pair is not None]
        if sizes and np.mean(sizes) * len(self.source) <= limit:
            with suppress(MemoryError):  # some are much larger than those that were looked at
                self._kept = SharedPairs(in_threads(read, len(self.source)), limit)
        return self

    def measure_channels(self, most: int = 1000) -> dict[str, list[float]]:
        """Measure mean and standard deviation of each channel, at the size that the model sees.

        Args:
            most: Measure no more images than these, evenly spread.

        Returns:
            `mean` and `std`, of images as they come out, not augmented: as `SegmentationModule` takes them.

        Example:
            >>> image = np.stack([np.full((4, 4), 51, np.uint8), np.eye(4, dtype=np.uint8) * 255], 2)
            >>> dataset = SegmentationDataset([(image, np.zeros((4, 4), np.uint8))], 4, classes=1)
            >>> {key: np.round(value, 3).tolist() for key, value in dataset.measure_channels().items()}
            {'mean': [0.2, 0.25], 'std': [0.0, 0.433]}
        """
        count, total, squares = 0, np.zeros(1), np.zeros(1)
        for index in np.unique(np.linspace(0, len(self) - 1, min(most, len(self))).round().astype(int)):
            image, _ = self.plain(int(index))
            pixels = to_unit(image).reshape(image.shape[0] * image.shape[1], -1).astype(np.float64)
            count, total = count + len(pixels), total + pixels.sum(0)
            squares = squares + (pixels**2).sum(0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        # An empty channel stays 0 where it would be divided by 0.
        return {"mean": mean.tolist(), "std": np.maximum(std, 1e-6).tolist()}

    def masks(self) -> Iterator[np.ndarray]:
        """Yield the masks as they are before augmentation."""
        for index in range(len(self)):
            yield self.plain(index)[1]

    def class_weights(self) -> list[float]:
        """Weigh the classes of the masks by median frequency, see `vitseg_zoo.data.class_weights`."""
        return class_weights(self.cache().masks(), self.classes)

    def name(self, index: int) -> str:
        """Name an image, by its file where the source knows it (`source.name(index)`)."""
        return self._source_name(index)

    def plain(self, index: int) -> Pair:
        """Return an image and its mask as they are before augmentation, not to be written to."""
        return self._first(range(len(self))[index], self._stored)

    def augmented(self, index: int) -> Pair:
        """Return an image (H, W, C), uint8 or float32 in [0, 1], and its mask, as this epoch draws them."""
        index = range(len(self))[index]  # an IndexError ends `for pair in dataset`
        image, mask = self._chosen(index)
        if image.dtype != np.uint8:
            image = to_unit(image)  # augmentations know 8 bits, and floats
        if self.augment is not None:
            drawn = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            self.augment.set_random_seed(int(drawn[0]))
            augmented = self.augment(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        return image.reshape(*image.shape[:2], -1), mask

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.augmented(index)
        pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1), np.float32, order="C"))  # (C, H, W)
        if image.dtype == np.uint8:
            pixels.div_(255)
        target = torch.from_numpy(mask.astype(np.int64))
        return pixels, target if mask.ndim == 2 else target.permute(2, 0, 1).contiguous()

    def _chosen(self, index: int) -> Pair:
        """Return what is augmented."""
        return self.plain(index)

    def _source_name(self, index: int) -> str:
        name, index = self._of_source("name", index)
        return name(index) if name else f"image {index}"

    def _of_source(self, name: str, index: int) -> tuple[Callable[..., Any] | None, int]:
        """Return a method of the source, behind any `Subset`, if it has it, and the index there."""
        source = self.source
        while isinstance(source, Subset):
            index, source = source.indices[index], source.dataset
        return getattr(source, name, None), index

    def _first(self, index: int, read: Callable[[int], Pair]) -> Pair:
        """Read of an image of the source; with `skip_bad` of the first from there that can be read."""
        count = len(self.source)
        for step in range(count):
            pair = self._try((index + step) % count, read)
            if pair is not None:
                return pair
        raise BadImage(f"none of the {count} images can be read.")

    def _try(self, index: int, read: Callable[[int], T]) -> T | None:
        """Read of an image of the source; None if it is passed over."""
        try:
            return read(index)
        except BadImage as error:
            if not self.skip_bad:
                raise
            if not self._named[index]:
                self._named[index] = True
                say(f"passed over: {error}", file=sys.stderr, flush=True)
            return None

    def _stored(self, index: int) -> Pair:
        pair = self._kept[index] if self._kept is not None else None
        return self._read(index) if pair is None else pair

    def _read(self, index: int) -> Pair:
        with self._naming(index):
            image, mask = self.source[index]
            self._check(mask, index)
        if self._resize is None:
            return image, mask
        resized = self._resize(image=image, mask=mask)
        return resized["image"], resized["mask"]

    @contextmanager
    def _naming(self, index: int) -> Iterator[None]:
        """Make `BadImage` of what a source raises."""
        try:
            yield
        except (ValueError, OSError, SyntaxError) as error:  # Pillow has the last for damaged PNGs
            name = self._source_name(index)
            raise BadImage(str(error) if name in str(error) else f"{name}: {error}") from error

    def _check(self, mask: np.ndarray, index: int) -> None:
        if mask.ndim == 3:
            if mask.shape[2] != self.classes:
                raise ValueError(f"mask {index} has {mask.shape[2]} channels for {self.classes} classes.")
            return
        values = sorted(count_values(mask))
        undeclared = [v for v in values if not 0 <= v < self.classes and v != self.ignore_index]
        if undeclared:
            declared = f"0 to {self.classes - 1}" + (
                "" if self.ignore_index is None else f" and {self.ignore_index}"
            )
            raise ValueError(
                f"mask {index} has the values {undeclared}, but the declared ones are {declared}."
            )


def in_threads(read: Callable[[int], T], count: int) -> Iterator[T]:
    """Read all in order, and no more ahead than there are threads: what is read is copied, and let go of."""
    threads = os.cpu_count() or 1
    ahead: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for index in range(count):
            ahead.append(pool.submit(read, index))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
