"""The report of a comparison: tables for Markdown, and one HTML page that needs no other file."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import jinja2
import numpy as np

from vitseg_zoo.comparison import charts, pictures
from vitseg_zoo.comparison.bootstrap import DRAWS, LEVEL, MEANS, interval, resample
from vitseg_zoo.comparison.cost import Cost
from vitseg_zoo.comparison.evaluation import Evaluation
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.files import atomic_path
from vitseg_zoo.training.results import markdown_table, text_table

COLORS = 8  # models that the page has colors for; numbers tell all apart
SHOWN = 6  # images of each kind
_MOST_CLASSES = 20  # of a confusion matrix
_LARGEST_GIF = 12 * 2**20  # bytes
_NAMES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixel accuracy",
    "boundary_iou": "boundary IoU",
    "boundary_f1": "boundary F1",
}


@dataclass(frozen=True)
class Model:
    """One model of a comparison.

    Args:
        name: What to call it.
        evaluations: One for each seed, all of the same images.
        runs: The trainings, in the same order; empty where there was none.
        cost: What it costs here, if that was measured.
    """

    name: str
    evaluations: Sequence[Evaluation]
    runs: Sequence[Run] = ()
    cost: Cost | None = None

    def values(self, key: str) -> list[float]:
        """Give a score of each seed."""
        return [float(evaluation.scores()[key]) for evaluation in self.evaluations]

    def per_class(self, key: str) -> np.ndarray:
        """Give scores of the classes, means over the seeds."""
        return np.mean([evaluation.scores()[key] for evaluation in self.evaluations], axis=0)


def what_was_seen(models: Sequence[Model]) -> str:
    """Say in a sentence which model was best, in how much time, and how far behind the others were.

    Args:
        models: Two or more, each with its training.
    """
    miou = {model.name: mean(model.values("miou")) for model in models}
    best, *others = sorted(miou, key=lambda name: -miou[name])
    trainings = [model.runs[0].results for model in models]
    low, high = (round(pick(results["seconds"] for results in trainings)) for pick in (min, max))
    time_each = f"{low} seconds" if low == high else f"{low} to {high} seconds"
    behind = [f"{name} ({100 * miou[name]:.1f})" for name in others]
    return (
        f"After {time_each} of training each on {trainings[0]['hardware']}, {best} was best with a mean IoU "
        f"of {100 * miou[best]:.1f} %, before {', '.join(behind[:-1])} and {behind[-1]}."
    )


@dataclass(frozen=True)
class Table:
    """Rows of text under a head, the first column a name."""

    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ""
    # Of each column the row with the best value.
    best: dict[int, int] = field(default_factory=dict)


class Comparison:
    """Scores, intervals and tables of several models, or of one.

    Args:
        models: The models; they are put in order, the highest mIoU first.
        data: What they were measured on, in words.
    """

    def __init__(self, models: Sequence[Model], data: str) -> None:
        self.models = sorted(models, key=lambda model: -np.nan_to_num(mean(model.values("miou"))))
        self.data = data
        self.images = len(models[0].evaluations[0].names)
        self.class_names = models[0].evaluations[0].class_names
        resampled = resample({model.name: model.evaluations for model in self.models})
        best = resampled[self.models[0].name]["miou"]
        self.intervals = {
            name: {key: interval(values) for key, values in scores.items()}
            for name, scores in resampled.items()
        }
        self.behind = {name: interval(scores["miou"] - best) for name, scores in resampled.items()}

    def tables(self) -> list[Table]:
        """Make all tables: scores, IoU of classes, cost."""
        return [self._scores(), *self._classes(), *self._cost()]

    def _scores(self) -> Table:
        several = len(self.models) > 1
        head = ["model", "mIoU", f"{LEVEL:.0%} interval"] + [f"to the best ({LEVEL:.0%})"] * several
        head += [_NAMES[key] for key in MEANS[1:]]
        seeds = max(len(model.evaluations) for model in self.models)
        head += ["seeds"] * (seeds > 1)
        leader = mean(self.models[0].values("miou"))
        rows = []
        for model in self.models:
            miou = mean(model.values("miou"))
            row = [model.name, _spread(model.values("miou")), _range(*self.intervals[model.name]["miou"])]
            if several:
                low, high = self.behind[model.name]
                is_first = model is self.models[0]
                row.append("" if is_first else f"{_signed(miou - leader)} ({_range(low, high, signed=True)})")
            row += [_spread(model.values(key)) for key in MEANS[1:]]
            rows.append(row + [str(len(model.evaluations))] * (seeds > 1))
        first = len(head) - 3 - (seeds > 1)
        columns = {1: "miou", **{first + at: key for at, key in enumerate(MEANS[1:])}}
        best = {at: int(np.argmax([mean(m.values(key)) for m in self.models])) for at, key in columns.items()}
        note = (
            f"Percent, from sums over all pixels of {self.images} images at their own size. "
            f"An interval holds {LEVEL:.0%} of {DRAWS} resamplings of these images"
        )
        note += (
            ", the same for all models: a difference whose interval holds 0 may be the images' alone. "
            * several
        )
        note += "" if several else ". "
        note += "± is the standard deviation over seeds." if seeds > 1 else ""
        return Table("Scores", head, rows, note.strip(), best if several else {})

    def _classes(self) -> list[Table]:
        titles = {"iou": "IoU", "class_boundary_iou": "boundary IoU", "class_boundary_f1": "boundary F1"}
        # (classes, models) of each score
        values = {key: np.stack([model.per_class(key) for model in self.models], 1) for key in titles}
        if len(self.models) == 1:
            rows = np.concatenate(list(values.values()), 1)
            return [Table("Classes", ["class", *titles.values()], self._by_class(rows))]
        names = [model.name for model in self.models]
        return [
            Table(
                f"{title[0].upper()}{title[1:]} of each class", ["class", *names], self._by_class(values[key])
            )
            for key, title in titles.items()
        ]

    def _by_class(self, values: np.ndarray) -> list[list[str]]:
        return [
            [name, *(_percent(value) for value in row)]
            for name, row in zip(self.class_names, values, strict=True)
        ]

    def _cost(self) -> list[Table]:
        if not any(model.cost or model.runs for model in self.models):
            return []
        hardware = next((model.cost.hardware for model in self.models if model.cost), "")
        head, rows = ["model", "parameters", "GMACs", "latency", "memory"], []
        trained = any(model.runs for model in self.models)
        for model in self.models:
            cost = model.cost
            row = [model.name]
            row += (
                [
                    f"{cost.parameters / 1e6:.2f} M",
                    f"{cost.macs / 1e9:.2f}",
                    f"{1e3 * cost.seconds:.1f} ms",
                    f"{cost.bytes / 1e6:.{0 if cost.bytes >= 1e7 else 1}f} MB",
                ]
                if cost
                else ["-"] * 4
            )
            if trained:
                times = [run.results.get("seconds") for run in model.runs]
                known = [seconds for seconds in times if isinstance(seconds, int | float)]
                row.append(_duration(mean(known)) if known else "-")
            rows.append(row)
        note = (
            f"Of one image, from pixels to labels at its own size, on {hardware}. Latency is the median of "
            f"several runs{', in turn with the other models' * (len(self.models) > 1)}, memory that of all "
            "tensors but the weights."
        )
        if trained:
            head.append("training")
            note += " Training is the mean time of a run, on the machine that it ran on."
        return [Table("Cost", head, rows, note)]

    def markdown(self) -> str:
        """Give all tables as Markdown."""
        parts = [f"{self.data}\n"]
        for table in self.tables():
            text = markdown_table(
                [_cell(t) for t in table.head], [[_cell(t) for t in row] for row in table.rows]
            )
            parts.append(f"{table.title}\n\n{text}" + (f"\n{table.note}\n" if table.note else ""))
        return "\n".join(parts)

    def text(self) -> str:
        """Give scores and cost for a terminal."""
        shown = [table for table in self.tables() if table.head[0] == "model"]
        return "\n\n".join(text_table(table.head, table.rows) for table in shown)


def write_report(
    comparison: Comparison, pairs: Sequence[tuple[np.ndarray, np.ndarray]], path: Path, title: str
) -> None:
    """Write the page.

    Args:
        comparison: What to show.
        pairs: The images and masks that the models were measured on.
        path: The file.
        title: Its headline.
    """
    models, tiles = comparison.models, pictures.Tiles(pairs)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vitseg_zoo", "comparison"),
        autoescape=True,  # names are anybody's
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    firsts = [model.evaluations[0] for model in models]
    metrics = [[run.metrics() for run in model.runs] for model in models]
    gif = pictures.training_gif({model.name: model.runs[0] for model in models if model.runs})
    scores, *classes_and_cost = comparison.tables()
    html = environment.get_template("report.html.jinja").render(
        title=title,
        data=comparison.data,
        names=[model.name for model in models],
        colors=COLORS,
        scores=scores,
        ranges=_ranges(comparison),
        classes=[table for table in classes_and_cost if table.title != "Cost"],
        cost=next((table for table in classes_and_cost if table.title == "Cost"), None),
        scatter=_scatter(models),
        curves=[
            chart
            for metric, heading in charts.PANELS.items()
            if (chart := charts.curves(heading, metric, metrics)) is not None
        ],
        palette=[
            (name, "#{:02x}{:02x}{:02x}".format(*rgb))
            for name, rgb in zip(comparison.class_names, pairs.palette, strict=True)  # type: ignore[attr-defined]
        ],
        disputed=[
            {
                "name": firsts[0].names[index],
                "share": f"{100 * share:.1f} %",
                "image": tiles.image(index),
                "truth": tiles.truth(index),
                "models": [tiles.labels(evaluation.labels[index]) for evaluation in firsts],
            }
            for index, share in pictures.most_disputed(firsts, SHOWN)
        ],
        worst=[
            [
                _shown(tiles, model.evaluations[0], *found)
                for found in pictures.worst(model.evaluations, SHOWN)
            ]
            for model in models
        ],
        has_seeds=any(len(model.evaluations) > 1 for model in models),
        has_margins=any(evaluation.margins for evaluation in firsts),
        confusions=[_confusion(model) for model in models if model.evaluations[0].confusion.size],
        multilabel=not firsts[0].confusion.size,
        gif=None
        if gif is None or len(gif) > _LARGEST_GIF
        else f"data:image/gif;base64,{base64.b64encode(gif).decode('ascii')}",
        runs=[(model.name, run.folder.name, _facts(run)) for model in models for run in model.runs],
    )
    with atomic_path(path) as partial:
        partial.write_text(html, encoding="utf-8", errors="backslashreplace")


def _shown(tiles: pictures.Tiles, evaluation: Evaluation, index: int, miou: float) -> dict[str, Any]:
    labels = evaluation.labels[index]
    found = {
        "name": evaluation.names[index],
        "miou": f"{100 * miou:.1f} %",
        "image": tiles.image(index),
        "truth": tiles.truth(index),
        "prediction": tiles.labels(labels),
        "errors": tiles.errors(index, labels),
    }
    if evaluation.margins:
        found["margins"] = pictures.data_uri(pictures.show_margins(evaluation.margins[index]))
    return found


def _ranges(comparison: Comparison) -> dict[str, Any]:
    """Place each model's mIoU, its interval and its seeds between the lowest and the highest of all."""
    bounds = [comparison.intervals[model.name]["miou"] for model in comparison.models]
    values = [model.values("miou") for model in comparison.models]
    everything = [value for part in (*bounds, *values) for value in part]
    low, high = np.floor(100 * min(everything)), np.ceil(100 * max(everything))

    def at(value: float) -> float:
        return round(float((100 * value - low) / ((high - low) or 1) * 100), 2)

    return {
        "low": f"{low:.0f} %",
        "high": f"{high:.0f} %",
        "rows": [
            {
                "left": at(lower),
                "width": round(at(upper) - at(lower), 2),
                "mean": at(mean(seeds)),
                "seeds": [*map(at, seeds)],
            }
            for (lower, upper), seeds in zip(bounds, values, strict=True)
        ],
    }


