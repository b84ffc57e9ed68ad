"""Masks of one class each that overlap: how they are found, what a check says of them, and what is read."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.cli import main
from vitseg_zoo.data.check import check
from vitseg_zoo.data.check_report import Report
from vitseg_zoo.data.class_weights import class_weights
from vitseg_zoo.data.crops import CropDataset
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

SHAPE = (24, 32)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _masks(i: int) -> np.ndarray:
    """A person, a hat on it, and in every second image a bag beside it: (H, W, 3) of 0 and 1."""
    masks = np.zeros((*SHAPE, 3), np.uint8)
    masks[2 + i :, 10:20, 0] = 1
    masks[2 + i : 8, 12:18, 1] = 1
    masks[15:20, 18:30, 2] = i % 2
    return masks


NAMES = ("person", "hat", "bag")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four images to train on and two to measure on; a mask's file is absent where it would be empty."""
    root = tmp_path / "data"
    for i in range(6):
        split = "train" if i < 4 else "val"
        photo = np.random.default_rng(i).integers(0, 256, (*SHAPE, 3), np.uint8)
        _save(root / split / f"images/{i}.png", photo)
        for name, mask in zip(NAMES, np.moveaxis(_masks(i), 2, 0), strict=True):
            if mask.any():
                _save(root / split / f"masks/{name}/{i}.png", mask * 255)
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def test_a_check_counts_pixels_of_several_and_of_no_classes(root: Path, capsys: pytest.CaptureFixture):
    report = check(root)
    assert report.description.multilabel and report.description.class_names == NAMES
    train = np.stack([_masks(i) for i in range(4)])
    several = train.sum(3)
    wanted = [*train.sum((0, 1, 2)), (several == 0).sum(), (several > 1).sum()]
    np.testing.assert_array_equal(report.pixels["train"], wanted)
    np.testing.assert_array_equal(report.images["train"], [4, 4, 2, 4, 4])
    np.testing.assert_allclose(report.weights, class_weights(train, 3))
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "masks: multi-label" in out and "train/masks/{class}/{name}.png" in out
    for name, count in zip((*NAMES, "(no class)", "(several)"), wanted, strict=True):
        assert any(
            line.startswith(name) and f"{100 * count / several.size:.2f} %" in line
            for line in out.split("\n")
        )


def test_pairs_are_read_with_a_mask_a_class(root: Path, tmp_path: Path):
    write_description(check(root).description, tmp_path / "dataset.yaml")
    assert read_description(tmp_path / "dataset.yaml") == check(root).description
    for source in (root, tmp_path / "dataset.yaml"):
        train = SegmentationFolder(source, "train")
        assert train.mode == "multilabel" and train.ignore_index is None
        for i, (_, mask) in enumerate(train):
            assert mask.dtype == np.uint8
            np.testing.assert_array_equal(mask, _masks(i))
    tiles = CropDataset(train, 16, classes=3)
    np.testing.assert_array_equal(tiles[1][1], np.moveaxis(_masks(0)[:16, 16:], 2, 0))


def test_the_copy_has_a_folder_a_class(root: Path, tmp_path: Path):
    assert (
        main(["check", str(root), "--convert", str(tmp_path / "out"), "--html", str(tmp_path / "a.html")])
        == 0
    )
    assert (tmp_path / "a.html").read_text().count("data:image/jpeg") > 6
    copy = SegmentationFolder(tmp_path / "out", "val")
    assert copy.class_names == NAMES
    np.testing.assert_array_equal(copy[1][1], _masks(5))


def _of(report: Report, text: str) -> list[tuple[str, ...]]:
    return [(finding.level, *finding.files) for finding in report.findings if text in finding.text]


def test_faults(root: Path):
    _save(root / "train/masks/hat/0.png", np.zeros((10, 32), np.uint8))
    (error,) = [finding for finding in check(root).findings if finding.level == "error"]
    assert "train/masks/hat/0.png is of another size than" in error.text.replace("\\", "/")

    for name in NAMES[:2]:  # all alike, but not as the image
        _save(root / f"train/masks/{name}/0.png", np.zeros((10, 32), np.uint8))
    assert _of(check(root), "of another size than the image; the first is 10 x 32") != []

    (root / "train/masks/hat/0.png").unlink()
    _save(root / "train/masks/person/0.png", _masks(0)[..., 0])
    _save(root / "train/masks/persn/0.png", _masks(0)[..., 0])
    _save(root / "train/masks/hat/9.png", _masks(0)[..., 1])
    (root / "classes.txt").write_text("\n".join([*NAMES, "shoe"]))
    report = check(root)
    assert _of(report, "does not name persn") == [("warning", "train/masks/persn/0.png")]
    assert _of(report, "names shoe, of which there is no mask") == [("warning",)]
    assert _of(report, "1 mask of train without an image") == [("warning", "train/masks/hat/9.png")]
    assert report.description.class_names == (*NAMES, "persn")


