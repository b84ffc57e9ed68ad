"""The Lightning data module: loaders of three data sets, in an order that a resumed training repeats."""

import os

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler, Subset

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


class SegmentationDataModule(LightningDataModule):
    """Loaders for training, validation and test.

    Order and augmentation of an epoch depend on (seed, epoch) alone. On several devices use it with
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

    def overfit(self, count: int) -> None:
        """Train and measure on the first training images alone, without augmentation.

        An epoch has as many steps as it would have otherwise.

        Args:
            count: How many images.
        """
        train, size = self._dataset("train"), self._dataset("val").image_size
        few, often = (
            SegmentationDataset(
                Subset(train.source, [index % count for index in range(length)]),
                size,
                train.classes,
                train.ignore_index,
            )
            for length in (min(count, len(train)), len(train))
        )
        self.datasets = {"train": often, "val": few, "test": None}

    def train_dataloader(self) -> DataLoader:
        dataset, trainer = self._dataset("train").cache(), self.trainer
        sampler = EpochSampler(dataset, trainer.world_size, trainer.global_rank, seed=self.seed)
        # A last batch of one image would break batch normalization.
        return self._loader(dataset, sampler=sampler, batch_size=self.batch_size, drop_last=True)

    def batch_names(self, batch_index: int) -> list[str]:
        """Name the training images of a batch of this epoch, on this device."""
        loader = self.trainer.train_dataloader
        order = list(loader.sampler)
        batch = order[batch_index * self.batch_size : (batch_index + 1) * self.batch_size]
        return [loader.dataset.name(index) for index in batch]

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
        return DataLoader(dataset, num_workers=workers, pin_memory=on_gpu, **options)
