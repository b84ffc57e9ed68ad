"""`vitseg compare RUN...`: trainings side by side in one report; `--train` trains what is missing first."""

import argparse
from itertools import takewhile
from pathlib import Path
from typing import Any

from vitseg_zoo.comparison.evaluation import write_csv
from vitseg_zoo.comparison.measure import measure, open_data
from vitseg_zoo.comparison.report import Comparison, write_report
from vitseg_zoo.comparison.runs import Run, group_runs, read_runs
from vitseg_zoo.comparison.trainings import Training, plan, train_all
from vitseg_zoo.files import atomic_path
from vitseg_zoo.terminal import Progress, say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg compare`."""
    parser.usage = (
        "vitseg compare [-h] RUN... [--data DIR] [--split NAME] [--out DIR]\n"
        "       vitseg compare --train RECIPE --models NAMES [--seeds SEEDS] [--data DIR] [--out DIR] "
        "[-- OPTIONS]"
    )
    parser.epilog = (
        "What follows -- are options of the recipe, the same for all: vitseg compare --train oxford_pets "
        '--models "vitseg, unet:resnet18" --seeds 0,1 -- --data DIR --epochs 20'
    )
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="the --out of a finished training, or a folder of such")
    add("--train", metavar="RECIPE", help="a recipe of `vitseg recipe`, or a file like one")
    add(
        "--models",
        metavar="NAMES",
        help='what to train: architectures, with their encoders behind a colon, as "segnet, unet:resnet18"',
    )
    add("--seeds", default="0", metavar="SEEDS", help="train each with each of these, as 0,1,2 [%(default)s]")
    add(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="folder for report.html, table.md, images.csv, and a folder for each training [%(default)s]",
    )
    add(
        "--data",
        type=Path,
        metavar="DIR",
        help="the recipe's data; without --train, measure on this folder, and not where the trainings did",
    )
    add("--split", metavar="NAME", help="measure on this part; by default on that of the trainings")


def run(args: argparse.Namespace) -> int:
    """Train what is missing, measure what is new, and write the report."""
    folders = [Path(word) for word in takewhile(lambda word: not word.startswith("-"), args.runs)]
    options = args.runs[len(folders) :]
    if args.train is None and (options or args.models):
        raise ValueError("--models and the options of a recipe need --train RECIPE.")
    failed: list[Training] = []
    if args.train is not None:
        options += ["--data", str(args.data)] if args.data else []
        args.data = None  # what is measured on is what the recipe measured on
        trainings = plan(args.train, args.models or "", args.seeds, args.out, options)
        try:
            failed = train_all(trainings, say)
        except (KeyboardInterrupt, SystemExit) as stop:  # SystemExit: SIGTERM, after which `fit` has saved
            say("stopped: the same command goes on.")
            raise SystemExit(getattr(stop, "code", 130)) from None
        folders += [training.config.out for training in trainings if training not in failed]
    if not (folders or failed):
        raise ValueError("nothing to compare: name trainings, or --train RECIPE --models NAMES.")
    if folders:
        _report(read_runs(folders), args)
    for training in failed:
        say(f"not trained: {training.name}, seed {training.config.seed}: {training.error}")
    return 1 if failed else 0


def _report(runs: list[Run], args: argparse.Namespace) -> None:
    groups = group_runs(runs)
    pairs: Any = open_data(runs, args.data, args.split)
    models = measure(groups, pairs, say, lambda: Progress("images"))
    where = pairs.path.resolve().name
    comparison = Comparison(
        models,
        f"Measured on {len(pairs)} images, the part {pairs.split} of {where}.",
    )
    names = [model.name for model in comparison.models]
    title = " and ".join(names) if len(names) < 3 else f"{len(names)} models on {where}"
    write_report(comparison, pairs, args.out / "report.html", title)
    with atomic_path(args.out / "table.md") as partial:
        partial.write_text(comparison.markdown(), encoding="utf-8")
    evaluations = {
        model.name if len(model.runs) == 1 else f"{model.name}, seed {run.seed}": evaluation
        for model in comparison.models
        for run, evaluation in zip(model.runs, model.evaluations, strict=True)
    }
    write_csv(evaluations, args.out / "images.csv")
    for line in comparison.text().splitlines():
        say(line)
    say(f"written: {args.out / 'report.html'}, table.md, images.csv")
