"""How far scores, and differences of scores, would move on other images of the same kind: a paired bootstrap.

B. Efron: Bootstrap methods: another look at the jackknife, 1979. Images are drawn with repetition, the same
for all models; a score is that of the sums over what was drawn, and not a mean over images.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from vitseg_zoo.comparison.evaluation import Evaluation
from vitseg_zoo.counts import Counts, scores

DRAWS = 2000
LEVEL = 0.95
MEANS = ("miou", "pixel_accuracy", "boundary_iou", "boundary_f1")


def resample(
    models: Mapping[str, Sequence[Evaluation]], draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, np.ndarray]]:
    """Compute the scores of models on resampled images.

    Args:
        models: Name of a model -> its evaluations, one for each seed, all of the same images.
        draws: How often.
        seed: Of the drawing.

    Returns:
        Name of a model -> each score of `MEANS` -> its values (draws,), means over the seeds.
    """
    images = len(next(iter(models.values()))[0].names)
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=draws)
    return {name: _mean_scores(evaluations, drawn) for name, evaluations in models.items()}


def _mean_scores(evaluations: Sequence[Evaluation], drawn: np.ndarray) -> dict[str, np.ndarray]:
    found = []
    for evaluation in evaluations:
        # (images, 12 * classes); sums of products of float64 are exact here.
        flat = np.stack(evaluation.counts, 1).reshape(len(evaluation.names), -1).astype(np.float64)
        sums = (drawn.astype(np.float64) @ flat).reshape(len(drawn), len(Counts._fields), -1)
        found.append(scores(Counts(*sums.swapaxes(0, 1))))
    return {key: np.mean([one[key] for one in found], axis=0) for key in MEANS}


def interval(values: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """Return the range that holds the middle part of values.

    Example:
        >>> interval(np.arange(101.0), level=0.5)
        (25.0, 75.0)
    """
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
