"""A model measured image by image, at the images' own size, in a file that comparisons read again."""

import csv
import json
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vitseg_zoo.counts import Counts, count_multilabel, count_pixels, scores
from vitseg_zoo.data.images import as_image
from vitseg_zoo.files import atomic_path
from vitseg_zoo.inference.predictor import Predictor

SIDE = 256  # pixels of the longer side of what is kept to be shown
_DAMAGED = (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Evaluation:
    """What a model got right and wrong in each image of a split.

    Args:
        names: Of the images.
        class_names: Of the classes, in the order of the data.
        counts: (images, classes) each.
        confusion: (classes, classes) pixels of all images; rows are the truth, columns the prediction; (0, 0)
            where a pixel may have several classes.
        labels: Of each image the predicted classes, shrunk to `SIDE`.
        margins: Of each image how sure the model is, shrunk likewise: the largest probability less the
            second, from 0 to 255, of several classes a pixel that of the least sure one; empty if they were
            not asked for.
    """

    names: tuple[str, ...]
    class_names: tuple[str, ...]
    counts: Counts
    confusion: np.ndarray
    labels: tuple[np.ndarray, ...]
    margins: tuple[np.ndarray, ...] = ()

    def scores(self) -> dict[str, np.ndarray]:
        """Give the scores of the whole split, from sums over its images; see `vitseg_zoo.counts.scores`."""
        return scores(Counts(*(part.sum(0) for part in self.counts)))

    def image_scores(self) -> dict[str, np.ndarray]:
        """Give the scores of each image: (images,), and (images, classes) of the classes."""
        return scores(self.counts)


def evaluate_images(
    predictor: Predictor,
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    *,
    margins: bool = False,
    use: Callable[[str, np.ndarray | None], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a model on images and masks at their own sizes.

    Args:
        predictor: The model. Where its metadata name the data's classes in another order, they are matched.
        pairs: Images (H, W, 3) and masks (H, W), or (H, W, classes) where their `mode` is "multilabel", with
            `class_names` and `ignore_index`, as `SegmentationFolder` has them.
        margins: Keep how sure the model is of each pixel, too.
        use: Called with each image's name and its margins (H, W) float32, `None` if they are not asked for.
        progress: Called with the number of images that are done, and of all.

    Returns:
        The evaluation.

    Raises:
        ValueError: If the model's classes are not those of the data, or only one of both is multi-label.
    """
    mode = getattr(pairs, "mode", "multiclass")
    if predictor.multilabel != (mode == "multilabel"):
        own = "multilabel" if predictor.multilabel else "multiclass"
        raise ValueError(f"the model is {own}, but the data are {mode}: measure it on data like its own.")
    class_names = tuple(pairs.class_names)  # type: ignore[attr-defined]
    ignore_index = pairs.ignore_index  # type: ignore[attr-defined]
    to_data = match_classes(predictor, class_names)
    classes = len(class_names)
    names, counts, kept, kept_margins = [], [], [], []
    confusion = np.zeros((0, 0) if predictor.multilabel else (classes, classes), np.int64)
    for index in range(len(pairs)):
        image, truth = pairs[index]
        name = image_name(pairs, index)
        prediction = predictor(as_image(image, predictor.channels), probabilities=margins)
        labels = prediction.labels
        if predictor.multilabel:
            labels = labels if to_data is None else labels[..., np.argsort(to_data)]
            counts.append(np.stack(count_multilabel(labels, truth, ignore_index)))
        else:
            labels = labels if to_data is None else to_data[labels]
            counts.append(np.stack(count_pixels(labels, truth, classes, ignore_index)))
            seen = np.ones(truth.shape, bool) if ignore_index is None else truth != ignore_index
            pairs_of_classes = truth[seen].astype(np.int64) * classes + labels[seen]
            confusion += np.bincount(pairs_of_classes, minlength=classes**2).reshape(classes, classes)
        chances = prediction.probabilities
        margin = None if chances is None else _margin(chances, predictor.multilabel)
        names.append(name)
        kept.append(shrink(labels))
        if margin is not None:
            kept_margins.append(shrink((255 * margin).round().astype(np.uint8)))
        if use is not None:
            use(name, margin)
        if progress is not None:
            progress(index + 1, len(pairs))
    stacked = Counts(*np.stack(counts, axis=1))
    return Evaluation(tuple(names), class_names, stacked, confusion, tuple(kept), tuple(kept_margins))


def match_classes(predictor: Predictor, class_names: Sequence[str]) -> np.ndarray | None:
    """Find which class of the data each class of a model is.

    Args:
        predictor: The model, whose metadata may name its classes.
        class_names: Those of the data.

    Returns:
        The data's number of each class of the model, or None where they are in the same order.

    Raises:
        ValueError: If the model has another number of classes, or names of which only some are the data's.
    """
    own = tuple(predictor.metadata.get("class_names") or ())
    known = {name.casefold(): index for index, name in enumerate(class_names)}
    count = predictor.classes or len(class_names)
    if count == 1 and len(class_names) == 2:  # one class and its absence, as `Predictor` numbers them
        return None
    if count != len(class_names):
        raise ValueError(
            f"the model has {count} classes ({_few(own)}), but the data {len(class_names)} "
            f"({_few(class_names)}): measure it on data with its classes."
        )
    found = [known.get(name.casefold()) for name in own]
    if not own or len(known) < len(class_names) or all(index is None for index in found):
        return None  # without a name in common, numbers are all there is
    if None in found or len(set(found)) < len(found):
        raise ValueError(
            f"the model's classes ({_few(own)}) are not those of the data ({_few(class_names)}): give them "
            "the same names, in classes.txt or dataset.yaml."
        )
    order = np.array(found)
    if (order == np.arange(count)).all():
        return None
    return order.astype(np.uint8 if count <= 256 else np.uint16)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + ", ..." * (len(names) > 6) if names else "without names"


def image_name(pairs: Any, index: int) -> str:
    """Name an image of a data set: by its file, if the data set knows it."""
    return pairs.name(index) if hasattr(pairs, "name") else f"image {index}"


def shrink(pixels: np.ndarray) -> np.ndarray:
    """Take every so many pixels of (H, W, ...), so that the longer side has at most `SIDE`."""
    height, width = pixels.shape[:2]
    scale = max(height, width, SIDE) / SIDE
    rows, columns = (
        ((np.arange(max(1, round(side / scale))) + 0.5) * scale).astype(int).clip(max=side - 1)
        for side in (height, width)
    )
    return pixels[rows[:, None], columns]


def _margin(probabilities: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return the largest probability less the second, (classes, H, W) to (H, W); of sigmoids the least."""
    if multilabel or len(probabilities) == 1:
        return np.abs(2 * probabilities - 1).min(0)
    top = np.partition(probabilities, -2, axis=0)[-2:]
    return top[1] - top[0]


def save_evaluation(evaluation: Evaluation, path: Path, about: Mapping[str, Any]) -> None:
    """Write an evaluation as a compressed npz.

    Args:
        evaluation: What to write.
        path: The file.
        about: What it is of, as JSON has it; see `read_evaluation`.
    """
    labels = np.concatenate([part.ravel() for part in evaluation.labels])
    with atomic_path(path) as partial:
        np.savez_compressed(
            partial,
            about=np.array(json.dumps(about, sort_keys=True)),
            names=np.array(evaluation.names),
            class_names=np.array(evaluation.class_names),
            counts=np.stack(evaluation.counts),
            confusion=evaluation.confusion,
            sizes=np.array([part.shape for part in evaluation.labels]),
            labels=labels,
        )


def read_evaluation(path: Path, about: Mapping[str, Any]) -> Evaluation | None:
    """Read what `save_evaluation` wrote.

    Args:
        path: The file.
        about: What it should be of: which file of weights, which data.

    Returns:
        The evaluation without margins, or None if there is none, or one of something else.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            if str(file["about"]) != json.dumps(about, sort_keys=True):
                return None
            sizes = file["sizes"]
            parts = np.split(file["labels"], np.cumsum(sizes.prod(1))[:-1])
            labels = tuple(part.reshape(size) for part, size in zip(parts, sizes, strict=True))
            names, class_names = (tuple(map(str, file[key])) for key in ("names", "class_names"))
            counts, confusion = file["counts"], file["confusion"]
    except _DAMAGED:  # or none: it is measured again
        return None
    if counts.shape != (len(Counts._fields), len(names), len(class_names)) or len(labels) != len(names):
        return None
    return Evaluation(names, class_names, Counts(*counts), confusion, labels)


def write_csv(evaluations: Mapping[str, Evaluation], path: Path) -> None:
    """Write a line for each model and image: its scores, and the IoU of each class.

    Args:
        evaluations: Name of a model -> its evaluation.
        path: The file.
    """
    means = ("pixel_accuracy", "miou", "boundary_iou", "boundary_f1")
    class_names = next(iter(evaluations.values())).class_names
    with atomic_path(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["model", "image", *means, *(f"iou_{name}" for name in class_names)])
        for model, evaluation in evaluations.items():
            found = evaluation.image_scores()
            columns = np.concatenate([np.stack([found[key] for key in means], 1), found["iou"]], 1)
            for name, row in zip(evaluation.names, columns, strict=True):
                writer.writerow([model, name, *("" if np.isnan(value) else f"{value:.5f}" for value in row)])
