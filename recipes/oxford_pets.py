"""Trains a segmentation model on the Oxford-IIIT Pet photographs, to the recipe of the ViT-seg article.

    python recipes/oxford_pets.py --data DIR --out runs/vitseg
    python recipes/oxford_pets.py --data DIR --out runs/unet --arch unet --encoder-name resnet34
    python recipes/oxford_pets.py --data DIR --out runs/vitseg --resume          # goes on where it stopped
    vitseg predict cat.jpg --checkpoint runs/vitseg/checkpoints/best.ckpt --out masks

--out receives metrics.csv, curves.png, predictions.png, training.gif, results.json and
checkpoints/{best,last}.ckpt; recipes/compare.py puts several such folders side by side.
Copy this file and edit it: everything that is decided here is in the few lines below.
"""

import argparse
import json
import logging
import shlex
import shutil
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import RichProgressBar

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import BACKGROUND, CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.training.callbacks import EpochLog, PredictionGallery
from vitseg_zoo.training.checkpoints import AtomicCheckpointIO, ModelCheckpoint
from vitseg_zoo.training.config import (
    make_writable,
    natural_int,
    one_line_errors,
    positive_float,
    positive_int,
    try_size,
)
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.module import SegmentationModule
from vitseg_zoo.training.pictures import save_curves
from vitseg_zoo.training.precision import choose_precision
from vitseg_zoo.training.results import hardware, save_results, training_seconds, versions

ARCH = "vitseg"
# The article's ViT has 86 million parameters (vz-vitseg_base_patch16_128); the small one suits a CPU.
ENCODER_NAMES = {"vitseg": "vz-vitseg_small_patch16_128", "fusedsegformer": "vz-mit_b0"}
CNN_ENCODER_NAME = "resnet18"  # for every other architecture
MODEL_ARGS: dict = {}  # further arguments of the architecture, as {"decoder_head": "mlp"}
EPOCHS = 50  # the article's
IMAGE_SIZE = 128  # the article's; images are squeezed to a square
BATCH_SIZE = 64  # the article's
LEARNING_RATE = 4e-4  # the article's, with Adam
LR_STEP, LR_GAMMA = 12, 0.8  # the article's StepLR
SEED = 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--data", type=Path, default="data", help="folder of oxford-iiit-pet; else fetched (%(default)s)")
    add("--out", type=Path, required=True, help="folder for everything that is written")
    add("--arch", default=ARCH, help="any architecture of smp.create_model (%(default)s)")
    add("--encoder-name", help="any encoder that fits; by default a small one for the architecture")
    add("--encoder-weights", help="pretrained weights, as imagenet; by default random ones")
    add("--epochs", type=positive_int, default=EPOCHS, help="(%(default)s)")
    add(
        "--max-steps",
        type=positive_int,
        default=-1,
        help="stop after so many training steps, to try things out",
    )
    add("--batch-size", type=positive_int, default=BATCH_SIZE, help="images a step and device (%(default)s)")
    add("--lr", type=positive_float, default=LEARNING_RATE, help="learning rate of Adam (%(default)s)")
    add(
        "--image-size",
        type=positive_int,
        default=IMAGE_SIZE,
        help="side of the square, in pixels (%(default)s)",
    )
    add("--precision", default="auto", help="Lightning's, as 32-true or bf16-mixed; auto takes the faster")
    add("--devices", default="auto", help="as Lightning's Trainer takes it (%(default)s)")
    add("--num-workers", type=natural_int, help="processes that augment; by default none on a CPU")
    add("--seed", type=natural_int, default=SEED, help="(%(default)s)")
    add("--resume", action="store_true", help="continue from OUT/checkpoints/last.ckpt")
    return parser.parse_args()


def check_earlier(args: argparse.Namespace, encoder_name: str, last: Path) -> str:
    """Sees whether --out is empty or, with --resume, holds such a training; returns the precision to use."""
    if not args.resume:
        if (args.out / "metrics.csv").exists():
            raise ValueError(
                f"{args.out} holds an earlier training: give another --out, or --resume to continue it."
            )
        return args.precision
    for needed in (last, args.out / "metrics.csv"):
        if not needed.exists():
            raise FileNotFoundError(f"there is nothing to resume: {needed} does not exist.")
    try:
        checkpoint = torch.load(last, map_location="cpu", weights_only=True)
        before, epochs, steps = (checkpoint[key] for key in ("hyper_parameters", "epoch", "global_step"))
    except Exception as error:  # PyTorch has many for a damaged file
        raise ValueError(
            f"{last} is damaged: copy best.ckpt over it to go on from there, or give another --out."
        ) from error
    asked = {
        "arch": args.arch,
        "encoder_name": encoder_name,
        "encoder_weights": args.encoder_weights,
        "image_size": args.image_size,
        "batch_size": args.batch_size,
        "learning_rate": args.lr,
        "seed": args.seed,
    }
    for key, value in asked.items():
        known = before.get(key, value)
        if value != known:
            option = "--lr" if key == "learning_rate" else f"--{key.replace('_', '-')}"
            say = f"leave out {option}" if known is None else f"say so with {option} {known}"
            raise ValueError(
                f"{last} was trained with {key} {known}, not {value}: {say}, or give another --out."
            )
    if args.epochs <= epochs:
        raise ValueError(f"{last} is of epoch {epochs + 1} already: give --epochs {epochs + 1} or more.")
    if 0 <= args.max_steps < steps:
        raise ValueError(
            f"{last} is of step {steps} already: give --max-steps {steps} or more, or leave it out."
        )
    # As before, whatever a new trial would say.
    return before.get("precision", "auto") if args.precision == "auto" else args.precision


