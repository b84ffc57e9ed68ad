"""The Lightning data module: loaders of three data sets, in an order that a resumed training repeats."""

import os

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler

from vitseg_zoo.data.dataset import SegmentationDataset


class EpochSampler(DistributedSampler):
    """Chooses the order of an epoch, and tells the data set to draw its augmentations.

    Lightning's Trainer calls `set_epoch` before each epoch, on any number of devices.
    """

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class SegmentationDataModule(LightningDataModule):
    """Loaders for training, validation and test.

    Order and augmentation of an epoch depend on (seed, epoch) alone. On several devices use it with
    ``Trainer(use_distributed_sampler=False)``, so that each of them validates on all images.

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

    def train_dataloader(self) -> DataLoader:
        dataset, trainer = self._dataset("train"), self.trainer
        sampler = EpochSampler(dataset, trainer.world_size, trainer.global_rank, seed=self.seed)
        # A last batch of one image would break batch normalization.
        return self._loader(dataset, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._dataset("val"))

    def test_dataloader(self) -> DataLoader:
        return self._loader(self._dataset("test"))

    def _dataset(self, split: str) -> SegmentationDataset:
        dataset = self.datasets[split]
        if dataset is None:
            raise ValueError(f"There is no data set for {split}.")
        return dataset.cache()

    def _loader(self, dataset: SegmentationDataset, **options) -> DataLoader:
        on_gpu = self.trainer.strategy.root_device.type != "cpu"
        workers = self.num_workers
        if workers is None:
            workers = min(8, os.cpu_count() or 1) if on_gpu else 0
        return DataLoader(dataset, self.batch_size, num_workers=workers, pin_memory=on_gpu, **options)
