"""`vitseg check`: what it understands and finds, in small folders with known faults and in real ones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image, ImageFilter

from vitseg_zoo.cli import main
from vitseg_zoo.data.check import check
from vitseg_zoo.data.convert import convert
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.segmentation_folder import SegmentationFolder


def _photograph(seed: int, height: int = 48, width: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 256, (6, 8, 3), np.uint8)).resize((width, height))
    return np.clip(np.asarray(coarse) + rng.normal(0, 12, (height, width, 3)), 0, 255).astype(np.uint8)


def _blocks(seed: int, classes: int, height: int = 48, width: int = 64) -> np.ndarray:
    labels = np.random.default_rng(seed).integers(0, classes, (height // 16, width // 16))
    return np.kron(labels, np.ones((16, 16), int)).astype(np.uint8)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """12 pairs in train and 3 in val, masks of 0 and 255, and no file of classes."""
    for split, seeds in (("train", range(12)), ("val", range(20, 23))):
        for kind in ("images", "masks"):
            (tmp_path / "data" / split / kind).mkdir(parents=True)
        for seed in seeds:
            Image.fromarray(_photograph(seed)).save(tmp_path / f"data/{split}/images/{seed}.png")
            Image.fromarray(_blocks(seed, 2) * 255).save(tmp_path / f"data/{split}/masks/{seed}.png")
    return tmp_path / "data"


def _snapshot(root: Path) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(root.rglob("*"))}


def _texts(root: Path, level: str) -> list[str]:
    return [f.text for f in check(root).findings if f.level == level]


def test_binary_masks_are_understood_and_nothing_is_written(root: Path, capsys: pytest.CaptureFixture):
    before = _snapshot(root)
    assert main(["check", str(root)]) == 0
    out = capsys.readouterr().out
    assert "train/images/{name}.png with train/masks/{name}.png" in out and "255 instead of 1" in out
    assert _snapshot(root) == before
    report = check(root)
    masks = [_blocks(seed, 2) for seed in range(12)]
    share = np.bincount(np.concatenate(masks).ravel(), minlength=2)
    np.testing.assert_array_equal(report.pixels["train"][:2], share)
    present = [sum(m.size for m in masks if (m == index).any()) for index in (0, 1)]
    frequency = share / present
    np.testing.assert_allclose(report.weights, np.median(frequency) / frequency)


def test_training_reads_what_was_written(root: Path, tmp_path: Path):
    target = tmp_path / "dataset.yaml"
    assert main(["check", str(root), "--write", str(target)]) == 0
    assert yaml.safe_load(target.read_text())["classes"][1]["values"] == [255]
    for source in (root, target):
        folder = SegmentationFolder(source, "val")
        image, mask = folder[1]
        np.testing.assert_array_equal(image, _photograph(21))
        np.testing.assert_array_equal(mask, _blocks(21, 2))
    content = yaml.safe_load(target.read_text())
    content["classes"][0]["name"], content["ignore"], content["classes"][1]["values"] = "sky", [255], []
    target.write_text(yaml.safe_dump(content))
    edited = SegmentationFolder(target, "train")
    assert edited.class_names[0] == "sky" and edited.ignore_index == 255
    assert any("no mask of train has a pixel of foreground" in text for text in _texts(target, "warning"))


@pytest.mark.parametrize("ending", [".yaml", ".json"])
def test_descriptions_are_read_as_they_were_written(root: Path, tmp_path: Path, ending: str):
    description = check(root).description
    write_description(description, tmp_path / f"d{ending}")
    assert read_description(tmp_path / f"d{ending}") == description


@pytest.mark.parametrize(
    "change, message",
    [
        ({"root": "nowhere"}, r"root names the folder .*nowhere, which is not there"),
        ({"splits": {}}, "splits is empty"),
        ({"splits": {"train": {"images": "a.jpg", "masks": "{name}"}}}, r"'a\.jpg' should have \{name\}"),
        ({"splits": {"train": {"images": "{name}.jpg"}}}, "splits, train: masks is missing"),
        ({"masks": "colours"}, "masks should be gray, colors or multilabel"),
        ({"classes": [{"name": "a", "color": "#000000", "values": [0.5]}]}, "values should be whole numbers"),
        ({"classes": [{"name": "a", "color": "red", "values": [0]}]}, "color should be as"),
        ({"classes": [{"name": "a", "color": "#000000", "values": 7}]}, "values should be a list, got '7'"),
        ({"classes": []}, "classes should be 1 to 255, got 0"),
        ({"ignore": [0]}, "the value 0 stands for two classes"),
        ({"masks": "multilabel"}, "multilabel masks should be a file a class"),
    ],
)
def test_descriptions_that_are_wrong(root: Path, tmp_path: Path, change: dict, message: str):
    write_description(check(root).description, tmp_path / "d.yaml")
    content = yaml.safe_load((tmp_path / "d.yaml").read_text()) | change
    (tmp_path / "d.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises((ValueError, FileNotFoundError), match=rf"d\.yaml: .*{message}"):
        read_description(tmp_path / "d.yaml")


@pytest.mark.parametrize(
    "text", ["", "- a", "a: [", "!!python/object/apply:os.system [ls]", "\x00", "a: &a [*a]"]
)
def test_descriptions_that_are_none(tmp_path: Path, text: str):
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"d\.yaml"):
        read_description(tmp_path / "d.yaml")


def _damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


FAULTS = {
    "a truncated image": (
        lambda root: _damage(root / "train/images/3.png"),
        "error",
        r"^1 file that cannot be read; the first: .*3\.png cannot be read",
    ),
    "a truncated mask": (
        lambda root: _damage(root / "train/masks/3.png"),
        "error",
        r"^1 file that cannot be read; the first: .*masks/3\.png cannot be read as a mask",
    ),
    "another size": (
        lambda root: Image.fromarray(_blocks(3, 2, 64, 48) * 255).save(root / "train/masks/3.png"),
        "error",
        r"^1 mask of another size than the image; the first is 64 x 48, its image 48 x 64",
    ),
    "no mask": (
        lambda root: (root / "val/masks/21.png").unlink(),
        "warning",
        "^1 image of val without a mask",
    ),
    "no image": (
        lambda root: (root / "val/images/21.png").unlink(),
        "warning",
        "^1 mask of val without an image",
    ),
    "two of one name": (
        lambda root: Image.fromarray(_photograph(3)).save(root / "train/images/3.jpg"),
        "error",
        "^1 name of train with two files",
    ),
    "the same image in two splits": (
        lambda root: shutil.copy(root / "train/images/3.png", root / "val/images/21.png"),
        "warning",
        "^1 group of the same images in more than one split",
    ),
    "nearly the same image": (
        lambda root: Image.fromarray(_photograph(3) // 4 * 4).save(root / "val/images/21.png"),
        "warning",
        "^1 group of nearly the same images in more than one split",
    ),
    "a dark image": (
        lambda root: Image.fromarray(_photograph(3) // 12).save(root / "train/images/3.png"),
        "warning",
        "^1 image far darker",
    ),
    "a blurred image": (
        lambda root: Image.fromarray(_photograph(3))
        .filter(ImageFilter.GaussianBlur(5))
        .save(root / "train/images/3.png"),
        "warning",
        "^1 image far blurrier",
    ),
    "noise": (
        lambda root: _add_specks(root / "train/masks/3.png"),
        "warning",
        r"^1 mask with single pixels of another class than all around them, 18 in all",
    ),
    "a mask of background": (
        lambda root: Image.new("L", (64, 48)).save(root / "train/masks/3.png"),
        "note",
        "^1 mask with nothing but background",
    ),
    "an image of 16 bits": (
        lambda root: Image.fromarray(np.full((48, 64), 9000, np.uint16)).save(root / "train/images/3.png"),
        "warning",
        r"^1 image of uint16 among others \(14 of 3 x uint8, 1 of 1 x uint16",
    ),
    "a class that val lacks": (
        lambda root: [Image.new("L", (64, 48)).save(path) for path in (root / "val/masks").iterdir()],
        "warning",
        "^no mask of val has a pixel of foreground",
    ),
}  # fmt: skip


def _add_specks(path: Path) -> None:
    mask = np.zeros((48, 64), np.uint8)
    mask[4:40:4, 8:16:4] = 255
    Image.fromarray(mask).save(path)


@pytest.mark.parametrize("fault, level, message", FAULTS.values(), ids=FAULTS.keys())
def test_faults(fault, level: str, message: str, root: Path, capsys: pytest.CaptureFixture):
    fault(root)
    found = [finding for finding in check(root).findings if re.search(message, finding.text)]
    assert len(found) == 1 and found[0].level == level
    assert main(["check", str(root)]) == (level == "error")
    assert found[0].text in capsys.readouterr().out


def test_undeclared_values_are_named_with_their_masks(root: Path):
    (root / "classes.txt").write_text("background\nthing\n")
    for path in [*(root / "train/masks").iterdir(), *(root / "val/masks").iterdir()]:
        Image.fromarray(np.asarray(Image.open(path)) // 255).save(path)
    mask = _blocks(3, 2)
    mask[:8, :8] = 7
    Image.fromarray(mask).save(root / "train/masks/3.png")
    (finding,) = [finding for finding in check(root).findings if finding.level == "error"]
    assert finding.text == "1 mask with values that are no class: 7." and finding.files == (
        "train/masks/3.png",
    )
    with pytest.raises(ValueError, match=r"masks/3\.png: 64 pixels have the values 7, which are no class"):
        SegmentationFolder(root, "train")[5]


def test_names_are_trusted_nowhere(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    evil = "<script>alert(1)</script>\x1b[31m"
    for kind in ("images", "masks"):
        os.rename(root / "train" / kind / "3.png", root / "train" / kind / f"{evil.replace('/', '-')}.png")
    (root / "train" / "masks" / f"{evil.replace('/', '-')}.png").write_bytes(b"no mask")
    (root / "classes.txt").write_text(f"background\n{evil}\n")
    page = tmp_path / "check.html"
    assert main(["check", str(root), "--html", str(page)]) == 1
    out = capsys.readouterr().out
    assert "\x1b" not in out and "x1b" in out
    html = page.read_text()
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "http" not in html and html.count("data:image/jpeg;base64,") > 4


def test_the_copy_is_the_plain_layout(root: Path, tmp_path: Path):
    assert main(["check", str(root), "--convert", str(tmp_path / "out")]) == 0
    folders = ImageFolders(tmp_path / "out", "train").check()
    assert folders.class_names == ("background", "foreground") and len(folders) == 12
    names = [path.stem for path, _ in folders.pairs]
    np.testing.assert_array_equal(folders[4][1], _blocks(int(names[4]), 2))
    description = check(root).description
    with pytest.raises(FileExistsError, match="is there already"):
        convert(description, tmp_path / "out")
    with pytest.raises(ValueError, match="in the data's own folder"):
        convert(description, root / "out")
    _damage(root / "val/masks/21.png")
    with pytest.raises(ValueError, match=r"21\.png cannot be read"):
        convert(description, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_no_split_is_divided_with_a_seed(root: Path):
    shutil.rmtree(root / "val")
    for kind in ("images", "masks"):
        os.rename(root / "train" / kind, root / kind)
    os.rmdir(root / "train")
    train, val = SegmentationFolder(root, "train"), SegmentationFolder(root, "val")
    assert (len(train), len(val)) == (10, 2) and not {*train.pairs} & {*val.pairs}
    with pytest.raises(ValueError, match="has no split 'test', only train, val"):
        SegmentationFolder(root, "test")


@pytest.mark.parametrize("prepare", [lambda root: shutil.rmtree(root / "data"), lambda root: None])
def test_folders_without_pairs(tmp_path: Path, prepare, capsys: pytest.CaptureFixture):
    (tmp_path / "data" / "images").mkdir(parents=True)
    prepare(tmp_path)
    assert main(["check", str(tmp_path / "data")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "name, splits, classes, ignored",
    [
        ("camvid", ("train", "val", "test"), 11, 255),
        ("clothing", ("train", "val"), 7, None),
        ("road", ("train", "val"), 5, None),
        ("oxford-iiit-pet", ("train", "test"), 3, None),
    ],
)
def test_real_data(name: str, splits: tuple, classes: int, ignored: int | None, data_root: Path):
    folder = SegmentationFolder(data_root / name, splits[-1])
    assert folder.description.splits == splits and len(folder.class_names) == classes
    image, mask = folder[3]
    assert image.shape == (*mask.shape, 3) and folder.ignore_index == ignored
    assert set(np.unique(mask)) <= {*range(classes), ignored}


def test_a_check_does_not_wait_for_torch():
    """Its answer comes in a second, and not after torch, timm and SMP are imported."""
    code = "import sys, vitseg_zoo.cli.check; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