def prepare(args: argparse.Namespace, encoder_name: str) -> tuple[SegmentationDataModule, SegmentationModule]:
    photographs = {split: OxfordPets(args.data, split, download=True) for split in ("train", "val", "test")}
    datasets = {
        split: SegmentationDataset(
            pairs,
            args.image_size,
            classes=len(CLASS_NAMES),
            augment=flip_and_jitter() if split == "train" else None,
            seed=args.seed,
        )
        for split, pairs in photographs.items()
    }
    data = SegmentationDataModule(
        **datasets, batch_size=args.batch_size, num_workers=args.num_workers, seed=args.seed
    )
    module = SegmentationModule(
        args.arch,
        encoder_name,
        args.encoder_weights,
        CLASS_NAMES,
        PALETTE,
        args.image_size,
        background=BACKGROUND,
        learning_rate=args.lr,
        lr_step=LR_STEP,
        lr_gamma=LR_GAMMA,
        seed=args.seed,
        channels_last=True,  # faster for CNNs, on a CPU as on a GPU; no matter to a ViT
        model_args=MODEL_ARGS,
    )
    try_size(module, args.image_size, "--image-size")
    for dataset in datasets.values():
        dataset.cache()  # reads all images
    return data, module


def main() -> None:
    args = parse_arguments()
    last, metrics = args.out / "checkpoints" / "last.ckpt", args.out / "metrics.csv"
    encoder_name = args.encoder_name or ENCODER_NAMES.get(args.arch, CNN_ENCODER_NAME)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greeting and hints
    warnings.filterwarnings("ignore", message=".*LeafSpec|.*does not have many workers|.*is not empty")
    seed_everything(args.seed, verbose=False)
    with one_line_errors():
        precision = check_earlier(args, encoder_name, last)
        make_writable(args.out)
        data, module = prepare(args, encoder_name)
    if precision == "auto":
        precision = choose_precision(module.model, (args.image_size, args.image_size))
    module.save_hyperparameters({"precision": precision, "batch_size": args.batch_size})
    parameters = sum(parameter.numel() for parameter in module.parameters())
    print(
        f"{args.arch} with {encoder_name}: {parameters:,} parameters, precision {precision}, "
        + ", ".join(f"{len(dataset)} {split}" for split, dataset in data.datasets.items())
        + " images",
        flush=True,
    )

    gallery = PredictionGallery(data.datasets["val"], args.out)
    save = {
        "dirpath": args.out / "checkpoints",
        "save_on_train_epoch_end": True,
        "enable_version_counter": False,
    }
    best = ModelCheckpoint(filename="best", monitor="val_miou", mode="max", **save)
    callbacks = [EpochLog(metrics), gallery, best, ModelCheckpoint(filename="last", **save)]
    show_progress = sys.stdout.isatty()
    with one_line_errors():
        trainer = Trainer(
            max_epochs=args.epochs,
            max_steps=args.max_steps,
            precision=precision,
            devices=args.devices,
            callbacks=callbacks + ([RichProgressBar()] if show_progress else []),
            plugins=[AtomicCheckpointIO()],
            enable_progress_bar=show_progress,
            enable_model_summary=False,
            logger=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )
    trainer.fit(module, data, ckpt_path=last if args.resume else None, weights_only=True)
    if not last.with_name("best.ckpt").exists():  # --max-steps ended before the first validation
        shutil.copy(last, last.with_name("best.ckpt"))

    scores = {}
    for name in ("last", "best"):
        trainer.test(module, data, ckpt_path=last.with_name(f"{name}.ckpt"), weights_only=True, verbose=False)
        scores[name] = {
            key.removeprefix("test_"): round(float(value), 5)
            for key, value in trainer.callback_metrics.items()
        }
    if not trainer.is_global_zero:
        return
    save_curves({"": metrics}, args.out / "curves.png")
    results = {
        "arch": args.arch,
        "encoder_name": encoder_name,
        "parameters": parameters,
        "epochs": trainer.current_epoch,
        "test_last": scores["last"],
        "test_best": scores["best"],
        "seconds": training_seconds(metrics),
        "precision": precision,
        "hardware": hardware(trainer),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    save_results(results, args.out / "results.json")
    print(json.dumps({"test_last": scores["last"], "test_best": scores["best"]}, indent=2))


if __name__ == "__main__":
    main()
