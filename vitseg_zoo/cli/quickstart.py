"""`vitseg quickstart`: ViT-seg next to a CNN in three minutes, on drawn animals, without any download."""

import argparse
import math
import time
from pathlib import Path
from statistics import mean
from typing import Any

from vitseg_zoo.comparison.measure import measure
from vitseg_zoo.comparison.report import Comparison, what_was_seen, write_report
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE
from vitseg_zoo.data.synthetic import SyntheticPets
from vitseg_zoo.data.transforms import flip
from vitseg_zoo.terminal import Progress, say
from vitseg_zoo.training.budget import Plan, plan, time_steps, too_few
from vitseg_zoo.training.config import RunConfig
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import FineTuningModule
from vitseg_zoo.training.loop import fit, prepare

# Name -> arch, encoder_name, model_args, learning rate. All are small enough for two cores: ViTs have 6 of
# their 12 blocks, the U-Net timm's smallest ResNet. The hybrid is ViT-seg with tokens that convolutions made.
MODELS: dict[str, tuple[str, str, dict[str, Any], float]] = {
    "ViT-seg": ("vitseg", "vz-vitseg_tiny_patch16_128", {"encoder_blocks": 6}, 1.5e-3),
    "Hybrid": ("vitseg", "vz-vitseg_hybrid_tiny_patch16_128", {"encoder_blocks": 6}, 1.5e-3),
    "SegFormer-B0": ("fusedsegformer", "vz-mit_b0", {}, 1.5e-3),
    "U-Net": ("unet", "tu-test_resnet", {"decoder_channels": (96, 64, 32, 16, 16)}, 4e-3),
}
COUNTS = {"train": 1000, "val": 64, "test": 100}
IMAGE_SIZE = 128
BATCH_SIZE = 16
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
    drawn = {split: SyntheticPets(count, split, IMAGE_SIZE, args.seed) for split, count in COUNTS.items()}
    data = {
        split: SegmentationDataset(
            pairs, IMAGE_SIZE, len(CLASS_NAMES), augment=flip() if split == "train" else None, seed=args.seed
        ).cache()
        for split, pairs in drawn.items()
    }
    batch = [data["train"][index] for index in range(BATCH_SIZE)]
    costs = {}
    for name in MODELS:
        say(f"timing a few steps of {name}", flush=True)
        costs[name] = time_steps(_module(name, args.seed), batch)
    left = 60 * args.minutes * TRAINING_SHARE - (time.perf_counter() - started)
    whole_epoch, validation = COUNTS["train"] // BATCH_SIZE, COUNTS["val"] / BATCH_SIZE
    runs, plans = {}, []
    for number, (name, cost) in enumerate(costs.items(), start=1):
        planned = plan(max(0.0, left) / len(MODELS), cost.seconds, whole_epoch, validation)
        todo = planned if args.epochs is None else Plan(args.epochs, whole_epoch)
        plans.append(todo)
        steps, about = f"{todo.epochs} times {todo.steps} steps", todo.epochs * todo.steps * cost.seconds
        say()
        say(f"model {number} of {len(MODELS)}: {name}, {steps}, about {about:.0f} s", flush=True)
        config = RunConfig(
            out=args.out / name.lower(),
            epochs=todo.epochs,
            batch_size=BATCH_SIZE,
            lr=MODELS[name][3],
            image_size=IMAGE_SIZE,
            devices="1",
            precision=cost.precision,
            seed=args.seed,
        )
        runs[name] = [_train(name, data, config, todo.steps)]

    say()
    models = measure(runs, drawn["test"], say, lambda: Progress("pictures"))
    seen = f"{too_few(plans, args.minutes)} {what_was_seen(models)}".lstrip()
    background = mean(float((mask == BACKGROUND).float().mean()) for _, mask in data["test"])
    trivial = (
        f"To call every pixel background would be right for {background:.1%} of the pixels, "
        f"with a mean IoU of {background / len(CLASS_NAMES):.1%}."
    )
    said = (
        f"{seen} All began with random weights and saw {COUNTS['train']} drawn animals; {COUNTS['test']} "
        f"others are measured. Classes are pet, background and the border between. {trivial}"
    )
    comparison = Comparison(models, said)
    write_report(comparison, drawn["test"], args.out / "report.html", "ViT-seg next to a CNN")
    done = f"{time.perf_counter() - started:.0f} s in all. Report: {(args.out / 'report.html').resolve()}"
    for line in ("", seen, trivial, "", *comparison.text().split("\n"), "", done):
        say(line)
    return 0


def _module(name: str, seed: int) -> FineTuningModule:
    arch, encoder_name, model_args, learning_rate = MODELS[name]
    names = (arch, encoder_name, None, CLASS_NAMES, PALETTE, IMAGE_SIZE)
    options: dict[str, Any] = {"learning_rate": learning_rate, "warmup": 0.15, "model_args": model_args}
    return FineTuningModule(*names, **options, background=BACKGROUND, seed=seed, channels_last=True)


def _train(name: str, data: dict[str, SegmentationDataset], config: RunConfig, steps: int) -> Run:
    for earlier in ("metrics.csv", "checkpoints/last.ckpt"):  # of a quickstart before this one
        (config.out / earlier).unlink(missing_ok=True)
    prepare(config)
    loaders = SegmentationDataModule(**data, batch_size=BATCH_SIZE, seed=config.seed)
    module = _module(name, config.seed)
    return Run(config.out, fit(module, loaders, config, select=None, limit_train_batches=steps))
