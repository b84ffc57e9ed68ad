"""Metrics against cases counted by hand, and against torchmetrics where it has the same figure."""

import math

import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from vitseg_zoo.metrics import SegmentationMetrics, segmentation_scores

PET, BACKGROUND, BORDER = range(3)
NAMES = ["pet", "background", "border"]
# Two images of 2 x 4 pixels.
TRUTH = torch.tensor([[[0, 0, 1, 1], [0, 2, 1, 1]], [[1, 1, 1, 2], [1, 1, 2, 0]]])
PREDICTION = torch.tensor([[[0, 1, 1, 1], [0, 2, 2, 1]], [[1, 1, 1, 0], [1, 1, 2, 0]]])


def _scores(prediction: torch.Tensor, truth: torch.Tensor, **options) -> dict[str, float]:
    metrics = SegmentationMetrics(NAMES, **options)
    for pair in zip(prediction.split(1), truth.split(1), strict=True):  # a batch for each image
        metrics.update(*pair)
    return {name: value.item() for name, value in metrics.compute().items()}


def test_counted_by_hand():
    # Of 16 pixels 13 are right; wrong: one pet -> background, one background -> border, one border -> pet.
    # Right / (truth + predicted - right) is 3 / (4 + 4 - 3) for pet, 8 / (9 + 9 - 8) for background and
    # 2 / (3 + 3 - 2) for border.
    scores = _scores(PREDICTION, TRUTH)
    assert scores["pixel_accuracy"] == pytest.approx(13 / 16)
    assert scores["iou_pet"] == pytest.approx(3 / 5)
    assert scores["iou_background"] == pytest.approx(8 / 10)
    assert scores["iou_border"] == pytest.approx(2 / 4)
    assert scores["miou"] == pytest.approx((3 / 5 + 8 / 10 + 2 / 4) / 3)


def test_is_of_the_whole_split_and_not_a_mean_over_images():
    images = [_scores(PREDICTION[i : i + 1], TRUTH[i : i + 1])["miou"] for i in range(2)]
    assert sum(images) / 2 != pytest.approx(_scores(PREDICTION, TRUTH)["miou"], abs=1e-3)


def test_micro_iou_without_background():
    # The 7 pixels that are not background in truth: pet 4, border 3; right are 3 + 2.
    # Unions: of pet 4 + 4 - 3; of border 3 + 2 - 2, as the false border lies on background.
    scores = _scores(PREDICTION, TRUTH, background=BACKGROUND)
    assert scores["micro_iou"] == pytest.approx((3 + 2) / (5 + 3))
    article = MulticlassJaccardIndex(3, average="micro", ignore_index=BACKGROUND)  # the article's own call
    assert scores["micro_iou"] == pytest.approx(article(PREDICTION, TRUTH).item())


def test_ignored_pixels_count_nowhere():
    truth = TRUTH.clone()
    truth[PREDICTION != TRUTH] = 255
    scores = _scores(PREDICTION, truth, ignore_index=255)
    assert scores["pixel_accuracy"] == scores["miou"] == scores["micro_iou"] == 1


def test_a_class_that_is_nowhere_is_left_out_of_the_mean():
    scores = _scores(torch.tensor([[[0, 1]]]), torch.tensor([[[0, 0]]]))
    assert math.isnan(scores["iou_border"])
    assert scores["miou"] == pytest.approx((1 / 2 + 0) / 2)


def test_reset_forgets():
    metrics = SegmentationMetrics(NAMES)
    metrics.update(PREDICTION, TRUTH)
    metrics.reset()
    metrics.update(TRUTH, TRUTH)
    assert metrics.compute()["miou"] == 1


def test_counts_of_large_splits_are_exact():
    # In float32 a sum stops growing by one at 2 ** 24.
    confusion = torch.tensor([[2**40, 1], [0, 2**40]])
    assert segmentation_scores(confusion)["pixel_accuracy"].item() == 2**41 / (2**41 + 1)
