"""Trains a segmentation model on the Oxford-IIIT Pet photographs, to the recipe of the ViT-seg article.

    python recipes/oxford_pets.py --data DIR --out runs/vitseg
    python recipes/oxford_pets.py --data DIR --out runs/unet --arch unet --encoder-name resnet34
    python recipes/oxford_pets.py --data DIR --out runs/vitseg --resume          # goes on where it stopped
    vitseg predict cat.jpg --checkpoint runs/vitseg/checkpoints/best.ckpt --out masks

--out receives metrics.csv, curves.png, predictions.png, training.gif, results.json and
checkpoints/{best,last}.ckpt; recipes/compare.py puts several such folders side by side.
Copy this file and edit it: everything that is decided here is in the lines below.
"""

from dataclasses import dataclass
from pathlib import Path

import albumentations as A
import torch

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.losses import CrossEntropy
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
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


@dataclass(kw_only=True)
class Config(RunConfig):
    data: Path = Path("data")  # folder of oxford-iiit-pet; else fetched
    arch: str = "vitseg"  # any architecture of smp.create_model
    encoder_name: str | None = None  # any encoder that fits; by default a small one for the architecture
    encoder_weights: str | None = None  # pretrained weights, as imagenet; by default random ones
    epochs: int = 50  # the article's
    batch_size: int = 64  # images a step and device; the article's
    lr: float = 4e-4  # learning rate of Adam; the article's
    image_size: int = 128  # side of the square that images are squeezed to, in pixels; the article's

    def __post_init__(self) -> None:
        super().__post_init__()
        self.encoder_name = self.encoder_name or ENCODER_NAMES.get(self.arch, "resnet18")


def augmentation() -> A.Compose:
    """The article's: horizontal flip and color jitter."""
    jitter = dict(brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.05, 0.05))
    return A.Compose([A.HorizontalFlip(p=0.5), A.ColorJitter(**jitter, p=1.0)])


class PetsModule(SegmentationModule):
    """The article's optimizer and schedule."""

    def configure_optimizers(self) -> dict:
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
            augment=augmentation() if split == "train" else None,
            seed=config.seed,
        )
        for split in ("train", "val", "test")
    }
    data = SegmentationDataModule(
        **datasets, batch_size=config.batch_size, num_workers=config.num_workers, seed=config.seed
    )
    module = PetsModule(
        config.arch,
        config.encoder_name,
        config.encoder_weights,
        CLASS_NAMES,
        PALETTE,
        config.image_size,
        background=BACKGROUND,
        learning_rate=config.lr,
        seed=config.seed,
        channels_last=True,  # faster for CNNs, on a CPU as on a GPU; no matter to a ViT
        model_args=MODEL_ARGS,
    )
    module.loss = CrossEntropy()
    return fit(module, data, config)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
