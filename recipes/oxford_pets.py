"""Trains a segmentation model on the Oxford-IIIT Pet photographs, to the recipe of the ViT-seg article.

    python recipes/oxford_pets.py --data DIR --out runs/vitseg
    python recipes/oxford_pets.py --data DIR --out runs/modern --modern        # as the field trains today
    python recipes/oxford_pets.py --data DIR --out runs/unet --arch unet --encoder-name resnet34
    vitseg predict cat.jpg --checkpoint runs/vitseg/checkpoints/best.ckpt --out masks

--out receives metrics.csv, curves.png, predictions.png, training.gif, results.json and
checkpoints/{best,last}.ckpt; `vitseg compare` puts several such folders side by side.
Copy this file and edit it: everything that is decided here is in the lines below.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import cv2
import torch

from vitseg_zoo import parameter_groups
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.losses import CrossEntropy, CrossEntropyAndDice
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import warmup_cosine
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule

# The article's ViT has 86 million parameters (vz-vitseg_base_patch16_128); the small one suits a CPU.
ENCODER_NAMES = {
    "vitseg": "vz-vitseg_small_patch16_128",
    "fusedsegformer": "vz-mit_b0",
    "segnet": "segnet",
    "segnetdsc": "segnetdsc",
}
MODEL_ARGS: dict = {}  # further arguments of the architecture, as {"decoder_head": "mlp"}
ARTICLE = {"batch_size": 64, "lr": 4e-4, "image_size": 128}
MODERN = {"batch_size": 16, "lr": 1e-3, "image_size": 256, "ema": 0.998}


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path = Path("data")  # folder of oxford-iiit-pet; else fetched
    arch: str = "vitseg"  # any architecture of smp.create_model
    encoder_name: str | None = None  # any encoder that fits; by default a small one for the architecture
    encoder_weights: str | None = None  # pretrained weights, as imagenet; by default random ones
    epochs: int = 50  # the article's
    modern: bool = False  # larger images, random crops, AdamW, warm-up, cosine, dice and EMA
    batch_size: int | None = None  # images a step and device; the article's 64, modern 16
    lr: float | None = None  # highest learning rate; the article's 4e-4, modern 1e-3
    image_size: int | None = None  # side of the square that images are; the article's 128, modern 256

    def __post_init__(self) -> None:
        for name, value in (MODERN if self.modern else ARTICLE).items():
            setattr(self, name, value if getattr(self, name) is None else getattr(self, name))
        super().__post_init__()
        self.encoder_name = self.encoder_name or ENCODER_NAMES.get(self.arch, "resnet18")


def augmentation(size: int, modern: bool) -> A.Compose:
    """The article's: horizontal flip and color jitter; modern: of a part of the image at a random scale."""
    part = A.RandomResizedCrop((size, size), scale=(0.3, 1.0), mask_interpolation=cv2.INTER_NEAREST)
    jitter = A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=1.0)
    return A.Compose([*([part] if modern else []), A.HorizontalFlip(p=0.5), jitter])


class PetsModule(SegmentationModule):
    """The article's optimizer and schedule, or modern ones."""

    modern = False

    def configure_optimizers(self) -> dict:
        if self.modern:
            optimizer = torch.optim.AdamW(parameter_groups(self.model, self.hparams.learning_rate, 0.05, 1.0))
            scheduler = warmup_cosine(optimizer, self.trainer.estimated_stepping_batches, warmup=0.05)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams.learning_rate)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=12, gamma=0.8)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def main(config: Config) -> dict:
    """Trains, and returns what results.json holds."""
    prepare(config)
    datasets = {
        split: SegmentationDataset(
            OxfordPets(config.data, split, download=True),
            config.image_size,
            classes=len(CLASS_NAMES),
            augment=augmentation(config.image_size, config.modern) if split == "train" else None,
            seed=config.seed,
        )
        for split in ("train", "val", "test")
    }
    loading = {"batch_size": config.batch_size, "num_workers": config.num_workers, "seed": config.seed}
    data = SegmentationDataModule(**datasets, **loading)
    module = PetsModule(
        *(config.arch, config.encoder_name, config.encoder_weights, CLASS_NAMES, PALETTE, config.image_size),
        background=BACKGROUND,
        learning_rate=config.lr,
        **{"seed": config.seed, "channels_last": True},  # faster for CNNs, and no matter to a ViT
        model_args=MODEL_ARGS,
    )
    module.modern, module.loss = config.modern, CrossEntropyAndDice() if config.modern else CrossEntropy()
    return fit(module, data, config)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
