"""Trains one of several pairs of encoder and head, all on the same budget, and adds its scores to a table.

    python recipes/compare_heads.py vitseg-linear-16 --data DIR --out runs/heads
    python recipes/compare_heads.py eomt --data DIR --out runs/clothing --dataset clothing --seed 1
    python recipes/compare_heads.py --out runs/heads          # only shows the table of what is there

All start from random weights. --out receives, of every training, NAME.json and NAME.png, predictions on the
first test images; and table.md, the mean over seeds, with seconds of processor time, and predictions.png, the
pictures of each first seed. No epoch is selected: scores are the last one's, on images not trained on.
Copy this file and edit it: what is compared is in the few lines below.
"""

import argparse
import logging
import shlex
import sys
import time
import warnings
from collections import defaultdict
from pathlib import Path
from statistics import mean

import numpy as np
import torch
from lightning.pytorch import Trainer, seed_everything
from PIL import Image

from vitseg_zoo.data import oxford_pets
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.training import pictures
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import FineTuningModule, QueryModule
from vitseg_zoo.training.precision import choose_precision
from vitseg_zoo.training.results import comparison_table, hardware, read_results, save_results, versions

VIT = "vitseg_tiny_patch16_128"
CONFIGURATIONS: dict[str, tuple[str, str, dict]] = {  # architecture, encoder, further arguments
    "vitseg-linear-16": ("vitseg", f"vz-{VIT}", {}),
    "vitseg-mlp-16": ("vitseg", f"vz-{VIT}", {"decoder_head": "mlp"}),
    "vitseg-linear-8": ("vitseg", "vz-vitseg_tiny_patch8_128", {}),
    "vitseg-mlp-8": ("vitseg", "vz-vitseg_tiny_patch8_128", {"decoder_head": "mlp"}),
    "unet": ("unet", f"vz-{VIT}", {}),
    "unet-shuffle": ("unet", f"vz-shuffle-{VIT}", {}),
    "fpn": ("fpn", f"vz-{VIT}", {}),
    "fpn-shuffle": ("fpn", f"vz-shuffle-{VIT}", {}),
    "upernet": ("upernet", f"vz-{VIT}", {}),
    "upernet-shuffle": ("upernet", f"vz-shuffle-{VIT}", {}),
    "segmenter": ("segmenter", f"vz-{VIT}", {}),
    "eomt": ("eomt", f"vz-{VIT}", {"num_queries": 20}),
    "unet-resnet18": ("unet", "resnet18", {}),
    "segformer-b0": ("fusedsegformer", "vz-mit_b0", {}),
}
EPOCHS = {"pets": 12, "clothing": 7}  # about 720 steps: what heads do first, not what they can do last
IMAGE_SIZE = 128  # images are squeezed to a square
BATCH_SIZE = 8
LEARNING_RATE = 5e-4  # the highest, of AdamW with warm-up and cosine
PICTURES = 6  # test images that are shown


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("configuration", nargs="?", choices=CONFIGURATIONS, metavar="NAME", help=", ".join(CONFIGURATIONS))
    add("--data", type=Path, default="data", help="folder of oxford-iiit-pet and clothing (%(default)s)")
    add("--dataset", choices=["pets", "clothing"], default="pets", help="(%(default)s)")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of all trainings that are compared: one for each data set",
    )
    add("--epochs", type=int, help=", ".join(f"{data}: {epochs}" for data, epochs in EPOCHS.items()))
    add("--fraction", type=float, default=1.0, help="share of the training images (%(default)s)")
    add("--lr", type=float, default=LEARNING_RATE, help="(%(default)s)")
    add("--precision", default="auto", help="Lightning's, as 32-true or bf16-mixed; auto takes the faster")
    add("--seed", type=int, default=0, help="(%(default)s)")
    args = parser.parse_args()
    args.epochs = args.epochs or EPOCHS[args.dataset]
    return args


def datasets(args: argparse.Namespace) -> tuple[list[SegmentationDataset], list[str], list]:
    """Images to train and to test on, names of the classes, and their colors."""
    if args.dataset == "pets":
        sources = [oxford_pets.OxfordPets(args.data, split) for split in ("train", "test")]
        class_names, palette = oxford_pets.CLASS_NAMES, oxford_pets.PALETTE
    else:
        sources = [ImageFolders(args.data / "clothing", split) for split in ("train", "val")]
        class_names = sources[0].class_names
        palette = distinct_colors(len(class_names))
    kept = torch.randperm(len(sources[0]), generator=torch.Generator().manual_seed(0)).tolist()
    sources[0] = torch.utils.data.Subset(sources[0], kept[: round(args.fraction * len(kept))])
    return (
        [
            SegmentationDataset(source, IMAGE_SIZE, len(class_names), augment=augment, seed=args.seed)
            for source, augment in zip(sources, (flip_and_jitter(), None), strict=True)
        ],
        list(class_names),
        list(palette),
    )


