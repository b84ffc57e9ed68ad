"""What a prediction has right and wrong in an image, as counts that may be summed: areas, bands, contours.

Sums over the images of a split give the scores that are published: mIoU from one confusion matrix, boundary
IoU (B. Cheng et al., Boundary IoU: Improving Object-Centric Image Segmentation Evaluation, CVPR 2021,
arXiv:2103.16562) and boundary F1 (G. Csurka et al., What is a good evaluation measure for semantic
segmentation?, BMVC 2013; there averaged over images). Sums over images drawn with repetition give the scores
of a resampled split, which is what a bootstrap needs.
"""

from typing import NamedTuple

import cv2
import numpy as np

# Shares of the image's diagonal: the band's width of Cheng et al., the tolerance of Csurka et al.
BAND = 0.02
TOLERANCE = 0.0075


class Counts(NamedTuple):
    """Numbers of pixels, (..., classes) each; `np.stack(counts)` is one array, `Counts(*array)` the way back.

    Attributes:
        right: Of a class, and predicted as it.
        predicted: Predicted as a class.
        true: Of a class.
        band_right: In the class's band in the truth as well as in the prediction, and so right.
        band_predicted: In the band of the predicted class: near another class or the image's edge.
        band_true: The same of the truth.
        contour_predicted: On the contour of the predicted class: beside another class.
        contour_predicted_near: Of these, those near the class's contour in the truth.
        contour_true: On the contour of the class in the truth.
        contour_true_near: Of these, those near the class's contour in the prediction.
        agreed: Decisions that are right: `right`; where a pixel may have several classes, all of whether the
            class is there.
        decided: All decisions: `true`; where a pixel may have several classes, all pixels.
    """

    right: np.ndarray
    predicted: np.ndarray
    true: np.ndarray
    band_right: np.ndarray
    band_predicted: np.ndarray
    band_true: np.ndarray
    contour_predicted: np.ndarray
    contour_predicted_near: np.ndarray
    contour_true: np.ndarray
    contour_true_near: np.ndarray
    agreed: np.ndarray
    decided: np.ndarray


def count_pixels(
    prediction: np.ndarray, truth: np.ndarray, classes: int, ignore_index: int | None = None
) -> Counts:
    """Compare a prediction with the truth.

    Args:
        prediction: (H, W) class indices.
        truth: (H, W) class indices or `ignore_index`.
        classes: Number of classes.
        ignore_index: Value of `truth` where there is no label. Such pixels count nowhere, nor does their edge
            make a boundary.

    Returns:
        (classes,) int64 each.

    Raises:
        ValueError: If the two are not of the same size, or there is a class beyond `classes`.

    Example:
        >>> truth = np.array([[0, 0, 1, 1]] * 4)
        >>> counts = count_pixels(np.array([[0, 1, 1, 1]] * 4), truth, classes=2)
        >>> counts.right, counts.predicted, counts.true
        (array([4, 8]), array([ 4, 12]), array([8, 8]))
    """
    if prediction.shape != truth.shape:
        raise ValueError(
            f"prediction and truth should be of one size, got {prediction.shape}, {truth.shape}."
        )
    ignored = np.zeros(truth.shape, bool) if ignore_index is None else truth == ignore_index
    # Small unsigned numbers, as OpenCV takes them; pixels without a label get the one behind the classes.
    labels = [np.where(ignored, classes, labels) for labels in (prediction, truth)]
    for name, values in zip(("prediction", "truth"), labels, strict=True):
        if values.min(initial=0) < 0 or values.max(initial=0, where=~ignored) >= classes:
            raise ValueError(f"{name} should have classes from 0 to {classes - 1}, not {values.max()}.")
    predicted, true = (values.astype(np.uint8 if classes < 255 else np.uint16) for values in labels)

    diagonal = float(np.hypot(*truth.shape))
    width, tolerance = (max(1, round(share * diagonal)) for share in (BAND, TOLERANCE))
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    bands, contours = [], []
    for values in (predicted, true):
        band = _differs(values, ignored, square)
        for edge in (band[:width], band[-width:], band[:, :width], band[:, -width:]):
            edge[:] = True
        bands.append(band & ~ignored)
        contours.append(_differs(values, ignored, cross) & ~ignored)

    def count(values: np.ndarray, where: np.ndarray) -> np.ndarray:
        return np.bincount(values[where], minlength=classes + 1)[:classes]

    same = predicted == true
    near = [np.zeros(classes, np.int64), np.zeros(classes, np.int64)]
    counted = [count(values, line) for values, line in zip((predicted, true), contours, strict=True)]
    for index in np.flatnonzero(counted[0] * counted[1]):
        lines = [line & (values == index) for values, line in zip((predicted, true), contours, strict=True)]
        for side in (0, 1):
            near[side][index] = np.count_nonzero(lines[side] & _within(tolerance, lines[1 - side]))
    right, all_true = count(true, same), count(true, ~ignored)
    return Counts(
        right,
        count(predicted, ~ignored),
        all_true,
        count(true, same & bands[0] & bands[1]),
        count(predicted, bands[0]),
        count(true, bands[1]),
        counted[0],
        near[0],
        counted[1],
        near[1],
        right,
        all_true,
    )


