"""Tables of pairs, masks of one class each, and masks of one object each."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.cli import main
from vitseg_zoo.data.check import check
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

SHAPE = (20, 30)


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _photo(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SHAPE, 3), np.uint8)


def _mask(seed: int) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[2 : 8 + seed, 3:20] = 255
    return mask


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("style", ["relative", "absolute", "names", "stems", "windows"])
def test_a_table_of_pairs(separator: str, style: str, tmp_path: Path):
    root = tmp_path / "data"
    lines = [separator.join(["id", "Image", "mask_path", "split"])]
    for i, split in enumerate(["train"] * 5 + ["valid"] * 2):
        _save(root / f"a/photos/{i}.png", _photo(i))
        _save(root / f"a/masks/{i}.png", _mask(i))
        image, mask = {
            "relative": (f"photos/{i}.png", f"masks/{i}.png"),
            "absolute": (f"/home/me/a/photos/{i}.png", f"/home/me/a/masks/{i}.png"),
            "names": (f"{i}.png", f"{i}.png"),
            "stems": (str(i), str(i)),
            "windows": (f"C:\\a\\photos\\{i}.png", f"C:\\a\\masks\\{i}.png"),
        }[style]
        lines.append(separator.join([str(i), image, mask, split]))
    (root / "a/pairs.csv").write_text("\n".join(lines), encoding="utf-8-sig")
    report = check(root)
    assert not report.has_errors and report.description.splits == ("train", "val")
    write_description(report.description, tmp_path / "dataset.yaml")
    assert read_description(tmp_path / "dataset.yaml") == report.description
    for source in (root, tmp_path / "dataset.yaml"):
        val = SegmentationFolder(source, "val")
        assert len(val) == 2
        np.testing.assert_array_equal(val[1][0], _photo(6))
        np.testing.assert_array_equal(val[1][1], _mask(6) // 255)


def test_rows_without_files_are_told(tmp_path: Path, capsys):
    for i in range(6):
        _save(tmp_path / f"images/{i}.png", _photo(i))
        _save(tmp_path / f"masks/{i}.png", _mask(i))
    rows = [*(f"images/{i}.png,masks/{i}.png" for i in range(5)), "images/5.png,gone.png", "lost.png,x.png"]
    (tmp_path / "train.csv").write_text("\n".join(["image,mask", *rows, rows[0]]))
    main(["check", str(tmp_path)])
    out = capsys.readouterr().out
    assert "train: train.csv, columns image and mask" in out
    assert "1 image of train without a mask" in out and "1 line of the list of train" in out
    assert "1 name of train with two files" in out


def test_other_tables_are_passed_over(tmp_path: Path):
    for i in range(3):
        _save(tmp_path / f"images/{i}.png", _photo(i))
        _save(tmp_path / f"masks/{i}.png", _mask(i))
    (tmp_path / "labels.csv").write_text("image,label\nimages/0.png,cat\n")
    (tmp_path / "train.csv").write_text("image,mask\n1,1 2 3\n")  # run lengths
    (tmp_path / "empty.csv").write_text("")
    assert check(tmp_path).description.parts["all"].masks == "masks/{name}.png"


def _expected(i: int) -> np.ndarray:
    expected = (_mask(i) > 0).astype(np.uint8)
    expected[5:15, 10:25] = 2  # the dog lies on the cat
    return expected


def _dog() -> np.ndarray:
    dog = np.zeros(SHAPE, np.uint8)
    dog[5:15, 10:25] = 1  # values need not be the same in all masks
    return dog


@pytest.mark.parametrize(
    "image, mask",
    [
        ("images/{i}.png", "masks/{c}/{i}.png"),
        ("images/{i}.png", "masks/{i}_{c}.png"),
        ("{i}/image.png", "{i}/mask_{c}.png"),
    ],
)
def test_masks_of_one_class_each(image: str, mask: str, tmp_path: Path):
    for i in range(5):
        _save(tmp_path / image.format(i=i), _photo(i))
        _save(tmp_path / mask.format(i=i, c="cat"), _mask(i))
        if i != 1:
            _save(tmp_path / mask.format(i=i, c="dog"), _dog())
    report = check(tmp_path)
    assert not report.has_errors, report.findings
    assert report.description.class_names == ("cat", "dog") and report.description.multilabel
    (finding,) = [finding for finding in report.findings if "several classes" in finding.text]
    overlap = sum(int(((_mask(i) > 0) & (_dog() > 0)).sum()) for i in (0, 2, 3, 4))
    assert f"4 images with pixels of several classes, {overlap} in all: the masks are" in finding.text
    for split in ("train", "val"):
        for pair, (_, masks) in zip(
            (folder := SegmentationFolder(tmp_path, split)).pairs, folder, strict=True
        ):
            dog = _dog() if pair.name != "1" else np.zeros(SHAPE)
            np.testing.assert_array_equal(masks, np.stack([_mask(int(pair.name)) > 0, dog > 0], axis=2))
    write_description(report.description, tmp_path / "dataset.yaml")
    assert read_description(tmp_path / "dataset.yaml") == report.description
    text = (tmp_path / "dataset.yaml").read_text().replace("multilabel", "gray")
    background = "- {name: background, color: '#000000', values: [0]}\n"
    (tmp_path / "dataset.yaml").write_text(text.replace("- {name: cat", background + "- {name: cat"))
    report = check(tmp_path)  # one class a pixel, as the file says now
    assert not report.has_errors, report.findings
    (finding,) = [finding for finding in report.findings if "several classes" in finding.text]
    assert finding.text.startswith(f"4 images with pixels of several classes, {overlap} in all (")
    for split in ("train", "val"):
        for pair, (_, labels) in zip(
            (folder := SegmentationFolder(tmp_path, split)).pairs, folder, strict=True
        ):
            i = int(pair.name)
            np.testing.assert_array_equal(labels, _mask(i) > 0 if i == 1 else _expected(i))
    text = (tmp_path / "dataset.yaml").read_text().replace("labels: [cat, dog]", "labels: [dog, cat]")
    (tmp_path / "dataset.yaml").write_text(text)
    edited = SegmentationFolder(tmp_path, "train")
    number = int(edited.pairs[-1].name)
    assert (edited[len(edited) - 1][1][_mask(number) > 0] == 2).all()  # the cat on top, as the second


@pytest.mark.parametrize("mask", ["masks/{i}_{k}.png", "masks/{i}_object{k}.png"])
def test_masks_of_one_object_each_in_one_folder(mask: str, tmp_path: Path):
    for i in range(5):
        _save(tmp_path / f"images/{i}.png", _photo(i))
        for k, part in enumerate((_mask(i), _dog() * 255)):
            _save(tmp_path / mask.format(i=i, k=k), part)
    folder = SegmentationFolder(tmp_path, "train")
    number = int(folder.pairs[0].name)
    np.testing.assert_array_equal(folder[0][1], (_mask(number) > 0) | (_dog() > 0))


def test_nuclei_as_in_dsb2018(tmp_path: Path):
    for i in range(5):
        _save(tmp_path / f"stage1_train/h{i}/images/h{i}.png", _photo(i))
        for k, part in enumerate((_mask(i), _dog() * 255)):
            _save(tmp_path / f"stage1_train/h{i}/masks/{k}{i}.png", part)
    folder = SegmentationFolder(tmp_path, "train")
    assert len(folder) == 5 and folder.class_names == ("background", "foreground")
    for pair, (_, labels) in zip(folder.pairs, folder, strict=True):
        np.testing.assert_array_equal(labels, (_mask(int(pair.name[1:])) > 0) | (_dog() > 0))
