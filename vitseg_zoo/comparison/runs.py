"""Trainings in their folders: those that differ in nothing but their seed are one model."""

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitseg_zoo.training.pictures import read_metrics
from vitseg_zoo.training.results import read_results

# What a training leaves, what is best first.
_WEIGHTS = (
    "model.safetensors",
    "best.safetensors",
    "checkpoints/best.ckpt",
    "last.safetensors",
    "checkpoints/last.ckpt",
)
# Options that make no other model.
_NO_MODEL = {
    *("out", "data", "resume", "seed", "num_workers", "devices", "num_nodes", "strategy"),
    *("compile", "grad_checkpointing"),
}


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        folder: Its `--out`.
        results: Its results.json.
    """

    folder: Path
    results: dict[str, Any]

    @property
    def weights(self) -> Path:
        """The file of the trained model: that of the best epoch, where one was selected.

        Raises:
            FileNotFoundError: If there is none.
        """
        for name in _WEIGHTS:
            if (self.folder / name).is_file():
                return self.folder / name
        raise FileNotFoundError(f"{self.folder} has no weights: neither {' nor '.join(_WEIGHTS)}.")

    @property
    def model(self) -> str:
        """Architecture and encoder, as "unet:resnet18", or "segnet" where both have one name."""
        arch, encoder = (str(self.results.get(key, "?")) for key in ("arch", "encoder_name"))
        return arch if arch == encoder else f"{arch}:{encoder}"

    @property
    def options(self) -> dict[str, Any]:
        """What it was trained with, without what makes no other model."""
        config = self.results.get("config", {})
        return {key: value for key, value in config.items() if key not in _NO_MODEL}

    @property
    def seed(self) -> int:
        """Of its randomness."""
        seed = self.results.get("config", {}).get("seed", 0)
        return seed if isinstance(seed, int) else 0

    def metrics(self) -> dict[str, list[float]]:
        """Read metrics.csv: name of a column -> a value for each epoch."""
        path = self.folder / "metrics.csv"
        return read_metrics(path) if path.is_file() else {}


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read trainings.

    Args:
        paths: Their folders, or folders of such.

    Raises:
        FileNotFoundError: If one holds no finished training.
        ValueError: If a results.json is damaged.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        folders = [path] if _is_run(path) else sorted(filter(_is_run, path.glob("*/")))
        if not folders:
            raise FileNotFoundError(f"{path} is no finished training, nor a folder of such: no results.json.")
        for folder in folders:
            runs.setdefault(folder.resolve(), Run(folder, _read(folder / "results.json")))
    return list(runs.values())


def _is_run(folder: Path) -> bool:
    return (folder / "results.json").is_file()


def _read(path: Path) -> dict[str, Any]:
    try:
        results = read_results(path)
        if not isinstance(results.get("config", {}), dict):
            raise ValueError("its config is no object")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is no results.json of a training: {error}.") from error
    return results


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Put runs together that differ in nothing but their seed.

    Returns:
        Name -> runs, by seed. Names are those of architecture and encoder; where these are trained in several
        ways, what differs is added.
    """
    groups: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        groups[json.dumps([run.model, run.options, run.seed if not run.options else None])].append(run)
    by_model: dict[str, list[list[Run]]] = defaultdict(list)
    for group in groups.values():
        by_model[group[0].model].append(sorted(group, key=lambda run: run.seed))
    named: dict[str, list[Run]] = {}
    for model, variants in by_model.items():
        options = [group[0].options for group in variants]
        keys = list(dict.fromkeys(key for one in options for key in one))
        differing = [key for key in keys if any(one.get(key) != options[0].get(key) for one in options)]
        for group, one in zip(variants, options, strict=True):
            # Of several recipes, too much differs to be said in a name.
            said = f", {group[0].folder.name}" if any(set(one) != set(keys) for one in options) else ""
            said = said or "".join(f", {key} {one[key]}" for key in differing)
            named[model + said] = group
    return named
