"""`vitseg quickstart`: ViT-seg next to a CNN in three minutes, on drawn animals, without any download."""

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from vitseg_zoo.comparison.measure import measure
from vitseg_zoo.comparison.report import Comparison, write_report
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.cost import take_turns
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE
from vitseg_zoo.data.synthetic import SyntheticPets
from vitseg_zoo.data.transforms import flip
from vitseg_zoo.ops.memory import keep_freed_memory
from vitseg_zoo.terminal import Progress, say
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.precision import choose_precision

# Name -> arch, encoder_name, model_args and learning_rate of `SegmentationModule`. All are small enough for
# two cores: the ViTs have 6 of their 12 blocks, the U-Net timm's smallest ResNet. The hybrid is ViT-seg with
# tokens that convolutions made.
MODELS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "ViT-seg": ("vitseg", "vz-vitseg_tiny_patch16_128", {"encoder_blocks": 6}, 1.5e-3),
    "Hybrid": ("vitseg", "vz-vitseg_hybrid_tiny_patch16_128", {"encoder_blocks": 6}, 1.5e-3),
    "SegFormer-B0": ("fusedsegformer", "vz-mit_b0", {}, 1.5e-3),
    "U-Net": ("unet", "tu-test_resnet", {"decoder_channels": (96, 64, 32, 16, 16)}, 4e-3),
}
COUNTS = {"train": 1000, "val": 64, "test": 100}
IMAGE_SIZE = 128
BATCH_SIZE = 16
EPOCHS = 8  # pictures of masks being learned, where the machine is not so fast that it makes more
MOST_EPOCHS = 50  # a machine that is faster yet ends sooner
FEWEST_STEPS = 4  # of an epoch on a slow machine, which then has fewer epochs
TRAINING_SHARE = 0.75  # of the time; the rest is for the measurements and the report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg quickstart`."""
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/quickstart"), help="folder for the report [%(default)s]")
    add("--minutes", type=float, default=3.0, help="about what all of it takes [%(default)s]")
    add("--epochs", type=int, help="whole epochs of each model, however long they take")
    add("--seed", type=int, default=0, help="of pictures, weights and order [%(default)s]")


def run(args: argparse.Namespace) -> int:
    """Train the models, print their comparison, and write report.html."""
    started = time.perf_counter()
    if args.epochs is not None and args.epochs < 1:
        raise ValueError(f"--epochs should be 1 or more, got {args.epochs}.")
    if not 0 < args.minutes < math.inf:
        raise ValueError(f"--minutes should be more than 0, got {args.minutes}.")
    args.out.mkdir(parents=True, exist_ok=True)

    say(f"drawing {sum(COUNTS.values())} animals", flush=True)
    datasets = {split: _dataset(split, args.seed).cache() for split in COUNTS}
    costs = {}
    for name in MODELS:
        say(f"timing a few steps of {name}", flush=True)
        costs[name] = _step_cost(name, datasets["train"], args.seed)
    left = 60 * args.minutes * TRAINING_SHARE - (time.perf_counter() - started)
    plans = {name: plan(max(0.0, left) / len(MODELS), cost.seconds) for name, cost in costs.items()}
    if args.epochs is not None:
        plans = {name: Plan(args.epochs, _most_steps()) for name in MODELS}
    runs = {}
    for number, name in enumerate(MODELS, start=1):
        say()
        about = plans[name].steps * plans[name].epochs * costs[name].seconds
        steps = f"{plans[name].epochs} times {plans[name].steps} steps"
        say(f"model {number} of {len(MODELS)}: {name}, {steps}, about {about:.0f} s", flush=True)
        folder = args.out / name.lower()
        runs[name] = [
            Run(folder, _train(name, datasets, folder, args.seed, plans[name], costs[name].precision))
        ]

    pixels = sum(int((mask == BACKGROUND).sum()) for _, mask in datasets["test"])
    background = pixels / (COUNTS["test"] * IMAGE_SIZE**2)
    trivial = (
        f"To call every pixel background would be right for {background:.1%} of the pixels, "
        f"with a mean IoU of {background / len(CLASS_NAMES):.1%}."
    )
    say()
    pairs = SyntheticPets(COUNTS["test"], "test", IMAGE_SIZE, args.seed)
    models = measure(runs, pairs, say, lambda: Progress("pictures"))
    seen = what_was_seen({model.name: mean(model.values("miou")) for model in models}, runs)
    images = f"{COUNTS['train']} drawn animals"
    said = f"{seen} All began with random weights and saw {images}; {COUNTS['test']} others are measured. "
    said += f"Classes are pet, background and the border between. {trivial}"
    comparison = Comparison(models, said)
    write_report(comparison, pairs, args.out / "report.html", "ViT-seg next to a CNN")
    done = f"{time.perf_counter() - started:.0f} s in all. Report: {(args.out / 'report.html').resolve()}"
    for line in ("", seen, trivial, "", *comparison.text().split("\n"), "", done):
        say(line)
    return 0


