"""Trains a segmentation model on your own images and masks, to a recipe that makes the most of few images.

    vitseg train DIR --out runs/mine                 # this file as it is
    vitseg recipe own_data                           # a copy of it, to edit: python own_data.py --help
    vitseg predict photo.jpg --weights runs/mine/model.safetensors --out masks

DIR has any layout that `vitseg check DIR` understands. What has no default is chosen by the data and the
machine. --out gets model.safetensors, which says all about itself, metrics.csv, curves.png, predictions.png,
training.gif and results.json. No epoch is selected: the model is the average of the last weights (EMA).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import albumentations as A
import cv2
import torch

from vitseg_zoo import freeze_blocks, load_weights, parameter_groups
from vitseg_zoo.data.crops import CropDataset
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.images import is_photograph
from vitseg_zoo.data.segmentation_folder import open_folders
from vitseg_zoo.inference.evaluate import save_evaluated
from vitseg_zoo.losses import create_loss
from vitseg_zoo.terminal import say
from vitseg_zoo.training.choices import ChosenConfig, choose
from vitseg_zoo.training.config import JsonObject, read_json_object, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import warmup_cosine
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule


@dataclass(kw_only=True)
class Config(ChosenConfig):
    data: Path  # folder of the data
    pets: bool = False  # the data are the Oxford-IIIT Pet data set
    splits: tuple[str, str] = ("train", "val")  # parts to train on and to measure on
    ignore_index: int | None = None  # mask value of pixels without a label; found out by default
    skip_bad: bool = False  # leave out what cannot be read, and name it, instead of stopping
    model_args: JsonObject = field(default_factory=dict)  # further arguments of the architecture
    loss: str = "cross_entropy+dice"  # these, and SMP's: focal, jaccard, lovasz, tversky, mcc
    class_weights: Literal["auto"] | None = None  # auto: rare classes count more, by median frequency
    label_smoothing: float = 0.0  # of the cross-entropy
    ema: float | None = 0.998  # decay of the average of the weights, which is the model
    about: Path | None = None  # JSON file of what else is said of the model: license, limits, ...


def augmentation(size: int, color: bool = True, crop: bool = False) -> A.Compose:
    """A random part of the image at a random scale, flip, and color jitter, if the images are RGB."""
    jitter = dict(brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05))
    part = A.RandomResizedCrop((size, size), scale=(0.3, 1.0), mask_interpolation=cv2.INTER_NEAREST)
    colors = [A.ColorJitter(**jitter, p=0.8), A.ToGray(p=0.05)] if color else []
    return A.Compose([*([] if crop else [part]), A.HorizontalFlip(p=0.5), *colors])  # crops are parts


class OwnModule(SegmentationModule):
    """AdamW with learning rates by layer, a warm-up over 5 % of the steps, and a cosine to zero."""

    def configure_optimizers(self) -> dict:
        groups = parameter_groups(self.model, self.hparams.learning_rate, 0.05, self.layer_decay)
        optimizer = torch.optim.AdamW(groups)
        scheduler = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches, warmup=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    folders = (config.data, config.splits, config.ignore_index, config.pets, config.skip_bad)
    train, val = open_folders(*folders)
    choose(config, train)
    options = {"classes": len(train.class_names), "ignore_index": train.ignore_index, "seed": config.seed}
    options["skip_bad"] = config.skip_bad
    is_rgb = is_photograph(train[0][0])
    augment = augmentation(config.crop_size, is_rgb, config.crop)
    size = config.crop_size if config.crop else config.image_size
    kind = CropDataset if config.crop else SegmentationDataset
    train_set = kind(train, size, augment=augment, **options)
    val_set = kind(val, size, **options)
    loading = (min(config.batch_size, len(train_set)), config.num_workers, config.seed)
    data = SegmentationDataModule(train_set, val_set, None, *loading)
    module = OwnModule(
        *(config.arch, config.encoder_name, config.encoder_weights, train.class_names, train.palette),
        **{"image_size": size, "ignore_index": train.ignore_index, "learning_rate": config.lr},
        **({} if is_rgb else train_set.measure_channels()),  # RGB is normalized as the weights were
        **{"model_args": {"in_channels": train.channels, **config.model_args}, "mode": config.mode},
        seed=config.seed,
    )
    weights = train_set.class_weights() if config.class_weights else None
    about = {"ignore_index": train.ignore_index, "label_smoothing": config.label_smoothing}
    module.loss = create_loss(config.loss, config.mode, class_weights=weights, **about)
    module.layer_decay = config.layer_decay
    parameter_groups(module.model, config.lr, 0.05, config.layer_decay)  # refuses at once what does not fit
    if config.init:
        say(load_weights(module.model, config.init, strict=False))
    if config.freeze is not None:
        freeze_blocks(module.model, config.freeze)
    about = module.describe() | ({"fit": "tiles"} if config.crop else {})
    about |= read_json_object(config.about) if config.about else {}
    file = save_evaluated(module.model, config.out / "model.safetensors", val, about)
    return fit(module, data, config, select=None, score=file, check_val_every_n_epoch=-(-config.epochs // 10))


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
