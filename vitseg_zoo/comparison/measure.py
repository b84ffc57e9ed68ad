"""Trainings measured on the data that they were trained for; what is known already is read again."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitseg_zoo.comparison.cost import measure_costs
from vitseg_zoo.comparison.evaluation import Evaluation, evaluate_images, read_evaluation, save_evaluation
from vitseg_zoo.comparison.report import Model
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.data.origin import open_origin, open_split, origin_of
from vitseg_zoo.inference.predictor import Predictor

FILE = "evaluation.npz"  # in a run's folder


def open_data(runs: Sequence[Run], data: Path | None = None, split: str | None = None) -> Any:
    """Open the images that runs are measured on.

    Args:
        runs: Trainings.
        data: A folder; by default what the trainings say that they were measured on. It is read as they read
            theirs, or else as `open_split` does.
        split: Its part; by default theirs.

    Raises:
        ValueError: If the trainings were measured on different images, or do not say on which.
        FileNotFoundError: If the images are not there.
    """
    changes = {"path": str(data.expanduser())} if data else {}
    changes |= {"split": split} if split else {}
    origins = {
        json.dumps(run.results["measured_on"] | changes, sort_keys=True): run
        for run in runs
        if isinstance(run.results.get("measured_on"), dict)
    }
    if len(origins) == 1:
        ((origin, run),) = origins.items()
        try:
            return open_origin(json.loads(origin))
        except (FileNotFoundError, ValueError) as error:
            if data is None:
                raise ValueError(
                    f"the data of {run.folder} cannot be read: {error} Say by --data where they are."
                ) from error
    if data is not None:
        return open_split(data, split)
    if not origins:
        raise ValueError(f"{runs[0].folder} does not say what it was measured on: say --data DIR.")
    places = ", ".join(f"{run.folder} ({origin})" for origin, run in origins.items())
    raise ValueError(f"these trainings were measured on different images, say --data DIR: {places}.")


def measure(
    groups: Mapping[str, Sequence[Run]],
    pairs: Any,
    say: Callable[[str], None],
    progress: Callable[[], Callable[[int, int], None]],
    device: str | torch.device = "auto",
) -> list[Model]:
    """Measure trainings: what they get right, and what they cost.

    Args:
        groups: Name of a model -> its trainings, one for each seed.
        pairs: What `open_data` opened.
        say: Is told what is done.
        progress: Makes what `evaluate_images` takes.
        device: As of `Predictor`.

    Returns:
        The models of a `Comparison`.
    """
    evaluations: dict[str, list[Evaluation]] = {}
    for name, runs in groups.items():
        for run in runs:
            evaluation = _evaluation(run, pairs, say, progress, device)
            if name in evaluations:  # pictures are of the first seed
                evaluation = replace(evaluation, labels=())
            evaluations.setdefault(name, []).append(evaluation)
    say("measuring what they cost")
    predictors = {name: Predictor(runs[0].weights, device) for name, runs in groups.items()}
    costs = measure_costs(predictors, pairs[0][0])
    return [Model(name, evaluations[name], runs, costs[name]) for name, runs in groups.items()]


def _evaluation(
    run: Run,
    pairs: Any,
    say: Callable[[str], None],
    progress: Callable[[], Callable[[int, int], None]],
    device: str | torch.device,
) -> Evaluation:
    """Read the evaluation of a run, or make it."""
    weights = run.weights
    state = weights.stat()
    about = {
        "weights": [weights.relative_to(run.folder).as_posix(), state.st_size, state.st_mtime_ns],
        "data": [origin_of(pairs), len(pairs), list(pairs.class_names)],
    }
    known = read_evaluation(run.folder / FILE, about)
    if known is not None:
        return known
    say(f"measuring {run.folder} on {len(pairs)} images")
    evaluation = evaluate_images(Predictor(weights, device), pairs, progress=progress())
    save_evaluation(evaluation, run.folder / FILE, about)
    return evaluation
