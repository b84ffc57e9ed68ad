"""Trains SegFormer on ADE20K's 150 classes by the schedule of its paper, on one GPU or several.

    python recipes/ade20k.py --data ADEChallengeData2016 --out runs/ade20k
    python recipes/ade20k.py --data ADEChallengeData2016 --out runs/ade20k --devices 4 --batch-size 4

The data are ADEChallengeData2016.zip of http://sceneparsing.csail.mit.edu, 1 GB, for research alone. Label 0
of the masks is ignored. SegFormer, https://arxiv.org/abs/2105.15203, section 4.1: batches of 16 crops of 512,
AdamW at 6e-5 and ten times that in the head, a warm-up over 1500 steps and a line to zero at 160,000.
--out gets model.safetensors, with the scores of the 2000 validation images whose shorter side is resized to
512, metrics.csv, curves.png, predictions.png and results.json. Copy this file and edit it.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch
from timm.optim import param_groups_weight_decay

from vitseg_zoo.data.ade20k import Ade20k
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import CrossEntropy
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path  # folder ADEChallengeData2016
    arch: str = "fusedsegformer"  # any architecture of smp.create_model
    encoder_name: str = "vz-mit_pvt_b2"  # any encoder of the zoo that fits
    encoder_weights: str | None = "imagenet"  # pretrained weights; those of mit_pvt are Apache-2.0
    epochs: int = -1  # --max-steps ends the training
    max_steps: int = 160_000  # training steps
    warmup: int = 1500  # steps in which the learning rate rises
    batch_size: int = 16  # crops a step and device
    lr: float = 6e-5  # of the encoder; the head's is ten times as high
    image_size: int = 512  # shorter side of the images
    crop_size: int = 512  # side of the squares that are trained on


def augmentation(shorter: int, crop: int) -> A.Compose:
    """The shorter side resized and scaled by 0.5 to 2, a square of it, flip, photometric distortion."""
    jitter = dict(brightness=(0.87, 1.13), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05))
    scale = {"interpolation": cv2.INTER_LINEAR, "mask_interpolation": cv2.INTER_NEAREST}
    resize = [A.SmallestMaxSize(shorter, **scale), A.RandomScale((-0.5, 1.0), p=1.0, **scale)]
    pad = A.PadIfNeeded(crop, crop, border_mode=cv2.BORDER_CONSTANT, fill=0, fill_mask=255)
    return A.Compose([*resize, pad, A.RandomCrop(crop, crop), A.HorizontalFlip(), A.ColorJitter(**jitter)])


class Ade20kModule(SegmentationModule):
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
    train, val = (Ade20k(config.data, split) for split in ("training", "validation"))
    options = {"classes": 150, "ignore_index": 255, "seed": config.seed}
    augment = augmentation(config.image_size, config.crop_size)
    train_set = SegmentationDataset(train, None, augment=augment, **options)
    val_set = SegmentationDataset(val, config.image_size, **options)  # on the way: squeezed, as one batch
    loading = (config.batch_size, config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = Ade20kModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        **{"image_size": config.image_size, "ignore_index": 255, "learning_rate": config.lr},
        seed=config.seed,
    )
    module.warmup, module.loss = config.warmup, CrossEntropy(ignore_index=255)
    about = module.describe() | {"fit": "shorter_side"}
    file = save_evaluated(module.model, config.out / "model.safetensors", val, about)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=10)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
