"""Regions as CVAT (by COCO) and Label Studio read them: drawn again they are the labels."""

import json

import cv2
import numpy as np
import pytest

from vitseg_zoo.inference.regions import (
    coco_annotations,
    coco_categories,
    find_regions,
    label_studio_task,
)

NAMES = ["background", "cat", "dog"]


@pytest.fixture
def labels() -> np.ndarray:
    """Blobs, one with a hole, and specks."""
    labels = np.zeros((90, 120), np.uint8)
    cv2.circle(labels, (40, 40), 30, 1, -1)
    cv2.circle(labels, (45, 40), 8, 0, -1)
    cv2.ellipse(labels, (95, 50), (18, 35), 20, 0, 360, 2, -1)
    labels[5, 5] = 2
    return labels


def test_regions_are_exact_and_specks_left_out(labels):
    drawn = np.zeros_like(labels)
    for region in find_regions(labels, skip=0, tolerance=0):
        window = drawn[region.top :, region.left :][: region.mask.shape[0], : region.mask.shape[1]]
        window[region.mask] = region.label
    labels[5, 5] = 0
    np.testing.assert_array_equal(drawn, labels)


def test_coco_drawn_by_pycocotools(labels, tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 120, "height": 90}],
        "annotations": coco_annotations(labels, 1, 1, skip=0),
        "categories": coco_categories(NAMES),
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    read = coco.COCO(str(tmp_path / "coco.json"))
    drawn = np.zeros_like(labels)
    for annotation in read.loadAnns(read.getAnnIds()):
        mask = read.annToMask(annotation)
        assert annotation["area"] == pytest.approx(int(mask.sum()), rel=0.03)
        drawn[mask > 0] = read.loadCats(annotation["category_id"])[0]["id"] - 1
    assert [annotation["iscrowd"] for annotation in content["annotations"]] == [1, 0]
    assert (drawn == labels).mean() > 0.99
    assert len(content["annotations"][1]["segmentation"][0]) < 100  # few points to move


def test_coco_is_read_by_this_package(labels, tmp_path):
    pytest.importorskip("pycocotools")
    from vitseg_zoo.data.coco import read_coco

    content = {
        "images": [{"id": 7, "file_name": "a.png", "width": 120, "height": 90}],
        "annotations": coco_annotations(labels, 7, 1, skip=0),
        "categories": coco_categories(NAMES),
    }
    (tmp_path / "coco.json").write_text(json.dumps(content))
    file = read_coco(tmp_path / "coco.json")
    assert file.labels == tuple(NAMES) and len(file.find("a.png").shapes) == 2


def test_label_studio_s_documented_form(labels):
    """The keys of https://labelstud.io/guide/predictions, and polygons in percent that draw the labels."""
    task = json.loads(json.dumps(label_studio_task("/data/local-files/?d=a.png", labels, NAMES, skip=0)))
    assert task["data"] == {"image": "/data/local-files/?d=a.png"}
    (prediction,) = task["predictions"]
    drawn = np.zeros_like(labels)
    for result in prediction["result"]:
        assert result["type"] == "polygonlabels" and (result["from_name"], result["to_name"]) == (
            "label",
            "image",
        )
        assert (result["original_width"], result["original_height"], result["image_rotation"]) == (120, 90, 0)
        points = np.array(result["value"]["points"])
        assert result["value"]["closed"] and points.min() >= 0 and points.max() <= 100
        (name,) = result["value"]["polygonlabels"]
        corners = np.round(points * (1.2, 0.9) - 0.5).astype(np.int32)
        cv2.fillPoly(drawn, [corners], NAMES.index(name))
    is_hole = cv2.circle(np.zeros_like(labels), (45, 40), 9, 1, -1) > 0
    assert (drawn == labels)[~is_hole].mean() > 0.97
    assert len({result["id"] for result in prediction["result"]}) == len(prediction["result"]) == 2
