"""Trains SegFormer on Cityscapes' 19 classes by the schedule of its paper, on one GPU or several.

    python recipes/cityscapes.py --data DIR --out runs/cityscapes
    python recipes/cityscapes.py --data DIR --out runs/cityscapes --devices 4 --batch-size 2

DIR holds leftImg8bit and gtFine, of the two zip files of https://www.cityscapes-dataset.com, 12 GB, after a
registration; not for commercial use. SegFormer, https://arxiv.org/abs/2105.15203, section 4.1: batches of 8
crops of 1024, AdamW at 6e-5 and ten times that in the head, a warm-up over 1500 steps and a line to zero at
160,000. --out gets model.safetensors, with the scores of the 500 validation images by sliding windows of
1024, metrics.csv, curves.png, predictions.png and results.json. Copy this file and edit it.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch
from timm.optim import param_groups_weight_decay

from vitseg_zoo.data.cityscapes import Cityscapes
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import CrossEntropy
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path  # folder with leftImg8bit and gtFine
    arch: str = "fusedsegformer"  # any architecture of smp.create_model
    encoder_name: str = "vz-mit_pvt_b2"  # any encoder of the zoo that fits
    encoder_weights: str | None = "imagenet"  # pretrained weights; those of mit_pvt are Apache-2.0
    epochs: int = -1  # --max-steps ends the training
    max_steps: int = 160_000  # training steps
    warmup: int = 1500  # steps in which the learning rate rises
    batch_size: int = 8  # crops a step and device
    lr: float = 6e-5  # of the encoder; the head's is ten times as high
    image_size: int = 512  # height at which epochs are measured; the final scores are those of full size
    crop_size: int = 1024  # side of the squares that are trained on, and of the sliding windows


def augmentation(crop: int) -> A.Compose:
    """Half to twice the size, a square of it, flip, photometric distortion."""
    jitter = dict(brightness=(0.87, 1.13), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05))
    scale = A.RandomScale((-0.5, 1.0), p=1.0, mask_interpolation=cv2.INTER_NEAREST)
    pad = A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255)
    return A.Compose([scale, pad, A.RandomCrop(crop, crop), A.HorizontalFlip(), A.ColorJitter(**jitter)])


class CityscapesModule(SegmentationModule):
    """AdamW with ten times the rate in the head, a warm-up, and a line to zero."""

    warmup = 1500

    def configure_optimizers(self) -> dict:
        model, lr, steps = self.model, self.hparams.learning_rate, self.trainer.estimated_stepping_batches
        rates = {model.encoder: lr, model.decoder: 10 * lr, model.segmentation_head: 10 * lr}
        optimizer = torch.optim.AdamW(
            {**group, "lr": rate}
            for part, rate in rates.items()
            for group in param_groups_weight_decay(part, weight_decay=0.01)
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / self.warmup, max(0.0, 1 - step / steps))
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    train, val = (Cityscapes(config.data, split) for split in ("train", "val"))
    options = {"classes": 19, "ignore_index": 255, "seed": config.seed}
    train_set = SegmentationDataset(train, None, augment=augmentation(config.crop_size), **options)
    val_set = SegmentationDataset(val, (config.image_size, 2 * config.image_size), **options)
    loading = (config.batch_size, config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = CityscapesModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        **{"image_size": config.crop_size, "ignore_index": 255, "learning_rate": config.lr},
        seed=config.seed,
    )
    module.warmup, module.loss = config.warmup, CrossEntropy(ignore_index=255)
    about = module.describe() | {"fit": "tiles"}
    file = save_evaluated(module.model, config.out / "model.safetensors", val, about)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=10)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
