"""COCO JSON as masks: drawn as pycocotools' own COCO does, paired with images, and safe to open."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.data.annotations import guess_annotations
from vitseg_zoo.data.check import check
from vitseg_zoo.data.coco import read_coco
from vitseg_zoo.data.layouts import Part, list_files
from vitseg_zoo.data.outlines import draw
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

rasterizer = pytest.importorskip("pycocotools.mask")

LABELS = ("ring", "thing")
SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def _ring() -> dict:
    """A square with a hole, as an uncompressed code."""
    ring = np.zeros((20, 30), np.uint8)
    ring[1:19, 14:29], ring[6:12, 18:24] = 1, 0
    flat = ring.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return {"size": [20, 30], "counts": np.diff([0, *edges, flat.size]).tolist()}


def _content(names: list[str]) -> dict:
    compressed = rasterizer.frPyObjects(_ring(), 20, 30)
    annotations = [
        {"image_id": 0, "category_id": 7, "segmentation": SQUARE, "area": 100},
        {"image_id": 0, "category_id": 3, "segmentation": _ring(), "area": 234},
        {"image_id": 0, "category_id": 7, "segmentation": [[15, 3, 17, 3, 17, 5, 15, 5]], "area": 4},
        {
            "image_id": 1,
            "category_id": 3,
            "segmentation": {"size": [20, 30], "counts": compressed["counts"].decode()},
            "area": 234,
        },
    ]
    return {
        "images": [{"id": i, "file_name": name, "height": 20, "width": 30} for i, name in enumerate(names)],
        "categories": [{"id": 7, "name": "thing"}, {"id": 3, "name": "ring"}],
        "annotations": [{"id": i, **entry} for i, entry in enumerate(annotations)],
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        (tmp_path / f"{split}2017").mkdir()
        for name in "ab":
            pixels = np.random.default_rng(ord(name)).integers(0, 256, (20, 30, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{split}2017/{name}.jpg")
        (tmp_path / "annotations").mkdir(exist_ok=True)
        (tmp_path / f"annotations/instances_{split}2017.json").write_text(
            json.dumps(_content(["a.jpg", "b.jpg"]))
        )
    return tmp_path


def test_masks_are_what_pycocotools_draws(root: Path):
    from pycocotools.coco import COCO

    path = root / "annotations/instances_train2017.json"
    reference = COCO(path)
    expected = np.zeros((20, 30), np.uint8)
    for entry in sorted(reference.loadAnns(reference.getAnnIds(0)), key=lambda entry: -entry["area"]):
        expected[reference.annToMask(entry) > 0] = {3: 1, 7: 2}[entry["category_id"]]
    second = draw(read_coco(path).find("b.jpg"), LABELS, path)
    np.testing.assert_array_equal(second > 0, reference.annToMask(reference.loadAnns([3])[0]) > 0)
    mask = draw(read_coco(path).find("train2017/a.jpg"), LABELS, path)
    np.testing.assert_array_equal(mask, expected)
    assert mask[8, 20] == 0 and mask[4, 16] == 2  # the hole, and the small thing on the ring


@pytest.mark.parametrize("roboflow", [False, True])
def test_a_folder(root: Path, roboflow: bool):
    if roboflow:
        for split in ("train", "val"):
            source = root / f"annotations/instances_{split}2017.json"
            source.rename(root / f"{split}2017/_annotations.coco.json")
    parts = guess_annotations(root, list_files(root))
    assert {split: part.images for split, part in parts.items()} == {
        "train": "train2017/{name}.*",
        "val": "val2017/{name}.*",
    }
    folder = SegmentationFolder(root, "val")
    assert folder.class_names == ("background", "ring", "thing") and len(folder) == 2
    image, mask = folder[0]
    assert image.shape == (20, 30, 3) and set(np.unique(mask)) == {0, 1, 2}
    assert not check(root).has_errors


def test_images_and_entries_without_partner(root: Path):
    path = root / "annotations/instances_train2017.json"
    path.write_text(json.dumps(_content(["a.jpg", "lost.jpg"])))
    findings = {finding.text: finding.files for finding in check(root).findings}
    assert findings["1 image of train without a mask."] == ("train2017/b.jpg",)
    assert findings["1 mask of train without an image."] == ("lost.jpg",)


@pytest.mark.parametrize(
    "segmentation, message",
    [
        ([[1e9, 0, 0, 1e9, 5, 5]], "points far outside the image"),
        ([[float("nan")] * 6], "points far outside the image"),
        ({"size": [2**20, 2**20], "counts": [0, 2**40]}, r"a code of the size \[1048576"),
        ({"size": [20, 30], "counts": [0, 4000]}, "another length"),
        ({"size": [20, 30], "counts": "~~~~"}, "a code that is none"),
        ({"size": [20, 30], "counts": "04"}, "another length"),
        ([[1, 2]], "."),
        ("polygon", "."),
    ],
)
def test_what_cannot_be_drawn(root: Path, segmentation: object, message: str):
    content = _content(["a.jpg", "b.jpg"])
    content["annotations"][0]["segmentation"] = segmentation
    path = root / "annotations/instances_train2017.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"train2017\.json has .* that cannot be drawn: .*{message}"):
        draw(read_coco(path).find("a.jpg"), LABELS, path)


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"images": [{"id": 1}], "annotations": [], "categories": []}',
        '{"images": 1}',
        "null",
    ],
)
def test_other_json_is_none(root: Path, content: str):
    (root / "x.json").write_text(content)
    with pytest.raises(ValueError, match=r"x\.json is not a COCO file"):
        read_coco(root / "x.json")
    assert "all" not in guess_annotations(root, list_files(root))


def test_a_claimed_size_is_not_allocated(root: Path):
    content = _content(["a.jpg", "b.jpg"])
    content["images"][0]["height"] = 10**9
    (root / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="an image of 1000000000 x 30 pixels"):
        read_coco(root / "x.json")


def test_a_file_outside_the_folder_is_not_read(root: Path):
    from vitseg_zoo.data.description import match_parts

    with pytest.raises(FileNotFoundError, match="there is no"):
        match_parts(
            root / "train2017", {"train": Part("{name}.jpg", "../annotations/instances_train2017.json")}
        )
