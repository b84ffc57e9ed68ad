"""Trains a model on few or many drawn animals in the same number of steps, then on photographs of pets.

    python recipes/how_much_data.py unet-hybrid --images 2000 --data DIR --out runs/drawn
    python recipes/how_much_data.py --out runs/drawn          # only shows the table and the picture

The package draws as many different animals as --images says. All models start from random weights. --out gets
a folder for each training, in it that on the photographs of oxford-iiit-pet in DIR; table.md; and scores.png.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Annotated, Literal

import tyro
from matplotlib.figure import Figure
from vitseg_zoo.recipes.compare_heads import CONFIGURATIONS

from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.oxford_pets import CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.data.synthetic import SyntheticPets
from vitseg_zoo.data.transforms import flip_and_jitter
from vitseg_zoo.training.config import RunConfig, run_from_command_line
from vitseg_zoo.training.data_module import SegmentationDataModule
from vitseg_zoo.training.finetuning import FineTuningModule
from vitseg_zoo.training.loop import fit, prepare
from vitseg_zoo.training.results import markdown_table, read_results
from vitseg_zoo.weights.loading import load_weights

BATCH_SIZE, IMAGE_SIZE = 8, 128
PETS_EPOCHS = 12  # on the photographs, as in compare_heads
Name = Annotated[Literal[tuple(CONFIGURATIONS)] | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]


@dataclass(kw_only=True)
class Config(RunConfig):
    configuration: Name = None  # what to train, as in compare_heads; by default nothing is trained
    data: Path | None = None  # folder of oxford-iiit-pet; without it, only drawn animals are seen
    images: int = 2000  # different animals that are drawn
    epochs: int = -1  # as many as --max-steps needs
    max_steps: int = 1500  # of 8 animals each
    lr: float = 5e-4  # the highest, of AdamW with warm-up and cosine

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(BATCH_SIZE, "images")

    @property
    def name(self) -> str:
        steps = f"-steps-{self.max_steps}" * (self.max_steps != Config.max_steps)
        return f"{self.configuration}{steps}-images-{self.images}-seed-{self.seed}"


def train(config: Config, train: Sequence, test: Sequence, init: Path | None = None) -> None:
    """Trains on pairs of image and mask, from random weights or from a checkpoint."""
    prepare(config)
    seed, classes = config.seed, len(CLASS_NAMES)
    train_set = SegmentationDataset(train, IMAGE_SIZE, classes, augment=flip_and_jitter(), seed=seed)
    test_set = SegmentationDataset(test, IMAGE_SIZE, classes, seed=seed)
    data = SegmentationDataModule(train_set, test_set, test_set, BATCH_SIZE, num_workers=0, seed=seed)
    *names, model_args = CONFIGURATIONS[config.configuration]
    module = FineTuningModule(
        *(*names, None, CLASS_NAMES, PALETTE, IMAGE_SIZE),
        **{"learning_rate": config.lr, "weight_decay": 0.05, "warmup": 0.05, "model_args": model_args},
        **{"seed": seed, "channels_last": True},
    )
    if init is not None:
        load_weights(module.model, init)
    fit(module, data, config, select=None, limit_val_batches=0)


def compare(folder: Path) -> None:
    """Writes the scores of all trainings in a folder, means over seeds, as a table and as a picture."""
    found = defaultdict(list)  # scores of seeds: on drawn animals, or after the photographs on those
    for path in [*folder.glob("*-images-*/results.json"), *folder.glob("*-images-*/pets/results.json")]:
        run, on = (path.parents[1], "pets") if path.parent.name == "pets" else (path.parent, "drawn")
        name, images = run.name.rpartition("-seed-")[0].split("-images-")
        found[on, name, int(images)].append(100 * read_results(path)["test_last"]["miou"])
    points = {key: mean(scores) for key, scores in sorted(found.items())}
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, on in zip(figure.subplots(1, 2), ("drawn", "pets"), strict=True):
        for name in sorted({name for _, name, _ in points}):
            line = [(key[2], score) for key, score in points.items() if key[:2] == (on, name)]
            axes.plot(*(zip(*line, strict=True) if line else ([], [])), "o-", label=name)
        title = {"drawn": "on other drawn animals", "pets": "on photographs, trained on those"}[on]
        axes.set(title=title, xlabel="drawn animals", ylabel="mIoU [%]", xscale="log")
    figure.axes[0].legend()
    figure.savefig(folder / "scores.png", dpi=110)
    rows = [[f"`{name}`", str(images), on, f"{score:.1f}"] for (on, name, images), score in points.items()]
    table = markdown_table(["configuration", "drawn animals", "measured on", "mIoU"], rows)
    (folder / "table.md").write_text(table)
    print(table, end="")


def main(config: Config) -> None:
    if config.configuration:
        drawn = replace(config, out=config.out / config.name)
        # Of more animals than there is time for, no more are drawn.
        count = min(config.images, config.max_steps * BATCH_SIZE)
        train(drawn, *(SyntheticPets(n, split) for n, split in ((count, "train"), (200, "test"))))
        if config.data is not None:
            photographs = (OxfordPets(config.data, split) for split in ("train", "test"))
            pets = replace(drawn, out=drawn.out / "pets", epochs=PETS_EPOCHS, max_steps=-1)
            train(pets, *photographs, init=drawn.out / "checkpoints" / "last.ckpt")
    compare(config.out)


if __name__ == "__main__":
    run_from_command_line(main, Config, __doc__)