def what_was_seen(miou: Mapping[str, float], runs: Mapping[str, list[Run]]) -> str:
    """Say in a sentence which model was best, in how much time, and how far behind the others were.

    Args:
        miou: Name of a model -> its mean IoU, 0 to 1.
        runs: Name of a model -> its training.
    """
    best, *others = sorted(miou, key=lambda name: -miou[name])
    seconds = [run.results["seconds"] for (run,) in runs.values()]
    low, high = round(min(seconds)), round(max(seconds))
    time_each = f"{low} seconds" if low == high else f"{low} to {high} seconds"
    hardware = next(iter(runs.values()))[0].results["hardware"]
    behind = [f"{name} ({100 * miou[name]:.1f})" for name in others]
    return (
        f"After {time_each} of training each on {hardware}, {best} was best with a mean IoU of "
        f"{100 * miou[best]:.1f} %, before {', '.join(behind[:-1])} and {behind[-1]}."
    )


@dataclass(frozen=True)
class StepCost:
    """What a training step costs here."""

    seconds: float
    precision: str  # of Lightning, with which it was timed


@dataclass(frozen=True)
class Plan:
    """How long to train: so many epochs of so many steps."""

    epochs: int
    steps: int


def plan(seconds: float, step: float) -> Plan:
    """Choose epochs and steps so that a training, its validations included, takes about a given time.

    Args:
        seconds: That time.
        step: Seconds that a training step takes.

    Example:
        >>> plan(30.0, 0.2)  # a validation costs less than a step
        Plan(epochs=8, steps=17)
    """
    validation = step * COUNTS["val"] / BATCH_SIZE / 3  # no gradients
    most = _most_steps()
    epochs = max(1, min(EPOCHS, int(seconds / (FEWEST_STEPS * step + validation))))
    steps = max(1, round((seconds / epochs - validation) / step))
    if steps > most:  # of a fast machine
        return Plan(min(MOST_EPOCHS, round(seconds / (most * step + validation))), most)
    return Plan(epochs, steps)


def _most_steps() -> int:
    return COUNTS["train"] // BATCH_SIZE


def _dataset(split: str, seed: int) -> SegmentationDataset:
    drawn = SyntheticPets(COUNTS[split], split, IMAGE_SIZE, seed)
    augment = flip() if split == "train" else None
    return SegmentationDataset(drawn, IMAGE_SIZE, len(CLASS_NAMES), augment=augment, seed=seed)


def _step_cost(name: str, dataset: SegmentationDataset, seed: int) -> StepCost:
    """Time steps of a model that is thrown away, in the precision that is the fastest."""
    module = _module(name, seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = choose_precision(module.model, (IMAGE_SIZE, IMAGE_SIZE), min(BATCH_SIZE, 8))
    batch = [dataset[index] for index in range(min(BATCH_SIZE, len(dataset)))]
    images, masks = (torch.stack(parts).to(device) for parts in zip(*batch, strict=True))
    images = images.to(memory_format=torch.channels_last)
    module.to(device).train()
    if device.type == "cpu":
        keep_freed_memory()  # as `fit` does, whose steps these stand for
    optimizer = torch.optim.AdamW(module.parameters(), 1e-6)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16-mixed"):
            logits = module(images)
        module.loss(logits.float(), masks).backward()
        optimizer.step()
        optimizer.zero_grad()

    ((*_, seconds),) = take_turns([step], rounds=3, device=device)
    return StepCost(seconds, precision)


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


def _module(name: str, seed: int) -> QuickModule:
    arch, encoder_name, model_args, learning_rate = MODELS[name]
    return QuickModule(
        arch,
        encoder_name,
        None,
        CLASS_NAMES,
        PALETTE,
        IMAGE_SIZE,
        background=BACKGROUND,
        learning_rate=learning_rate,
        seed=seed,
        channels_last=True,
        model_args=model_args,
    )


def _train(
    name: str,
    datasets: Mapping[str, SegmentationDataset],
    folder: Path,
    seed: int,
    plan: Plan,
    precision: str,
) -> dict:
    """Train and test one model; give its results."""
    for earlier in ("metrics.csv", "checkpoints/last.ckpt"):  # of a quickstart before this one
        (folder / earlier).unlink(missing_ok=True)
    config = RunConfig(
        out=folder,
        epochs=plan.epochs,
        batch_size=BATCH_SIZE,
        lr=MODELS[name][3],
        image_size=IMAGE_SIZE,
        devices="1",
        precision=precision,
        seed=seed,
    )
    prepare(config)
    data = SegmentationDataModule(**datasets, batch_size=BATCH_SIZE, seed=seed)
    return fit(_module(name, seed), data, config, select=None, limit_train_batches=plan.steps)