def count_multilabel(prediction: np.ndarray, truth: np.ndarray, ignore_index: int | None = None) -> Counts:
    """Compare a prediction with the truth where a pixel may have several classes, each class by itself.

    Args:
        prediction: (H, W, classes) of 0 and 1.
        truth: (H, W, classes) of 0 and 1, or `ignore_index`.
        ignore_index: See `count_pixels`.

    Returns:
        (classes,) int64 each.

    Example:
        >>> truth = np.ones((4, 4, 2), np.uint8)
        >>> counts = count_multilabel(np.stack([truth[..., 0], truth[..., 0] * 0], 2), truth)
        >>> counts.right, counts.agreed, counts.decided
        (array([16,  0]), array([16,  0]), array([16, 16]))
    """
    layers = zip(np.moveaxis(prediction, 2, 0), np.moveaxis(truth, 2, 0), strict=True)
    parts = [np.stack(count_pixels(*layer, classes=2, ignore_index=ignore_index)) for layer in layers]
    absent, present = (Counts(*np.stack(parts, axis=2)[:, index]) for index in (0, 1))
    return present._replace(agreed=absent.right + present.right, decided=absent.true + present.true)


def _differs(labels: np.ndarray, ignored: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Tell where there is another label under the kernel, for all classes at once: (H, W) bool."""
    highest = cv2.dilate(np.where(ignored, 0, labels).astype(labels.dtype), kernel)
    lowest = cv2.erode(np.where(ignored, np.iinfo(labels.dtype).max, labels).astype(labels.dtype), kernel)
    return highest != lowest


def _within(distance: int, line: np.ndarray) -> np.ndarray:
    """Tell which pixels are at most so far from a line: (H, W) bool."""
    away = cv2.distanceTransform((~line).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return away <= distance + 1e-3


def scores(counts: Counts) -> dict[str, np.ndarray]:
    """Compute scores of counts, of one image or of sums over many.

    Args:
        counts: (..., classes) each.

    Returns:
        `pixel_accuracy`, `miou`, `boundary_iou` and `boundary_f1` (...), the last three means over the
        classes that occur in the truth or the prediction; `iou`, `class_boundary_iou` and
        `class_boundary_f1` (..., classes), NaN for a class that occurs in neither.

    Example:
        >>> truth = np.array([[0, 0, 1, 1]] * 4)
        >>> result = scores(count_pixels(np.array([[0, 1, 1, 1]] * 4), truth, classes=2))
        >>> result["iou"], round(float(result["miou"]), 3)
        (array([0.5       , 0.66666667]), 0.583)
    """
    c = Counts(*(np.asarray(part, np.float64) for part in counts))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0 is NaN: the class does not occur
        per_class = {
            "iou": c.right / (c.predicted + c.true - c.right),
            "class_boundary_iou": c.band_right / (c.band_predicted + c.band_true - c.band_right),
        }
        precision = c.contour_predicted_near / np.maximum(c.contour_predicted, 1)
        recall = c.contour_true_near / np.maximum(c.contour_true, 1)
        f1 = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
        per_class["class_boundary_f1"] = np.where(c.contour_predicted + c.contour_true > 0, f1, np.nan)
        accuracy = c.agreed.sum(-1) / c.decided.sum(-1)
        means = {name: np.nansum(part, -1) / (~np.isnan(part)).sum(-1) for name, part in per_class.items()}
    return {
        "pixel_accuracy": accuracy,
        "miou": means["iou"],
        "boundary_iou": means["class_boundary_iou"],
        "boundary_f1": means["class_boundary_f1"],
        **per_class,
    }
