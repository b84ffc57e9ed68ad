"""One HTML page of one or several trainings, with everything in it: no other file, no script, no network."""

import base64
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.ticker import MaxNLocator

from vitseg_zoo.files import atomic_path
from vitseg_zoo.training.pictures import read_metrics
from vitseg_zoo.training.results import comparison_table, read_results

PANELS = {"loss": "Cross-entropy", "pixel_accuracy": "Pixel accuracy", "miou": "Mean IoU"}
# Of a panel, in the units of its SVG.
WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 10, 34
_MIME_TYPES = {".png": "image/png", ".gif": "image/gif"}


def write_report(
    runs: Mapping[str, Path],
    path: Path,
    title: str,
    introduction: str = "",
    figures: Sequence[tuple[str, Path]] | None = None,
) -> None:
    """Write a page with the scores, curves and pictures of trainings.

    Args:
        runs: name of a training -> its folder, as `recipes/oxford_pets.py` and `vitseg quickstart` write it:
            results.json and metrics.csv, and perhaps predictions.png and training.gif.
        path: HTML file to write.
        title: headline.
        introduction: a paragraph below it.
        figures: pairs of a caption and a PNG or GIF file; by default each training's own two pictures.

    Raises:
        FileNotFoundError: a folder has no results.json or no metrics.csv.

    Example:
        >>> runs = {"ViT-seg": Path("runs/vitseg"), "U-Net": Path("runs/unet")}
        >>> write_report(runs, Path("runs/report.html"), "Pets")  # doctest: +SKIP
    """
    results, metrics = {}, {}
    for name, folder in runs.items():
        for file in ("results.json", "metrics.csv"):
            if not (folder / file).is_file():
                raise FileNotFoundError(f"{folder} is no finished training: it has no {file}.")
        results[name] = read_results(folder / "results.json")
        metrics[name] = read_metrics(folder / "metrics.csv")
    if figures is None:
        captions = {
            "predictions.png": "predictions at the end",
            "training.gif": "predictions after each epoch",
        }
        figures = [
            (f"{name}: {caption}", folder / file)
            for name, folder in runs.items()
            for file, caption in captions.items()
            if (folder / file).is_file()
        ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitseg_zoo", "training"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    html = environment.get_template("report.html.jinja").render(
        title=title,
        introduction=introduction,
        table=_table(results),
        panels=[_panel(heading, metric, metrics) for metric, heading in PANELS.items()],
        names=list(runs),
        figures=[(caption, _data_uri(source)) for caption, source in figures],
        results=results,
    )
    with atomic_path(path) as partial:
        partial.write_text(html, encoding="utf-8")


def _table(results: Mapping[str, Mapping]) -> dict:
    """Make head and rows for the page; a cell is its text and whether it is its column's best score."""
    head, rows = comparison_table(results)
    best = {}
    if len(rows) > 1:
        for column in range(1, len(head) - 2):  # not the parameters and seconds
            scored = [row[column] for row in rows if row[column].endswith(" %")]
            if scored:
                best[column] = max(scored, key=lambda text: float(text.removesuffix(" %")))
    return {
        "head": head,
        "rows": [[(text, text == best.get(i)) for i, text in enumerate(row)] for row in rows],
    }


def _panel(heading: str, metric: str, metrics: Mapping[str, dict[str, list[float]]]) -> dict:
    """Place curves of one metric in the coordinates of the panel's SVG: training dashed, validation solid."""
    series: list[Any] = []  # (number of the run, stage, epochs counted from 1, values)
    for run, columns in enumerate(metrics.values()):
        for stage in ("train", "val"):
            values = columns.get(f"{stage}_{metric}", [])
            pairs = [(e + 1, v) for e, v in zip(columns["epoch"], values, strict=False) if math.isfinite(v)]
            if pairs:
                series.append((run, stage, *zip(*pairs, strict=True)))
    lowest = min((min(values) for *_, values in series), default=0.0)
    highest = max((max(values) for *_, values in series), default=1.0)
    last = max((epochs[-1] for _, _, epochs, _ in series), default=1)
    y_ticks = MaxNLocator(5).tick_values(lowest, highest)
    x_ticks = [tick for tick in MaxNLocator(6, integer=True).tick_values(1, last) if 1 <= tick <= last]

    def x(epoch: float) -> float:
        return round(LEFT + (epoch - 1) / max(last - 1, 1) * (WIDTH - LEFT - RIGHT), 1)

    def y(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP), 1)

    lines = [
        {
            "run": run,
            "stage": stage,
            "points": [(x(e), y(v)) for e, v in zip(epochs, values, strict=True)],
        }
        for run, stage, epochs, values in series
    ]
    return {
        "heading": heading,
        "lines": lines,
        "x_ticks": [(f"{tick:g}", x(tick)) for tick in x_ticks],
        "y_ticks": [(f"{tick:g}", y(tick)) for tick in y_ticks],
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "floor": HEIGHT - BOTTOM,
    }


def _data_uri(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{_MIME_TYPES[path.suffix]};base64,{data}"
