"""`vitseg quickstart`: ViT-seg next to a CNN in a few minutes, on drawn animals, without any download."""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitseg_zoo.comparison.measure import measure
from vitseg_zoo.comparison.report import Comparison, write_report
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE
from vitseg_zoo.data.synthetic import SyntheticPets
from vitseg_zoo.data.transforms import flip
from vitseg_zoo.terminal import Progress, say
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule

# Name -> arch, encoder_name, model_args and learning_rate of `SegmentationModule`. Both are small enough for
# two cores: ViT-seg has 6 of its 12 blocks, the U-Net timm's smallest ResNet. Their steps cost the same.
MODELS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "ViT-seg": ("vitseg", "vz-vitseg_tiny_patch16_128", {"encoder_blocks": 6}, 1.5e-3),
    "U-Net": ("unet", "tu-test_resnet", {"decoder_channels": (96, 64, 32, 16, 16)}, 4e-3),
}
COUNTS = {"train": 1000, "val": 200, "test": 200}
IMAGE_SIZE = 128
BATCH_SIZE = 32
EPOCHS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg quickstart`."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/quickstart"), help="folder for the report [%(default)s]")
    add("--epochs", type=int, default=EPOCHS, help="epochs of each model [%(default)s]")
    add("--seed", type=int, default=0, help="of pictures, weights and order [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Train the models, print their comparison, and write report.html."""
    if args.epochs < 1:
        raise ValueError(f"--epochs should be 1 or more, got {args.epochs}.")
    started = time.time()
    args.out.mkdir(parents=True, exist_ok=True)

    say(f"drawing {sum(COUNTS.values())} animals", flush=True)
    datasets = {split: _dataset(split, args.seed) for split in COUNTS}
    runs = {}
    for number, name in enumerate(MODELS, start=1):
        say()
        say(f"model {number} of {len(MODELS)}: {name}", flush=True)
        folder = args.out / name.lower()
        runs[name] = [Run(folder, _train(name, datasets, folder, args))]

    pixels = sum(int((mask == BACKGROUND).sum()) for _, mask in datasets["test"])
    background = pixels / (COUNTS["test"] * IMAGE_SIZE**2)
    trivial = (
        f"To call every pixel background would be right for {background:.1%} of the pixels, "
        f"with a mean IoU of {background / len(CLASS_NAMES):.1%}."
    )
    said = (
        f"vitseg quickstart trained both from random weights for {args.epochs} epochs on {COUNTS['train']} "
        f"drawn animals. Classes are pet, background and the border between. {trivial}"
    )
    say()
    pairs = SyntheticPets(COUNTS["test"], "test", IMAGE_SIZE, args.seed)
    models = measure(runs, pairs, say, lambda: Progress("pictures"))
    comparison = Comparison(models, said)
    write_report(comparison, pairs, args.out / "report.html", "ViT-seg next to a CNN")
    done = f"{time.time() - started:.0f} s in all. Report: {(args.out / 'report.html').resolve()}"
    for line in ("", trivial, "", *comparison.text().split("\n"), "", done):
        say(line)
    return 0


def _dataset(split: str, seed: int) -> SegmentationDataset:
    drawn = SyntheticPets(COUNTS[split], split, IMAGE_SIZE, seed)
    augment = flip() if split == "train" else None
    return SegmentationDataset(drawn, IMAGE_SIZE, len(CLASS_NAMES), augment=augment, seed=seed).cache()


class QuickModule(SegmentationModule):
    """The package's training module with an optimizer for few steps: AdamW and one cycle of learning rate."""

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), self.hparams.learning_rate, weight_decay=0.05)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            self.hparams.learning_rate,
            total_steps=int(self.trainer.estimated_stepping_batches),
            pct_start=0.15,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def _train(
    name: str,
    datasets: Mapping[str, SegmentationDataset],
    folder: Path,
    args: argparse.Namespace,
) -> dict:
    """Train and test one model; give its results."""
    for earlier in ("metrics.csv", "checkpoints/last.ckpt"):  # of a quickstart before this one
        (folder / earlier).unlink(missing_ok=True)
    arch, encoder_name, model_args, learning_rate = MODELS[name]
    config = RunConfig(
        out=folder,
        epochs=args.epochs,
        batch_size=BATCH_SIZE,
        lr=learning_rate,
        image_size=IMAGE_SIZE,
        devices="1",
        seed=args.seed,
    )
    prepare(config)
    module = QuickModule(
        arch,
        encoder_name,
        None,
        CLASS_NAMES,
        PALETTE,
        IMAGE_SIZE,
        background=BACKGROUND,
        learning_rate=learning_rate,
        seed=args.seed,
        channels_last=True,
        model_args=model_args,
    )
    data = SegmentationDataModule(**datasets, batch_size=BATCH_SIZE, seed=args.seed)
    return fit(module, data, config, select=None)
