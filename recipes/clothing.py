"""Trains a segmentation model on people's clothes: 7 classes of Clothing Co-Parsing, few and upright images.

    python recipes/clothing.py --data DIR --out runs/clothing
    python recipes/clothing.py --data DIR --out runs/unet --arch unet --encoder-name resnet34

DIR holds train/images/*.jpg, train/masks/*.png with class numbers, the same under val, and classes.txt. The
photographs and 59 finer labels are those of https://github.com/bearpaw/clothing-co-parsing, to be grouped and
divided by yourself; the rights in them are unclear. --out gets model.safetensors, with scores of the weights'
average, metrics.csv, curves.png, predictions.png, training.gif and results.json.
Copy this file and edit it: everything that is decided here is in the lines below.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import create_loss
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import warmup_cosine
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path  # folder with train, val and classes.txt
    arch: str = "fusedsegformer"  # any architecture of smp.create_model
    encoder_name: str = "vz-mit_b0"  # any encoder that fits
    encoder_weights: str | None = None  # pretrained weights, as imagenet; by default random ones
    epochs: int = 100  # passes over 804 images
    batch_size: int = 16  # images a step and device
    lr: float = 1e-3  # highest of AdamW; about 2e-4 for pretrained weights
    ema: float | None = 0.998  # decay of the average of the weights, which is the model
    image_size: int = 256  # width to which images are resized; they become one and a half times as high


def augmentation(height: int, width: int) -> A.Compose:
    """A part of the person at a random scale, flip, colors that change as clothes do."""
    jitter = dict(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.5, 1.5), hue=(-0.1, 0.1))
    size, ratio = (height, width), (width / height * 0.8, width / height * 1.25)
    part = A.RandomResizedCrop(size, scale=(0.3, 1.0), ratio=ratio, mask_interpolation=cv2.INTER_NEAREST)
    return A.Compose([part, A.HorizontalFlip(p=0.5), A.ColorJitter(**jitter, p=0.8), A.ToGray(p=0.05)])


class ClothingModule(SegmentationModule):
    """AdamW, a warm-up over 5 % of the steps, and a cosine to zero."""

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.learning_rate, weight_decay=0.05)
        scheduler = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches, warmup=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    train, val = (ImageFolders(config.data, split) for split in ("train", "val"))
    size = (config.image_size * 3 // 2, config.image_size)
    options = {"classes": len(train.class_names), "seed": config.seed}
    train_set = SegmentationDataset(train, size, augment=augmentation(*size), **options)
    val_set = SegmentationDataset(val, size, **options)
    loading = (config.batch_size, config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = ClothingModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        image_size=size,
        learning_rate=config.lr,
        seed=config.seed,
    )
    # Shoes and skin are few pixels: dice counts them as much as coats.
    module.loss = create_loss("cross_entropy+dice")
    # Images at their own size, by one confusion matrix; no epoch is chosen by them.
    file = save_evaluated(module.model, config.out / "model.safetensors", val, module.describe())
    every = max(1, config.epochs // 20)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=every)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