def train(args: argparse.Namespace) -> None:
    arch, encoder_name, model_args = CONFIGURATIONS[args.configuration]
    seed_everything(args.seed, verbose=False)
    (train_set, test_set), class_names, palette = datasets(args)
    data = SegmentationDataModule(train_set, test_set, test_set, BATCH_SIZE, num_workers=0, seed=args.seed)
    module_class = QueryModule if arch == "eomt" else FineTuningModule
    module = module_class(
        arch,
        encoder_name,
        None,
        class_names,
        palette,
        IMAGE_SIZE,
        learning_rate=args.lr,
        seed=args.seed,
        channels_last=True,  # faster for CNNs, on a CPU as on a GPU; no matter to a ViT
        model_args=model_args,
    )
    if args.precision == "auto":
        args.precision = choose_precision(module.model, (IMAGE_SIZE, IMAGE_SIZE), BATCH_SIZE)
    trainer = Trainer(
        max_epochs=args.epochs,
        precision=args.precision,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        logger=False,
        use_distributed_sampler=False,
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    trainer.fit(module, data)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    train_loss = float(trainer.callback_metrics["train_loss"])
    trainer.test(module, data, verbose=False)
    results = {
        "configuration": args.configuration,
        "dataset": args.dataset,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        **{key: getattr(args, key) for key in ("epochs", "fraction", "lr", "precision", "seed")},
        "train_images": len(train_set),
        "train_loss": train_loss,
        "test_last": {
            key.removeprefix("test_"): float(value) for key, value in trainer.callback_metrics.items()
        },
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "hardware": hardware(trainer),
        "command": shlex.join(["python", *sys.argv]),
        "versions": versions(),
    }
    images, masks = (
        torch.stack(parts) for parts in zip(*(test_set[i] for i in range(PICTURES)), strict=True)
    )
    with torch.no_grad():
        labels = module.eval()(images.to(module.device)).argmax(1).cpu()
    tiles = {"image": (255 * images).byte().permute(0, 2, 3, 1).numpy()}
    for name, values in (("truth", masks), (run_name(results), labels)):
        tiles[name] = pictures.color(values.numpy(), palette)
    for name, row in tiles.items():
        pictures.save_png(Image.fromarray(np.concatenate(row, axis=1)), args.out / f"{name}.png")
    save_results(results, args.out / f"{run_name(results)}.json")


def run_name(results: dict) -> str:
    """A training's name: what it trains, what differs from the defaults, and the seed."""
    defaults = {"epochs": EPOCHS[results["dataset"]], "fraction": 1.0, "lr": LEARNING_RATE}
    changes = [f"{key}-{results[key]}" for key, value in defaults.items() if results[key] != value]
    return "-".join([results["configuration"], *changes, "seed", str(results["seed"])])


def compare(folder: Path) -> None:
    """Writes the mean scores over seeds of all trainings in a folder, and their pictures, best ones first."""
    runs = defaultdict(dict)
    for path in folder.glob("*.json"):
        result = read_results(path)
        runs[run_name(result).rpartition("-seed-")[0]][result["seed"]] = result
    runs = dict(sorted(runs.items(), key=lambda run: -mean(r["test_last"]["miou"] for r in run[1].values())))
    means = {}
    for name, seeds in runs.items():
        results = list(seeds.values())
        scores = {key: mean(r["test_last"][key] for r in results) for key in results[0]["test_last"]}
        means[name] = {**results[0], "test_last": scores, "seconds": mean(r["cpu_seconds"] for r in results)}
    head, rows = comparison_table(means)
    head += ["mIoU of each seed"]
    for row, seeds in zip(rows, runs.values(), strict=True):
        row += [", ".join(f"{100 * seeds[seed]['test_last']['miou']:.1f}" for seed in sorted(seeds))]
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    table = "".join("| " + " | ".join(line) + " |\n" for line in lines)
    (folder / "table.md").write_text(table)
    print(table, end="")

    def tiles(name: str) -> np.ndarray:
        return np.stack(np.split(np.asarray(Image.open(folder / f"{name}.png")), PICTURES, axis=1))

    rows = {name: tiles(f"{name}-seed-{min(seeds)}") for name, seeds in runs.items()}
    pictures.save_png(pictures.comparison(tiles("image"), tiles("truth"), rows), folder / "predictions.png")


def main() -> None:
    args = parse_arguments()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its greeting and hints
    warnings.filterwarnings("ignore", message=".*LeafSpec|.*does not have many workers|.*is not empty")
    if args.configuration:
        args.out.mkdir(parents=True, exist_ok=True)
        train(args)
    elif not any(args.out.glob("*.json")):
        raise SystemExit(
            f"{args.out} holds no training: name one to start, such as {next(iter(CONFIGURATIONS))}."
        )
    compare(args.out)


if __name__ == "__main__":
    main()