def _scatter(models: Sequence[Model]) -> list[dict]:
    if len(models) < 2 or not all(model.cost for model in models):
        return []
    scores = [100 * mean(model.values("miou")) for model in models]
    costs = [model.cost for model in models if model.cost]
    return [
        charts.against_cost(
            "mIoU against latency", "ms an image", [1e3 * cost.seconds for cost in costs], scores
        ),
        charts.against_cost(
            "mIoU against multiply-adds", "GMACs", [cost.macs / 1e9 for cost in costs], scores
        ),
    ]


def _confusion(model: Model) -> dict[str, Any]:
    """Give what the pixels of each class were taken for, in percent of the class, over all seeds."""
    total = np.sum([evaluation.confusion for evaluation in model.evaluations], axis=0)
    names = model.evaluations[0].class_names
    shares = 100 * total / np.maximum(total.sum(1, keepdims=True), 1)
    off = total - np.diag(np.diag(total))
    largest = np.argsort(-off.ravel(), kind="stable")[:12]
    return {
        "names": names,
        "rows": [[round(float(value), 1) for value in row] for row in shares]
        if len(names) <= _MOST_CLASSES
        else [],
        "largest": [
            (names[at // len(names)], names[at % len(names)], f"{shares.ravel()[at]:.1f} %")
            for at in largest
            if off.ravel()[at]
        ],
    }


def _facts(run: Run) -> list[tuple[str, str]]:
    results = run.results
    keys = ("epochs", "precision", "hardware", "command")
    facts = [(key, str(results[key])) for key in keys if key in results]
    facts.append(("weights", run.weights.relative_to(run.folder).as_posix()))
    if isinstance(versions := results.get("versions"), dict):
        facts.append(("versions", ", ".join(f"{package} {version}" for package, version in versions.items())))
    return facts


def _spread(values: Sequence[float]) -> str:
    text = _percent(mean(values))
    return f"{text} ± {100 * stdev(values):.1f}" if len(values) > 1 and text != "-" else text


def _percent(value: float) -> str:
    return f"{100 * value:.1f}" if np.isfinite(value) else "-"


def _range(low: float, high: float, signed: bool = False) -> str:
    return " to ".join(_signed(value) if signed else f"{100 * value:.1f}" for value in (low, high))


def _signed(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:+.1f}"  # no -0.0


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def _cell(text: str) -> str:
    """Escape what would end a cell of a Markdown table, or be a tag in it."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
