"""What masks mean: what is proposed for each kind, and that decoding gives the class that was meant."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.data.masks import MaskEncoding, count_values, propose, read_mask


def _counts(pixels: np.ndarray) -> tuple[dict, dict]:
    counted = count_values(pixels)
    return ({}, counted) if pixels.ndim == 3 else (counted, {})


@pytest.fixture
def classes() -> np.ndarray:
    """(32, 32) with blocks of the classes 0 to 2."""
    return np.kron(np.random.default_rng(0).integers(0, 3, (4, 4)), np.ones((8, 8), int)).astype(np.uint8)


@pytest.mark.parametrize(
    "levels, names, ignored",
    [
        ([0, 1, 2], None, None),
        ([0, 1, 2], ["a", "b", "c"], None),
        ([0, 127, 255], None, None),
        ([0, 100, 200], ["a", "b", "c"], None),
        ([1, 2, 3], None, None),
        ([1, 2, 3], ["a", "b", "c"], None),
        ([0, 1, 2], ["b", "c"], None),  # and a background without a name
    ],
)
def test_gray_levels(levels: list[int], names: list[str] | None, ignored: int | None, classes: np.ndarray):
    pixels = np.array(levels, np.uint8)[classes]
    found = propose(*_counts(pixels), names)
    np.testing.assert_array_equal(found.encoding.decode(pixels), classes)
    assert found.ignore_index is ignored and len(found.class_names) == len(found.palette) == 3
    assert bool(found.notes) == (levels != [0, 1, 2] or (names is not None and len(names) == 2))
    stacked = np.repeat(pixels[..., None], 3, 2)  # the same, saved as RGB
    np.testing.assert_array_equal(propose(*_counts(stacked), names).encoding.decode(stacked), classes)


@pytest.mark.parametrize("names", [None, ["background", "thing"], ["thing"]])
@pytest.mark.parametrize("high", [1, 128, 255])
def test_binary_masks(high: int, names: list[str] | None, classes: np.ndarray):
    pixels = (classes > 0).astype(np.uint8) * high
    found = propose(*_counts(pixels), names)
    np.testing.assert_array_equal(found.encoding.decode(pixels), classes > 0)
    assert found.ignore_index is None and len(found.class_names) == 2


def test_255_beside_class_numbers_has_no_label(classes: np.ndarray):
    pixels = np.where(classes == 2, 255, classes).astype(np.uint8)
    found = propose(*_counts(pixels), ["a", "b"])
    assert found.ignore_index == 255 and found.class_names == ("a", "b")
    np.testing.assert_array_equal(found.encoding.decode(pixels), pixels)


def test_a_class_called_void_is_no_class(classes: np.ndarray):
    found = propose(*_counts(classes), ["sky", "Unlabelled", "tree"])
    assert found.class_names == ("sky", "tree") and found.ignore_index == 255
    np.testing.assert_array_equal(found.encoding.decode(classes), np.array([0, 255, 1])[classes])


def test_colors_with_and_without_names(classes: np.ndarray):
    colors = np.array([[0, 0, 0], [128, 64, 0], [0, 0, 255]], np.uint8)
    pixels = colors[classes]
    named = propose({}, count_values(pixels), ["c", "a", "b"], [(0, 0, 255), (0, 0, 0), (128, 64, 0)])
    np.testing.assert_array_equal(named.encoding.decode(pixels), np.array([1, 2, 0])[classes])
    assert named.class_names == ("c", "a", "b") and not named.notes
    found = propose({}, count_values(pixels))
    decoded = found.encoding.decode(pixels)
    np.testing.assert_array_equal(np.array(found.palette, np.uint8)[decoded], pixels)
    assert found.class_names[0] == "background" and "#804000" in "".join(found.class_names)


def test_smoothed_and_jpeg_masks_are_snapped_and_counted(classes: np.ndarray, tmp_path: Path):
    binary = np.roll(np.kron((classes > 0).astype(np.uint8), np.ones((16, 16), np.uint8)), 3, (0, 1))
    Image.fromarray(binary * 255).save(tmp_path / "m.jpg", quality=80)
    pixels = read_mask(tmp_path / "m.jpg")
    assert len(np.unique(pixels)) > 8
    found = propose(*_counts(pixels), ["background", "thing"])
    assert found.encoding.snap and "pixels" in found.notes[0]
    assert (found.encoding.decode(pixels) == binary).mean() > 0.999
    colors = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)
    Image.fromarray(colors[binary]).save(tmp_path / "c.jpg", quality=80)
    pixels = read_mask(tmp_path / "c.jpg")
    found = propose(*_counts(pixels))
    assert found.encoding.snap and len(found.class_names) == 2
    assert (found.encoding.decode(pixels) == binary).mean() > 0.97


def test_photographs_are_no_masks():
    photograph = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    with pytest.raises(ValueError, match=r"^masks have \d+ colors, too many for classes: .* photographs\?$"):
        propose({}, count_values(photograph))
    with pytest.raises(ValueError, match="too many for classes"):
        propose(dict.fromkeys(range(0, 60000, 7), 1), {})


def test_undeclared_values_are_named():
    with pytest.raises(ValueError, match=r"^2 pixels have the values 7, 9, which are no class$"):
        MaskEncoding("gray", {0: 0, 1: 1}).decode(np.array([[0, 7], [9, 1]], np.uint8))
    with pytest.raises(ValueError, match="1 pixels have the values #0a0000, "):
        MaskEncoding("colors", {0: 0}).decode(np.array([[[10, 0, 0]]], np.uint8))


@pytest.mark.parametrize(
    "kind, ending",
    [(kind, ending) for kind in ("L", "P", "1") for ending in (".png", ".tif", ".bmp", ".gif", ".npy")]
    + [("I;16", ".png"), ("I;16", ".tif"), ("I;16", ".npy"), ("RGBA", ".png"), ("LA", ".png")],
)
def test_files(kind: str, ending: str, classes: np.ndarray, tmp_path: Path):
    path = tmp_path / f"mask{ending}"
    if ending == ".npy":
        np.save(path, classes.astype({"I;16": np.uint16, "P": np.int64, "1": np.float32}.get(kind, np.uint8)))
    elif kind == "I;16":
        Image.fromarray(classes.astype(np.uint16)).save(path)
    elif kind == "P":
        image = Image.fromarray(classes).convert("P")
        image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
        image.save(path)
    elif kind == "1":
        classes = (classes > 0).astype(np.uint8)
        Image.fromarray(classes * 255).convert("1").save(path)
    else:
        Image.fromarray(classes).convert(kind).save(path)
    pixels = read_mask(path)
    if kind == "1" and pixels.max() == 255:  # a GIF has no single bits
        pixels = pixels // 255
    np.testing.assert_array_equal(pixels[..., 0] if pixels.ndim == 3 else pixels, classes)


def test_palettes_that_differ_between_files_are_read_as_colors(tmp_path: Path):
    from vitseg_zoo.data.segmentation_folder import SegmentationFolder

    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    red = np.zeros((8, 8), np.uint8)
    red[2:5] = 1
    for name, palette, mask in [("a", [0, 0, 0, 255, 0, 0], red), ("b", [255, 0, 0, 0, 0, 0], 1 - red)]:
        Image.new("RGB", (8, 8)).save(tmp_path / "images" / f"{name}.png")
        image = Image.fromarray(mask).convert("P")
        image.putpalette(palette)
        image.save(tmp_path / "masks" / f"{name}.png")
    folder = SegmentationFolder(tmp_path, "train")
    np.testing.assert_array_equal(folder[0][1], red)
    assert folder.palette == ((0, 0, 0), (255, 0, 0))


def test_fractions_and_arrays_that_lie_about_their_size(tmp_path: Path):
    np.save(tmp_path / "f.npy", np.array([[0.5]]))
    with pytest.raises(ValueError, match=r"f\.npy has fractions"):
        read_mask(tmp_path / "f.npy")
    np.save(tmp_path / "g.npy", np.zeros((4, 4), np.uint8))
    content = (tmp_path / "g.npy").read_bytes()
    (tmp_path / "g.npy").write_bytes(content.replace(b"(4, 4)", b"(4000000, 4000000)"))
    with pytest.raises(ValueError, match=r"g\.npy cannot be read as a mask"):
        read_mask(tmp_path / "g.npy")
    np.save(tmp_path / "o.npy", np.array([[{}]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"o\.npy cannot be read as a mask"):
        read_mask(tmp_path / "o.npy")


@pytest.mark.parametrize("planes", [2, 4])
def test_planes_of_an_array_are_not_dropped_as_transparency(planes: int, tmp_path: Path):
    masks = np.zeros((4, 4, planes), np.uint8)
    masks[1:3, :, -1] = 1
    np.save(tmp_path / "a.npy", masks)
    with pytest.raises(ValueError, match=rf"a\.npy has {planes} channels of uint8: a mask has one"):
        read_mask(tmp_path / "a.npy")
    masks[..., -1] = 255
    np.save(tmp_path / "a.npy", masks)
    assert not read_mask(tmp_path / "a.npy").any()


def test_levels_of_smoothed_edges_are_no_classes():
    """A mask that was enlarged twofold has its edges at a quarter and three quarters."""
    blocks = np.kron(np.random.default_rng(0).integers(0, 2, (12, 12)), np.ones((16, 16), int))
    small = Image.fromarray((blocks * 255).astype(np.uint8))
    smooth = np.asarray(small.resize((384, 384), Image.Resampling.BICUBIC))
    found = propose(count_values(smooth), {})
    assert found.class_names == ("background", "foreground") and found.encoding.snap
    assert set(found.encoding.values) == {0, 255}
    # A rare class of a level of its own stays one.
    three = {0: 9000, 128: 300, 255: 700}
    assert len(propose(three, {}).class_names) == 3


def test_many_values_are_questioned():
    notes = propose(dict.fromkeys(range(240), 10), {}).notes
    assert any("are these masks, or photographs" in note for note in notes)
