"""Counts, overlays and areas of labels."""

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.inference.outputs import OVERLAY_SIDE, areas, count_classes, overlay, palette_image, reduced

PALETTE = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
NAMES = ["background", "cat", "dog"]


@pytest.mark.parametrize("kind, classes", [(np.uint8, 3), (np.uint16, 700)])
def test_counts_are_exact(kind, classes):
    labels = np.random.default_rng(0).integers(0, classes, (5000, 3501)).astype(kind)  # more than 2^24 pixels
    np.testing.assert_array_equal(
        count_classes(labels, classes), np.bincount(labels.ravel(), minlength=classes)
    )


def test_what_is_no_class_is_not_counted():
    assert count_classes(np.array([[0, 255, 1]], np.uint8), 2).tolist() == [1, 1]


def test_overlay_is_half_color_and_leaves_the_background():
    labels = np.zeros((200, 300), np.uint8)
    labels[50:150, 100:200] = 1
    picture = np.full((200, 300, 3), 100, np.uint8)
    made = np.asarray(overlay(picture, labels, NAMES, PALETTE))
    assert made.shape[1] == 300 and made.shape[0] > 200
    np.testing.assert_array_equal(made[:50, :], 100)
    assert np.abs(made[60, 150].astype(int) - (178, 50, 50)).max() <= 1
    legend = made[200:].reshape(-1, 3).tolist()
    assert [255, 0, 0] in legend and [0, 0, 255] not in legend  # dog is not there


def test_names_of_any_kind_and_number_fit_a_legend():
    names = [f"{index} \x1b[2J 犬 " + "long " * 20 for index in range(200)]
    labels = np.arange(200, dtype=np.uint8)[None].repeat(9, 0)
    made = overlay(np.zeros((9, 200, 3), np.uint8), labels, names, [(1, 2, 3)] * 200)
    assert made.height < 9 + 16 * 30


def test_large_ones_are_reduced():
    labels = np.zeros((6000, 3000), np.uint8)
    labels[3000:] = 7
    small = reduced(labels)
    assert small.shape == (OVERLAY_SIDE, 1024) and set(np.unique(small)) == {0, 7}
    assert reduced(np.zeros((10, 20, 3), np.uint8)).shape == (10, 20, 3)


def test_areas():
    rows = areas("a.jpg", np.array([0, 30, 10]), NAMES, pixel_area=0.25)
    assert [(row["class"], row["share"], row["square_meters"]) for row in rows] == [
        ("cat", 0.75, 7.5),
        ("dog", 0.25, 2.5),
    ]


def test_palette_image():
    picture = palette_image(np.array([[0, 2]], np.uint8), PALETTE)
    assert picture.mode == "P" and picture.convert("RGB").getpixel((1, 0)) == (0, 0, 255)
    assert isinstance(picture, Image.Image)
