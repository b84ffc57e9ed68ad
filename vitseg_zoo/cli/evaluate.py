"""`vitseg evaluate MODEL DIR`: what a model gets right on images with masks, image by image."""

import argparse
import re
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.comparison.cost import measure_costs
from vitseg_zoo.comparison.evaluation import evaluate_images, write_csv
from vitseg_zoo.comparison.report import Comparison, Model, write_report
from vitseg_zoo.comparison.runs import read_runs
from vitseg_zoo.data.origin import open_split
from vitseg_zoo.files import atomic_path
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.terminal import Progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg evaluate`."""
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="a file with weights, the folder of a training, or a model of `vitseg list`",
    )
    add("data", type=Path, metavar="DIR", help="images and masks that `vitseg check` understands")
    add("--split", metavar="NAME", help="part to measure on; by default test, or val where there is no test")
    add(
        "--out",
        type=Path,
        default=Path("evaluation"),
        metavar="DIR",
        help="folder for the report [%(default)s]",
    )


def run(args: argparse.Namespace) -> int:
    """Write report.html, table.md, images.csv, and a map of the model's confidence for each image."""
    pairs = open_split(args.data, args.split)
    runs = read_runs([Path(args.model)]) if Path(args.model, "results.json").is_file() else []
    predictor = Predictor(runs[0].weights if runs else args.model)
    say(f"{len(pairs)} images; {predictor.describe()}")
    maps = args.out / "confidence"
    count = 0

    def save_map(name: str, margins: np.ndarray | None) -> None:
        nonlocal count
        count += 1  # tells images apart whose names are the same but for their folder
        if margins is not None:
            stem = re.sub(r"[^\w.-]+", "_", Path(name).stem)[:100]
            with atomic_path(maps / f"{count:05d}_{stem}.png") as partial:
                Image.fromarray((255 * margins).round().astype(np.uint8)).save(partial)

    evaluation = evaluate_images(predictor, pairs, margins=True, use=save_map, progress=Progress("images"))
    name = runs[0].model if runs else Path(args.model).name
    cost = measure_costs({name: predictor}, pairs[0][0])[name]
    where, split = pairs.path.resolve().name, pairs.split
    comparison = Comparison(
        [Model(name, [evaluation], runs, cost)],
        f"Measured on {len(pairs)} images, the part {split} of {where}; {predictor.describe()}.",
    )
    write_report(comparison, pairs, args.out / "report.html", f"{name} on {where}")
    write_csv({name: evaluation}, args.out / "images.csv")
    with atomic_path(args.out / "table.md") as partial:
        partial.write_text(comparison.markdown(), encoding="utf-8")
    for line in comparison.text().splitlines():
        say(line)
    say(f"written: {args.out / 'report.html'}, table.md, images.csv, confidence")
    return 0
