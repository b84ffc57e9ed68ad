"""A segmentation data set that decodes and resizes each image once, and augments it reproducibly."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from vitseg_zoo.data.class_weights import class_weights
from vitseg_zoo.data.images import to_unit
from vitseg_zoo.data.transforms import resize

# Above this many bytes of resized pixels, images are decoded again each time instead of kept in memory.
CACHE_LIMIT = 4 * 2**30


class SegmentationDataset(Dataset):
    """Pairs of image and mask at one size, as tensors ready for a model.

    Decoding and resizing a photograph takes several times as long as augmenting the small result, so the
    resized pixels are kept in memory as uint8 when they fit. Randomness depends only on (seed, epoch, index):
    an interrupted and resumed training sees exactly what an uninterrupted one sees, whatever the number of
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
    ) -> None:
        self.source = source
        self.image_size = image_size
        self.classes = classes
        self.ignore_index = ignore_index
        self.augment = augment
        self.seed = seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # seen by workers that stay
        self._resize = None if image_size is None else resize(image_size)
        self._pairs: list[tuple[np.ndarray, np.ndarray]] | None = None

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
        """Decode all images into memory, in threads, unless they need more than `CACHE_LIMIT` bytes."""
        if self._pairs is None and len(self):
            image, mask = self._read(0)
            if (image.nbytes + mask.nbytes) * len(self) <= CACHE_LIMIT:
                with ThreadPoolExecutor() as pool:
                    self._pairs = list(pool.map(self._read, range(len(self))))
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
            image, _ = self._pairs[index] if self._pairs is not None else self._read(int(index))
            pixels = to_unit(image).reshape(image.shape[0] * image.shape[1], -1).astype(np.float64)
            count, total = count + len(pixels), total + pixels.sum(0)
            squares = squares + (pixels**2).sum(0)
        mean = total / count
        std = np.sqrt(np.maximum(squares / count - mean**2, 0))
        # An empty channel stays 0 where it would be divided by 0.
        return {"mean": mean.tolist(), "std": np.maximum(std, 1e-6).tolist()}

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, mask = self.source[index]
        self._check(mask, index)
        if self._resize is None:
            return image, mask
        resized = self._resize(image=image, mask=mask)
        return resized["image"], resized["mask"]

    def masks(self) -> Iterator[np.ndarray]:
        """Yield the masks as they are before augmentation."""
        for index in range(len(self)):
            yield (self._pairs[index] if self._pairs is not None else self._read(index))[1]

    def class_weights(self) -> list[float]:
        """Weigh the classes of the masks by median frequency, see `vitseg_zoo.data.class_weights`."""
        return class_weights(self.cache().masks(), self.classes)

    def name(self, index: int) -> str:
        """Name an image, by its file where the source knows it (`source.name(index)`)."""
        source = self.source
        while isinstance(source, Subset):
            index, source = source.indices[index], source.dataset
        return source.name(index) if hasattr(source, "name") else f"image {index}"

    def _check(self, mask: np.ndarray, index: int) -> None:
        if mask.ndim == 3:
            if mask.shape[2] != self.classes:
                raise ValueError(f"mask {index} has {mask.shape[2]} channels for {self.classes} classes.")
            return
        values = np.unique(mask)
        undeclared = [int(v) for v in values if not 0 <= v < self.classes and v != self.ignore_index]
        if undeclared:
            declared = f"0 to {self.classes - 1}" + (
                "" if self.ignore_index is None else f" and {self.ignore_index}"
            )
            raise ValueError(
                f"mask {index} has the values {undeclared}, but the declared ones are {declared}."
            )

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self._pairs[index] if self._pairs is not None else self._read(index)
        if image.dtype != np.uint8:
            image = to_unit(image)  # augmentations know 8 bits, and floats
        if self.augment is not None:
            drawn = np.random.SeedSequence([self.seed, self.epoch, index]).generate_state(1)
            self.augment.set_random_seed(int(drawn[0]))
            augmented = self.augment(image=image, mask=mask)
            image, mask = augmented["image"], augmented["mask"]
        image = image.reshape(*image.shape[:2], -1)
        pixels = torch.from_numpy(np.array(image.transpose(2, 0, 1), np.float32, order="C"))  # (C, H, W)
        if image.dtype == np.uint8:
            pixels.div_(255)
        target = torch.from_numpy(mask.astype(np.int64))
        return pixels, target if mask.ndim == 2 else target.permute(2, 0, 1).contiguous()
