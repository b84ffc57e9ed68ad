"""Trains one of several pairs of encoder and head, all on the same budget, and adds its scores to a table.

    python recipes/compare_heads.py vitseg-linear-16 --data DIR --out runs/heads
    python recipes/compare_heads.py eomt --data DIR --out runs/clothing --dataset clothing --seed 1
    python recipes/compare_heads.py --out runs/heads          # only shows the table of what is there

All start from random weights. --out receives a folder for each training, table.md with means over seeds, and
predictions.png. Scores are the last epoch's. Copy this file and edit it.
"""

from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

import numpy as np
import torch
import tyro
from PIL import Image

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.training import pictures
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import FineTuningModule, QueryModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.results import comparison_table, markdown_table, mean_results, read_results

VIT, VIT_8 = "vitseg_tiny_patch16_128", "vitseg_tiny_patch8_128"
HYBRID = "vitseg_hybrid_tiny_patch16_128"
CONFIGURATIONS: dict[str, tuple[str, str, dict]] = {  # architecture, encoder, further arguments
    **{f"vitseg-{head}-16": ("vitseg", f"vz-{VIT}", {"decoder_head": head}) for head in ("linear", "mlp")},
    **{f"vitseg-{head}-8": ("vitseg", f"vz-{VIT_8}", {"decoder_head": head}) for head in ("linear", "mlp")},
    **{name: (name, f"vz-{VIT}", {}) for name in ("unet", "fpn", "upernet", "segmenter")},
    **{f"{name}-shuffle": (name, f"vz-shuffle-{VIT}", {}) for name in ("unet", "fpn", "upernet")},
    "unet-detail": ("unet", f"vz-detail-{VIT}", {}),
    "unet-hybrid": ("unet", f"vz-{HYBRID}", {}),
    "vitseg-hybrid": ("vitseg", f"vz-{HYBRID}", {}),
    "vitseg-refined": ("vitseg", f"vz-{VIT}", {"decoder_refinement": True}),
    "vitseg-hybrid-refined": ("vitseg", f"vz-{HYBRID}", {"decoder_refinement": True}),
    "eomt": ("eomt", f"vz-{VIT}", {"num_queries": 20}),
    **{f"{arch}-resnet18": (arch, "resnet18", {}) for arch in ("unet", "deeplabv3plus")},
    "unet-resnet34": ("unet", "resnet34", {}),
    **{name: (name, name, {}) for name in ("segnet", "segnetdsc")},
    "segformer-b0": ("fusedsegformer", "vz-mit_b0", {}),
}
EPOCHS = {"pets": 12, "clothing": 7}  # about 720 steps: what heads do first, not what they can do last
PICTURES = 6  # test images that are shown
Name = Annotated[Literal[tuple(CONFIGURATIONS)] | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


@dataclass(kw_only=True)
class Config(RunConfig):
    configuration: Name = None  # what to train; by default nothing, and only the table is shown
    data: Path = Path("data")  # folder of oxford-iiit-pet and clothing
    dataset: Literal["pets", "clothing"] = "pets"  # which of them
    epochs: int | None = None  # 12 on pets, 7 on clothing
    fraction: float = 1.0  # share of the training images
    batch_size: int = 8  # images a step
    lr: float = 5e-4  # the highest, of AdamW with warm-up and cosine
    image_size: int = 128  # images are squeezed to a square

    def __post_init__(self) -> None:
        self.epochs = EPOCHS[self.dataset] if self.epochs is None else self.epochs
        super().__post_init__()

    @property
    def name(self) -> str:  # what is trained, what differs from the defaults, and the seed
        defaults = {"epochs": EPOCHS[self.dataset], "fraction": 1.0, "lr": Config.lr}
        changes = [f"{key}-{getattr(self, key)}" for key in defaults if getattr(self, key) != defaults[key]]
        return "-".join([self.configuration, *changes, "seed", str(self.seed)])


def train(config: Config) -> None:
    prepare(config)
    train, test = (
        [OxfordPets(config.data, split) for split in ("train", "test")]
        if config.dataset == "pets"
        else [ImageFolders(config.data / "clothing", split) for split in ("train", "val")]
    )
    names, palette = list(train.class_names), list(train.palette)
    kept = torch.randperm(len(train), generator=torch.Generator().manual_seed(0)).tolist()
    train = torch.utils.data.Subset(train, kept[: round(config.fraction * len(kept))])
    size, seed = config.image_size, config.seed
    train = SegmentationDataset(train, size, len(names), augment=flip_and_jitter(), seed=seed)
    test = SegmentationDataset(test, size, len(names), seed=seed)
    data = SegmentationDataModule(train, test, test, config.batch_size, num_workers=0, seed=seed)
    arch, encoder_name, model_args = CONFIGURATIONS[config.configuration]
    # Cross-entropy and dice, or the queries' own loss; AdamW, a warm-up over 5 % of the steps, cosine.
    module = (QueryModule if arch == "eomt" else FineTuningModule)(
        *(arch, encoder_name, None, names, palette, size),
        **{"learning_rate": config.lr, "weight_decay": 0.05, "warmup": 0.05, "model_args": model_args},
        **{"seed": seed, "channels_last": True},
    )
    fit(module, data, config, select=None, limit_val_batches=0)
    images, masks = map(torch.stack, zip(*(test[i] for i in range(PICTURES)), strict=True))
    labels = module.eval()(images.to(module.device)).argmax(1).cpu()
    rows = [pictures.color(values.numpy(), palette) for values in (masks, labels)]
    rows.insert(0, (255 * images).byte().permute(0, 2, 3, 1).numpy())
    pictures.save_png(Image.fromarray(np.hstack(np.concatenate(rows, 1))), config.out / "tiles.png")


def compare(folder: Path) -> None:
    """Writes the mean scores over seeds of all trainings in a folder, and their pictures, best ones first."""
    runs = defaultdict(dict)
    for path in folder.glob("*/results.json"):
        name, _, seed = path.parent.name.rpartition("-seed-")
        runs[name][int(seed)] = read_results(path)
    runs = dict(sorted(runs.items(), key=lambda run: -mean(r["test_last"]["miou"] for r in run[1].values())))
    head, rows = comparison_table({name: mean_results(list(seeds.values())) for name, seeds in runs.items()})
    for row, seeds in zip(rows, runs.values(), strict=True):
        row += [", ".join(f"{100 * seeds[seed]['test_last']['miou']:.1f}" for seed in sorted(seeds))]
    table = markdown_table([*head, "mIoU of each seed"], rows)
    (folder / "table.md").write_text(table)
    print(table, end="")
    files = {name: folder / f"{name}-seed-{min(seeds)}" / "tiles.png" for name, seeds in runs.items()}
    tiles = {name: np.split(np.asarray(Image.open(file, formats=["PNG"])), 3) for name, file in files.items()}
    tiles = {
        name: [np.array(np.split(row, PICTURES, axis=1)) for row in rows] for name, rows in tiles.items()
    }
    images, truth, _ = next(iter(tiles.values()))
    predictions = {name: rows[2] for name, rows in tiles.items()}
    pictures.save_png(pictures.comparison(images, truth, predictions), folder / "predictions.png")


def main(config: Config) -> None:
    if config.configuration:
        train(replace(config, out=config.out / config.name))
    elif not any(config.out.glob("*/results.json")):
        raise ValueError(f"{config.out} holds no training: name one to start, such as vitseg-linear-16.")
    compare(config.out)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
