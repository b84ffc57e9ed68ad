"""Areas, boundary bands and contours against scipy, MONAI's surfaces and one confusion matrix."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

from vitseg_zoo.counts import BAND, TOLERANCE, Counts, count_pixels, scores
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.metrics import SegmentationMetrics


def blobs(seed: int, size: tuple[int, int], classes: int) -> np.ndarray:
    """Smooth random regions of all classes."""
    noise = np.random.default_rng(seed).normal(size=(classes, *size))
    return ndimage.gaussian_filter(noise, (0, 6, 6)).argmax(0)


def band_of(mask: np.ndarray, distance: int) -> np.ndarray:
    """Pixels of a mask at most so far from its outside, the image's edge included (Cheng et al.)."""
    return mask & (ndimage.distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1] <= distance)


def contour_of(mask: np.ndarray, elsewhere: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside another class."""
    return mask & ndimage.binary_dilation(elsewhere & ~mask)


def slow_counts(prediction: np.ndarray, truth: np.ndarray, classes: int, seen: np.ndarray) -> Counts:
    """The same counts, class by class and by scipy; without an `ignore_index` only as far as areas."""
    diagonal = np.hypot(*truth.shape)
    rows = []
    for index in range(classes):
        masks = (prediction == index) & seen, (truth == index) & seen
        bands = [band_of(mask, round(BAND * diagonal)) for mask in masks]
        lines = [contour_of(mask, seen) for mask in masks]
        near = [
            line & (ndimage.distance_transform_edt(~other) <= round(TOLERANCE * diagonal)) & other.any()
            for line, other in (lines, lines[::-1])
        ]
        row = [masks[0] & masks[1], *masks, bands[0] & bands[1], *bands]
        row += [lines[0], near[0], lines[1], near[1], masks[0] & masks[1], masks[1]]
        rows.append([part.sum() for part in row])
    return Counts(*np.array(rows).T)


@pytest.mark.parametrize("classes", [2, 5, 300])
def test_counts_are_those_of_distance_transforms(classes: int):
    truth, prediction = (blobs(seed, (141, 190), min(classes, 5)) for seed in (0, 1))
    truth, prediction = truth + classes - min(classes, 5), prediction + classes - min(classes, 5)
    prediction[:70] = truth[:70]
    expected = slow_counts(prediction, truth, classes, np.ones(truth.shape, bool))
    for name, found, value in zip(
        Counts._fields, count_pixels(prediction, truth, classes), expected, strict=True
    ):
        np.testing.assert_array_equal(found, value, err_msg=name)


def test_pixels_without_label_count_nowhere_and_make_no_boundary():
    truth, prediction = (blobs(seed, (141, 190), 3) for seed in (2, 3))
    seen = blobs(4, (141, 190), 2) == 0
    marked = np.where(seen, truth, 255).astype(np.uint8)
    counts = count_pixels(prediction, marked, 3, ignore_index=255)
    other = count_pixels(np.where(seen, prediction, 2), marked, 3, ignore_index=255)
    np.testing.assert_array_equal(np.stack(counts), np.stack(other))
    assert counts.true.sum() == seen.sum()
    expected = slow_counts(prediction, truth, 3, seen)
    for name in ("right", "predicted", "true", "contour_predicted", "contour_true"):
        np.testing.assert_array_equal(getattr(counts, name), getattr(expected, name), err_msg=name)

    whole = np.full((50, 60), 1, np.uint8)
    whole[20:30] = 255
    counts = count_pixels(whole, whole, 2, ignore_index=255)
    assert not counts.contour_true.any() and counts.band_true[1] == 2 * (50 + 60) * 2 - 16 - 4 * 10


def test_contours_of_an_object_are_monais_surfaces():
    truth, prediction = np.zeros((2, 120, 160), np.int64)
    truth[30:90, 40:100], prediction[33:93, 42:101] = 1, 1
    prediction[60:70, 110:120] = 1
    counts = count_pixels(prediction, truth, 2)
    near = counts.contour_predicted_near[1] + counts.contour_true_near[1]
    total = counts.contour_predicted[1] + counts.contour_true[1]
    one_hot = [
        torch.nn.functional.one_hot(torch.tensor(m), 2).permute(2, 0, 1)[None] for m in (prediction, truth)
    ]
    tolerance = float(round(TOLERANCE * 200))
    dice = compute_surface_dice(*one_hot, class_thresholds=[tolerance])
    assert 0.3 < near / total < 0.9 and near / total == pytest.approx(dice.item(), abs=1e-6)


def test_sums_give_the_scores_of_one_confusion_matrix(data_root):
    pets = OxfordPets(data_root, "test")
    metrics, parts = SegmentationMetrics(pets.class_names), []
    for index in range(6):
        _, truth = pets[index]
        prediction = np.roll(truth, 12, axis=1)
        metrics.update(torch.tensor(prediction).long(), torch.tensor(truth).long())
        parts.append(np.stack(count_pixels(prediction, truth, 3)))
    found, expected = scores(Counts(*np.sum(parts, 0))), metrics.compute()
    for name in ("pixel_accuracy", "miou"):
        assert found[name] == pytest.approx(expected[name].item())
    for name, iou in zip(pets.class_names, found["iou"], strict=True):
        assert iou == pytest.approx(expected[f"iou_{name}"].item())
    # What is wrong is wrong at boundaries.
    assert found["boundary_iou"] < found["miou"] and found["boundary_f1"] < found["miou"]
    many = scores(Counts(*np.stack(parts, 1)))
    assert many["miou"].shape == (6,) and many["iou"].shape == (6, 3)
    np.testing.assert_allclose(many["iou"][4], scores(Counts(*parts[4]))["iou"])


def test_a_class_that_is_nowhere_has_no_score_and_one_that_is_only_predicted_has_zero():
    truth = np.zeros((40, 40), np.int64)
    prediction = truth.copy()
    prediction[10:20, 10:20] = 1
    found = scores(count_pixels(prediction, truth, 3))
    assert found["iou"][1] == found["class_boundary_iou"][1] == found["class_boundary_f1"][1] == 0
    for name in ("iou", "class_boundary_iou", "class_boundary_f1"):
        assert np.isnan(found[name][2])
    assert found["miou"] == pytest.approx(0.9375 / 2)


@pytest.mark.parametrize("value", [-1, 3, 200])
def test_a_class_beyond_the_classes_is_refused(value: int):
    truth = np.zeros((8, 8), np.int64)
    truth[0, 0] = value
    with pytest.raises(ValueError, match="truth should have classes from 0 to 2"):
        count_pixels(np.zeros_like(truth), truth, 3)
    with pytest.raises(ValueError, match="one size"):
        count_pixels(np.zeros((8, 9), int), truth, 3)
