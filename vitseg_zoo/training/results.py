"""results.json, the outcome of a training: written once at its end, read to compare trainings."""

import importlib.metadata
import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from vitseg_zoo.files import atomic_path
from vitseg_zoo.terminal import printable
from vitseg_zoo.training.pictures import read_metrics

_PACKAGES = ("vitseg-zoo", "torch", "timm", "segmentation-models-pytorch", "lightning", "albumentations")


def save_results(results: Mapping, path: Path) -> None:
    """Write results as JSON, under a temporary name first; what is no finite number becomes null."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(_without_nan(results), indent=2, allow_nan=False) + "\n")


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_results(path: Path) -> dict[str, Any]:
    """Read what `save_results` wrote; scores that are null, as of a class without pixels, become NaN."""
    results = json.loads(path.read_text())
    for part in results.keys() & {"test_last", "test_best"}:
        results[part] = {
            key: math.nan if score is None else score for key, score in (results[part] or {}).items()
        }
    return results


def training_seconds(metrics: Path) -> float:
    """Return the seconds of a training and its validations, over all of its parts where it was resumed.

    Args:
        metrics: its metrics.csv.
    """
    return round(sum(read_metrics(metrics)["seconds"]), 1)


def versions() -> dict[str, str]:
    """Return the versions of the packages that a training's outcome depends on."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


def command(names_folders: bool = True) -> str:
    """Return the command line of this program, as one would type it again.

    Args:
        names_folders: Whether paths are whole. Without, they are their last names: whoever is given the file
            need not know the folders of who trained.
    """
    program, *words = sys.argv
    if Path(program).name == "ipykernel_launcher.py":
        return "in a notebook"
    if not names_folders:
        program, *words = map(_without_folders, sys.argv)
    start = ["vitseg"] if Path(program).name in ("vitseg", "__main__.py") else ["python", program]
    return shlex.join([*start, *words])


def _without_folders(word: str) -> str:
    r"""Leave out the folders of a path, perhaps behind an option and "="; another word comes back as it is.

    Example:
        >>> [_without_folders(word) for word in ("--data=/home/me/cats", "C:\\me\\cats", "hf-hub:timm/vit")]
        ['--data=cats', 'cats', 'hf-hub:timm/vit']
    """
    option, is_option, value = word.partition("=")
    if is_option and re.fullmatch(r"--[\w-]+", option):
        return f"{option}={_without_folders(value)}"
    if re.match(r"[{\[]|\w[\w-]+:", word):  # JSON, or an address
        return word
    return re.split(r"[/\\]", word.rstrip("/\\"))[-1]


def final_scores(results: Mapping) -> dict[str, float]:
    """Score on the test split: of the epoch with the best validation if they were taken, or of the last."""
    return results.get("test_best") or results["test_last"]


def percent(score: float) -> str:
    """Return a score for a table.

    Example:
        >>> percent(0.7), percent(math.nan)
        ('70.0 %', '-')
    """
    return f"{100 * score:.1f} %" if math.isfinite(score) else "-"


def summary(scores: Mapping[str, float]) -> str:
    """Give the scores of a split in one line: of classes those of a dozen at most.

    Example:
        >>> summary({"loss": 0.3, "pixel_accuracy": 0.9, "miou": 0.75, "iou_pet": 0.7, "iou_rest": 0.8})
        'mIoU 75.0 %, pixel accuracy 90.0 %; IoU of pet 70.0 %, rest 80.0 %'
    """
    classes = [
        f"{key.removeprefix('iou_')} {percent(score)}"
        for key, score in scores.items()
        if key.startswith("iou_")
    ]
    whole = f"mIoU {percent(scores['miou'])}, pixel accuracy {percent(scores['pixel_accuracy'])}"
    return f"{whole}; IoU of {', '.join(classes)}" if 0 < len(classes) <= 12 else whole


def comparison_table(results: Mapping[str, Mapping]) -> tuple[list[str], list[list[str]]]:
    """Return the scores of several trainings as text.

    Args:
        results: name of a training -> its results.json, as `read_results` gives it.

    Returns:
        Names of the columns, and a row for each training.

    Example:
        >>> scores = {"pixel_accuracy": 0.9, "miou": 0.8, "iou_pet": 0.7}
        >>> comparison_table({"U-Net": {"test_last": scores, "parameters": 2_500_000, "seconds": 61.0}})[1]
        [['U-Net', '90.0 %', '80.0 %', '70.0 %', '2.50 M', '61']]
    """
    first = final_scores(next(iter(results.values())))
    columns = {"pixel_accuracy": "pixel accuracy", "miou": "mIoU"}
    columns |= {key: f"IoU {key.removeprefix('iou_')}" for key in first if key.startswith("iou_")}
    rows = []
    for name, result in results.items():
        scores = final_scores(result)
        shares = [percent(scores[key]) for key in columns]
        rows.append([name, *shares, f"{result['parameters'] / 1e6:.2f} M", f"{result['seconds']:.0f}"])
    return ["", *columns.values(), "parameters", "seconds"], rows


def mean_results(results: Sequence[Mapping]) -> dict[str, Any]:
    """Return the outcome of trainings that differ in their seed: mean scores and seconds of processor time.

    Example:
        >>> mean_results([{"test_last": {"miou": m}, "cpu_seconds": 1.0} for m in (0.5, 1.0)])["test_last"]
        {'miou': 0.75}
    """
    scores = {key: mean(r["test_last"][key] for r in results) for key in results[0]["test_last"]}
    return {**results[0], "test_last": scores, "seconds": mean(r["cpu_seconds"] for r in results)}


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown: names to the left, numbers to the right.

    Example:
        >>> print(markdown_table(["", "mIoU"], [["U-Net", "80.0 %"]]), end="")
        |  | mIoU |
        | --- | ---: |
        | U-Net | 80.0 % |
    """
    head, *rows = ([printable(cell).replace("|", "\\|") for cell in row] for row in (head, *rows))
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def text_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table as text: names to the left, numbers to the right."""
    head, *rows = ([printable(cell) for cell in row] for row in (head, *rows))
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        for row in (head, *rows)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
