"""The Lightning data module: loaders of three data sets, in an order that a resumed training repeats."""

import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset, get_worker_info

from vitseg_zoo.data.dataset import SegmentationDataset


class EpochSampler(DistributedSampler):
    """Chooses the order of an epoch, and tells the data set to draw its augmentations.

    Lightning's Trainer calls `set_epoch` before each epoch, on any number of devices.
    """

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


def divide(count: int, batch_size: int, world_size: int, rank: int) -> list[list[int]]:
    """Choose the batches of images that one of several processes measures.

    Each image is in one of them, and all processes have equally many batches, as collective operations need.

    Args:
        count: Images of all processes.
        batch_size: Images of a batch, about.
        world_size: Processes.
        rank: Which of them.

    Raises:
        ValueError: If there are fewer images than processes.

    Example:
        >>> [divide(7, batch_size=2, world_size=2, rank=rank) for rank in (0, 1)]
        [[[0, 2], [4, 6]], [[1, 3], [5]]]
    """
    if count < world_size:
        raise ValueError(f"{count} images to measure on are too few for {world_size} devices: give fewer.")
    largest_share = -(-count // world_size)
    batches = min(-(-largest_share // batch_size), count // world_size)
    return [part.tolist() for part in torch.arange(count)[rank::world_size].tensor_split(batches)]


class _Stored(Dataset):
    """A data set's images and masks as `collate` takes them."""

    def __init__(self, dataset: SegmentationDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.dataset.augmented(index)

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


def collate(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Make a batch of images and masks of the types that they have: a fourth and an eighth of the bytes.

    Args:
        pairs: Images (H, W, C), and masks (H, W) or (H, W, classes).

    Returns:
        Images (B, C, H, W) and masks (B, H, W) or (B, classes, H, W), both channels-last.

    Example:
        >>> image, mask = np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.uint8)
        >>> batch = collate([(image, mask), (image, mask)])
        >>> batch[0].shape, batch[0].stride(), batch[0].dtype, batch[1].dtype
        (torch.Size([2, 3, 4, 6]), (72, 1, 18, 3), torch.uint8, torch.uint8)
    """
    images, masks = (_stack(arrays) for arrays in zip(*pairs, strict=True))
    return images.movedim(-1, 1), masks if masks.ndim == 3 else masks.movedim(-1, 1)


def to_model(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Make of a batch of `collate` what a model and a loss take, on whatever device it is.

    Returns:
        Images, float32 in [0, 1] where they had 8 bits, and masks, int64.
    """
    image, mask = batch
    return image.float().div_(255) if image.dtype == torch.uint8 else image, mask.long()


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    kind = np.result_type(*arrays)
    if kind not in (np.uint8, np.float32):
        kind = np.dtype(np.int64)
    stacked = torch.from_numpy(np.empty((len(arrays), *arrays[0].shape), kind))
    if get_worker_info() is not None:  # written where the training reads it
        stacked.share_memory_()
    np.stack(arrays, out=stacked.numpy(), casting="unsafe")
    return stacked


def _one_thread(worker: int) -> None:
    cv2.setNumThreads(0)  # torch's are one already; there is a worker for each core


class SegmentationDataModule(LightningDataModule):
    """Loaders for training, validation and test.

    Order and augmentation of an epoch depend on (seed, epoch) alone. Images and masks of 8 bits stay so on
    their way to the device, and become numbers in [0, 1] there. On several devices use it with
    ``Trainer(use_distributed_sampler=False)``: images are divided here, and none is measured twice.

    Args:
        train: data set to train on.
        val: data set to validate on.
        test: data set to test on; None for none.
        batch_size: images a step and device.
        num_workers: processes that augment; None chooses. On a CPU alone the default is none: augmenting
            a cached image takes a small part of a training step, and workers would take cores from it.
        seed: seed of the order.

    Example:
        >>> data = SegmentationDataModule(train, val, test, batch_size=64)  # doctest: +SKIP
    """

    def __init__(
        self,
        train: SegmentationDataset,
        val: SegmentationDataset,
        test: SegmentationDataset | None,
        batch_size: int,
        num_workers: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if len(train) < batch_size:
            raise ValueError(
                f"batch_size is {batch_size}, but there are only {len(train)} training images; "
                "choose a smaller one."
            )
        self.datasets = {"train": train, "val": val, "test": test}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.first_epoch = 0  # of a training that is resumed, a later one

    def overfit(self, count: int) -> None:
        """Train and measure on the first training images alone, without augmentation.

        An epoch has as many steps as it would have otherwise.

        Args:
            count: How many images.
        """
        train, size = self._dataset("train"), self._dataset("val").image_size
        count = min(count, len(train.source))
        few, often = (
            SegmentationDataset(
                Subset(train.source, [index % count for index in range(length)]),
                size,
                train.classes,
                train.ignore_index,
            )
            for length in (count, len(train))
        )
        self.datasets = {"train": often, "val": few, "test": few}

    def train_dataloader(self) -> DataLoader:
        dataset, trainer = self._dataset("train").cache(), self.trainer
        sampler = EpochSampler(_Stored(dataset), trainer.world_size, trainer.global_rank, seed=self.seed)
        # Workers start before Lightning says which epoch it is, and where a schedule asks for the number of
        # steps, before it has read the checkpoint.
        sampler.set_epoch(max(self.first_epoch, trainer.fit_loop.epoch_progress.current.processed))
        # A last batch of one image would break batch normalization.
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> Any:
        # Lightning has converted what came from the loader, and that was whole numbers.
        return self.trainer.precision_plugin.convert_input(to_model(batch))

    def batch_names(self, batch_index: int) -> list[str]:
        """Name the training images of a batch of this epoch, on this device."""
        loader = self.trainer.train_dataloader
        order = list(loader.sampler)
        batch = order[batch_index * self.batch_size : (batch_index + 1) * self.batch_size]
        return [self._dataset("train").name(index) for index in batch]

    def val_dataloader(self) -> DataLoader:
        return self._measured(self._dataset("val").cache())

    def test_dataloader(self) -> DataLoader:
        return self._measured(self._dataset("test").cache())

    def _measured(self, dataset: SegmentationDataset) -> DataLoader:
        world_size, rank = self.trainer.world_size, self.trainer.global_rank
        if world_size == 1:
            return self._loader(dataset, batch_size=self.batch_size)
        return self._loader(dataset, batch_sampler=divide(len(dataset), self.batch_size, world_size, rank))

    def _dataset(self, split: str) -> SegmentationDataset:
        dataset = self.datasets[split]
        if dataset is None:
            raise ValueError(f"There is no data set for {split}.")
        return dataset

    def _loader(self, dataset: SegmentationDataset, **options) -> DataLoader:
        on_gpu = self.trainer.strategy.root_device.type != "cpu"
        workers = self.num_workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if on_gpu else 0
        return DataLoader(
            _Stored(dataset),
            num_workers=workers,
            pin_memory=on_gpu,
            collate_fn=collate,
            worker_init_fn=_one_thread,
            persistent_workers=workers > 0 and "sampler" in options,  # those of the training
            **options,
        )
