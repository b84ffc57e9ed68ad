"""Charts of a comparison, placed in the units of an SVG: curves over epochs, and accuracy against a cost."""

import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

PANELS = {"loss": "Loss", "miou": "mIoU"}
# Of a chart, in the units of its SVG.
WIDTH, HEIGHT = 340, 230
LEFT, RIGHT, TOP, BOTTOM = 40, 20, 12, 36


def _frame() -> dict[str, Any]:
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "floor": HEIGHT - BOTTOM,
        "middle": (TOP + HEIGHT - BOTTOM) / 2,
    }


def _across(value: float, low: float, high: float) -> float:
    return round(LEFT + (value - low) / ((high - low) or 1) * (WIDTH - LEFT - RIGHT), 1)


def _up(value: float, low: float, high: float) -> float:
    return round(HEIGHT - BOTTOM - (value - low) / ((high - low) or 1) * (HEIGHT - BOTTOM - TOP), 1)


def curves(heading: str, metric: str, models: Sequence[Sequence[Mapping[str, list[float]]]]) -> dict | None:
    """Place the curves of one metric: a line for each run, training dashed, validation solid.

    Args:
        heading: Of the chart.
        metric: As in metrics.csv, without `train_` or `val_`.
        models: For each model the metrics of its runs, as `read_metrics` gives them.

    Returns:
        What the template draws; None if no run has the metric.
    """
    series: list[tuple[int, str, list[tuple[float, float]]]] = []
    for number, runs in enumerate(models):
        for columns in runs:
            for stage in ("train", "val"):
                values = columns.get(f"{stage}_{metric}", [])
                points = [
                    (epoch + 1, value)
                    for epoch, value in zip(columns.get("epoch", []), values, strict=False)
                    if math.isfinite(value)
                ]
                if points:
                    series.append((number, stage, points))
    if not series:
        return None
    everything = [value for *_, points in series for _, value in points]
    y_ticks = MaxNLocator(5).tick_values(min(everything), max(everything))
    last = max(points[-1][0] for *_, points in series)
    x_ticks = [tick for tick in MaxNLocator(6, integer=True).tick_values(1, last) if 1 <= tick <= last]
    return {
        **_frame(),
        "heading": heading,
        "x_label": "epoch",
        "x_ticks": [(f"{tick:g}", _across(tick, 1, last)) for tick in x_ticks],
        "y_ticks": [(f"{tick:g}", _up(tick, y_ticks[0], y_ticks[-1])) for tick in y_ticks],
        "lines": [
            {
                "model": number,
                "stage": stage,
                "points": [(_across(x, 1, last), _up(y, y_ticks[0], y_ticks[-1])) for x, y in points],
            }
            for number, stage, points in series
        ],
        "ends": _apart(
            {
                number: _up(fmean(ends), y_ticks[0], y_ticks[-1])
                for number in range(len(models))
                if (ends := [points[-1][1] for n, stage, points in series if (n, stage) == (number, "val")])
            }
        ),
    }


def _apart(heights: dict[int, float], gap: float = 12) -> dict[int, float]:
    """Move numbers at the ends of curves so far apart that each can be read, and none out of the chart."""
    order = sorted(heights, key=lambda number: heights[number])
    placed = dict(heights)
    for above, below in itertools.pairwise(order):
        placed[below] = max(placed[below], placed[above] + gap)
    over = max([placed[number] for number in order[-1:]], default=0) - (HEIGHT - BOTTOM)
    return {number: round(height - max(over, 0), 1) for number, height in placed.items()}


def against_cost(heading: str, x_label: str, costs: Sequence[float], scores: Sequence[float]) -> dict:
    """Place models by what they cost, on a logarithmic axis, and their mIoU in percent.

    Args:
        heading: Of the chart.
        x_label: What is paid.
        costs: Of each model, above 0.
        scores: Of each model.

    Returns:
        What the template draws.
    """
    low, high = math.log10(min(costs)), math.log10(max(costs))
    room = max(0.12 * (high - low), 0.15)
    low, high = low - room, high + room
    ticks = LogLocator(subs=(1, 2, 5)).tick_values(10**low, 10**high)
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    y_ticks = MaxNLocator(5).tick_values(min(scores) - 1, max(scores) + 1)
    return {
        **_frame(),
        "heading": heading,
        "x_label": x_label,
        "x_ticks": [(f"{tick:g}", _across(math.log10(tick), low, high)) for tick in ticks],
        "y_ticks": [(f"{tick:g}", _up(tick, y_ticks[0], y_ticks[-1])) for tick in y_ticks],
        "points": [
            (_across(math.log10(cost), low, high), _up(score, y_ticks[0], y_ticks[-1]))
            for cost, score in zip(costs, scores, strict=True)
        ],
    }