def test_masks_that_do_not_overlap_stay_classes_of_one_mask(root: Path):
    for path in root.rglob("hat/*.png"):
        path.unlink()
    for i in range(6):
        _save(
            root / ("train" if i < 4 else "val") / f"masks/bag/{i}.png",
            _masks(1)[..., 2] & ~_masks(0)[..., 0],
        )
    report = check(root)
    assert not report.description.multilabel and report.description.class_names == (
        "background",
        "person",
        "bag",
    )


def test_an_image_with_empty_masks_has_no_class(root: Path):
    for path in root.glob("train/masks/*/3.png"):
        path.unlink()
    assert _of(check(root), "1 image of train without a mask") == [("warning", "train/images/3.png")]
    _save(root / "train/masks/hat/3.png", np.zeros(SHAPE, np.uint8))
    assert _of(check(root), "1 image without a pixel of any class") == [("note", "train/masks/hat/3.png")]
    assert not SegmentationFolder(root, "train")[3][1].any()


def _two(root: Path, one: np.ndarray, other: np.ndarray) -> Report:
    """Check four images whose masks of "bread" and "cheese" are these."""
    for i in range(4):
        photo = np.random.default_rng(i).integers(0, 256, (*one.shape, 3), np.uint8)
        _save(root / f"images/{i}.png", photo)
        for name, mask in (("bread", one), ("cheese", other)):
            _save(root / f"masks/{name}/{i}.png", mask.astype(np.uint8) * 255)
    return check(root)


def test_a_few_pixels_of_two_classes_are_loose_borders(tmp_path: Path):
    """Up to a thousandth of the labeled pixels, unless they are most of a class; the later class has them."""
    bread, cheese = np.zeros((2, 64, 64), bool)
    bread[:32] = cheese[32:] = True
    cheese[31, :4] = True  # of 4096
    report = _two(tmp_path / "few", bread, cheese)
    assert not report.description.multilabel
    (finding,) = [finding for finding in report.findings if "of several classes" in finding.text]
    assert finding.level == "warning"
    assert (
        finding.text == "4 images with pixels of several classes, 16 in all (0.098 % of those that have one)."
    )
    masks = [mask for split in ("train", "val") for _, mask in SegmentationFolder(tmp_path / "few", split)]
    for mask in masks:
        np.testing.assert_array_equal(mask, np.where(cheese, 2, 1))

    cheese[31, 4] = True
    report = _two(tmp_path / "more", bread, cheese)
    assert report.description.multilabel and _of(report, "20 in all: the masks are multi-label") != []

    for small, large in (("bread", bread), ("cheese", cheese)):  # whichever lies on top
        large[:] = True
        other = bread if large is cheese else cheese
        other[:] = False
        other[3, 3:5] = True
        report = _two(tmp_path / small, bread, cheese)
        assert report.description.multilabel


def test_dataset_yaml_says_which_of_both(tmp_path: Path):
    bread, cheese = np.zeros((2, 64, 64), bool)
    bread[:32] = cheese[31:] = True
    report = _two(tmp_path / "data", bread, cheese)
    assert report.description.multilabel
    write_description(report.description, tmp_path / "dataset.yaml")
    several = (tmp_path / "dataset.yaml").read_text()
    background = "classes:\n- {name: background, color: '#000000', values: [0]}"
    one = several.replace("multilabel", "gray").replace("classes:", background)
    (tmp_path / "dataset.yaml").write_text(one)
    _, mask = SegmentationFolder(tmp_path / "dataset.yaml", "train")[0]
    np.testing.assert_array_equal(mask, np.where(cheese, 2, 1))
    assert _of(check(tmp_path / "dataset.yaml"), "256 in all (1.6 %")[0][0] == "warning"
    (tmp_path / "dataset.yaml").write_text(one.replace("gray", "multilabel"))
    with pytest.raises(ValueError, match="multilabel masks have no background: 0 is what no class covers"):
        read_description(tmp_path / "dataset.yaml")
