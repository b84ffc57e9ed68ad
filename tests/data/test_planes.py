"""Masks with a plane a class: what they become, by their values, and what is said of those that fit not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.cli import main
from vitseg_zoo.data.check import check
from vitseg_zoo.data.crops import CropDataset
from vitseg_zoo.data.description import read_description, write_description
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

pytestmark = pytest.mark.filterwarnings("ignore:Dataset has no geotransform")

SHAPE = (24, 32)
NAMES = ("person", "hat", "bag")


def _planes(i: int, overlap: bool = True) -> np.ndarray:
    """A person, a hat on or above it, and in every second image a bag: (H, W, 3) bool."""
    planes = np.zeros((*SHAPE, 3), bool)
    planes[8 + i :, 10:20, 0] = True
    planes[2 : 12 + i if overlap else 8, 12:18, 1] = True
    planes[15:20, 22:30, 2] = i % 2
    return planes


# 0 and 255 of three 8-bit channels are colors, so that kind has 16 bits.
FORMS = {
    "bool": lambda planes: planes,
    "uint8": lambda planes: planes.astype(np.uint8),
    "uint16, 255": lambda planes: planes.astype(np.uint16) * 255,
    "float": lambda planes: np.where(planes, 0.9, 0.2).astype(np.float32),
    "(classes, H, W)": lambda planes: np.moveaxis(np.pad(planes, ((0, 60), (0, 60), (0, 0))), 2, 0),
}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, pixels)
    elif path.suffix == ".tif":
        rasterio = pytest.importorskip("rasterio")
        options = dict(driver="GTiff", height=pixels.shape[0], width=pixels.shape[1], count=pixels.shape[2])
        with rasterio.open(
            path, "w", **options, dtype=pixels.dtype, tiled=True, blockxsize=16, blockysize=16
        ) as f:
            f.write(np.moveaxis(pixels, 2, 0))
    else:
        Image.fromarray(pixels).save(path)


def _make(
    root: Path, masks: list[np.ndarray], ending: str = "npy", names: tuple[str, ...] | None = NAMES
) -> Path:
    for i, mask in enumerate(masks):
        split = "train" if i < 4 else "val"
        size = mask.shape[1:] if mask.shape[0] == 3 else mask.shape[:2]
        photo = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
        _save(root / split / f"images/{i}.{'tif' if ending == 'tif' else 'png'}", photo)
        _save(root / split / f"masks/{i}.{ending}", mask)
    if names:
        (root / "classes.txt").write_text("\n".join(names))
    return root


@pytest.mark.parametrize(
    "ending, form", [*(("npy", form) for form in FORMS), ("tif", "uint8"), ("tif", "float")]
)
def test_planes_that_overlap_are_multilabel(ending: str, form: str, tmp_path: Path):
    """Whichever way they are stored; all that is empty among them is read as the others are."""
    planes = [_planes(i) for i in range(4)] + [_planes(5), np.zeros((*SHAPE, 3), bool)]
    planes = planes[-1:] + planes[:-1]
    root = _make(tmp_path / "data", [FORMS[form](mask) for mask in planes], ending)
    report = check(root)
    assert not report.has_errors
    assert report.description.multilabel and report.description.class_names == NAMES
    np.testing.assert_array_equal(report.pixels["train"][:3], sum(planes[i].sum((0, 1)) for i in range(4)))
    write_description(report.description, tmp_path / "dataset.yaml")
    assert read_description(tmp_path / "dataset.yaml") == report.description
    for source in (root, tmp_path / "dataset.yaml"):
        folder = SegmentationFolder(source, "train")
        assert folder.mode == "multilabel"
        for i in range(4):
            np.testing.assert_array_equal(folder[i][1][: SHAPE[0], : SHAPE[1]], planes[i])
    tiles = CropDataset(folder, 16, classes=3)
    assert tiles[1][1].shape == (3, 16, 16)


def test_a_part_of_a_tiff_is_read_by_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = _make(tmp_path, [_planes(i).astype(np.uint8) for i in range(5)], "tif")
    folder = SegmentationFolder(root, "train")
    with monkeypatch.context() as patched:
        patched.setattr("vitseg_zoo.data.planes.read_pixels", None)  # of a whole file
        part = folder.window(1, (4, 8, 10, 12))
    assert part is not None
    np.testing.assert_array_equal(part[1], _planes(1)[4:14, 8:20])


def test_planes_that_never_overlap_are_class_numbers(tmp_path: Path, capsys: pytest.CaptureFixture):
    planes = [_planes(i, overlap=False) for i in range(6)]
    root = _make(tmp_path, planes, names=None)
    report = check(root)
    assert not report.has_errors and not report.description.multilabel
    assert report.description.class_names == ("background", "class_0", "class_1", "class_2")
    wanted = planes[1] @ [1, 2, 3]
    np.testing.assert_array_equal(SegmentationFolder(root, "train")[1][1], wanted)
    assert main(["check", str(root)]) == 0
    assert "masks: a plane a class" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names, expected",
    [
        (("road", "background", "car"), ("background", "road", "car")),
        (("road", "field", "car"), ("road", "field", "car")),  # one-hot, and so nothing is left
        (("road", "void", "car"), ("road", "car")),
    ],
)
def test_one_hot(names: tuple[str, ...], expected: tuple[str, ...], tmp_path: Path):
    numbers = [np.random.default_rng(i).integers(0, 3, SHAPE) for i in range(5)]
    root = _make(tmp_path, [np.eye(3, dtype=np.uint8)[array] for array in numbers], names=names)
    description = check(root).description
    assert description.class_names == expected
    mask = SegmentationFolder(root, "train")[0][1]
    for index, name in enumerate(names):
        wanted = 255 if name == "void" else expected.index(name)
        assert (mask[numbers[0] == index] == wanted).all()
    assert description.ignore_index == (255 if "void" in names else None)


def test_colors_stay_colors(tmp_path: Path):
    """Red, green and blue of 0 and 255 are colors, and planes where dataset.yaml says so."""
    masks = [_planes(i, overlap=False).astype(np.uint8) * 255 for i in range(5)]
    root = _make(tmp_path / "data", masks, names=None)
    description = check(root).description
    assert description.encoding.kind == "colors"
    write_description(description, tmp_path / "a.yaml")
    text = (tmp_path / "a.yaml").read_text()
    classes = "\n".join(
        f"- {{name: {name}, color: '#{i}{i}0000', values: [{i}]}}" for i, name in enumerate(NAMES, 1)
    )
    text = (
        text[: text.index("masks: colors")]
        + f"masks: multilabel\nlabels: [person, hat, bag]\nclasses:\n{classes}\n"
    )
    (tmp_path / "a.yaml").write_text(text)
    mask = SegmentationFolder(tmp_path / "a.yaml", "train")[1][1]
    np.testing.assert_array_equal(mask, _planes(1, overlap=False))


def test_gray_stored_as_color_stays_class_numbers(tmp_path: Path):
    masks = [np.repeat(_planes(i)[..., :1], 3, 2).astype(np.uint8) for i in range(5)]
    root = _make(tmp_path, masks, names=None)
    np.testing.assert_array_equal(SegmentationFolder(root, "train")[1][1], _planes(1)[..., 0])


def test_another_number_of_planes_is_said_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture):
    root = _make(tmp_path, [_planes(i) for i in range(5)])
    np.save(root / "train/masks/2.npy", _planes(2)[..., :2])
    (error,) = [finding.text for finding in check(root).findings if finding.level == "error"]
    wanted = "2.npy has 2 planes, but there are 3 classes (person, hat, bag): it should have a plane of each."
    assert wanted in error
    with pytest.raises(ValueError, match=r"2\.npy has 2 planes, but there are 3 classes"):
        SegmentationFolder(root, "train")[2]
    np.save(root / "train/masks/2.npy", _planes(2) * 7)
    (error,) = [finding.text for finding in check(root).findings if finding.level == "error"]
    assert "2.npy should have a plane a class, of 0 and 1, of 0 and 255 or of floats" in error
    (root / "classes.txt").write_text("person\nhat")
    assert main(["check", str(root)]) == 1
    assert "0.npy has 3 planes, but there are 2 classes (person, hat)" in capsys.readouterr().err
