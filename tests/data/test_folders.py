"""A user's own folders: what is read, and one clear sentence for what is wrong, before a training starts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo.data.class_files import read_class_file
from vitseg_zoo.data.folders import ImageFolders


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three pairs of 8 x 6 pixels with the classes 0 to 2."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind).mkdir(parents=True)
    for name in "abc":
        Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).save(_image(tmp_path, name))
        Image.fromarray(rng.integers(0, 3, (6, 8), np.uint8)).save(_mask(tmp_path, name))
    (tmp_path / "classes.txt").write_text("sky\nroad \ntree\n\n")
    return tmp_path


def _image(root: Path, name: str) -> Path:
    return root / "train" / "images" / f"{name}.png"


def _mask(root: Path, name: str) -> Path:
    return root / "train" / "masks" / f"{name}.png"


def test_pairs_are_read_in_the_order_of_their_names(root: Path):
    folders = ImageFolders(root, "train").check()
    assert folders.class_names == ("sky", "road", "tree") and len(folders) == 3
    for index, name in enumerate("abc"):
        image, mask = folders[index]
        np.testing.assert_array_equal(image, np.asarray(Image.open(_image(root, name))))
        np.testing.assert_array_equal(mask, np.asarray(Image.open(_mask(root, name))))


def test_masks_with_a_palette_and_gray_images_turned_by_exif(root: Path):
    mask = Image.fromarray(np.asarray(Image.open(_mask(root, "a")))).convert("P")
    mask.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    labels = np.asarray(mask)
    mask.save(_mask(root, "a"))
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying
    gray = Image.open(_image(root, "a")).convert("L")
    gray.transpose(Image.Transpose.ROTATE_90).save(_image(root, "a"), exif=exif)
    image, read = ImageFolders(root, "train").check()[0]
    np.testing.assert_array_equal(read, labels)
    np.testing.assert_array_equal(image, np.asarray(gray.convert("RGB")))


def test_undeclared_values_are_named_with_their_masks(root: Path):
    Image.fromarray(np.full((6, 8), 255, np.uint8)).save(_mask(root, "b"))
    with pytest.raises(
        ValueError, match=r"^1 of 3 masks have the values 255, .*0 to 2.*ignore_index \(b\.png\)"
    ):
        ImageFolders(root, "train").check()
    assert len(ImageFolders(root, "train", ignore_index=255).check()) == 3


@pytest.mark.parametrize(
    "mask, message",
    [
        (np.zeros((6, 8, 3), np.uint8), r"b\.png has 3 channels: .* number of a class in each pixel"),
        (np.zeros((6, 9), np.uint8), r"b\.png is 9 x 6 pixels, but its image is 8 x 6"),
    ],
)
def test_masks_that_do_not_fit(mask: np.ndarray, message: str, root: Path):
    Image.fromarray(mask).save(_mask(root, "b"))
    with pytest.raises(ValueError, match=message):
        ImageFolders(root, "train").check()


def test_a_damaged_image_is_named(root: Path):
    _image(root, "c").write_bytes(_image(root, "c").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"images.c\.png cannot be read as an image"):
        ImageFolders(root, "train").check()


def test_a_damaged_mask_is_named(root: Path):
    _mask(root, "c").write_bytes(_mask(root, "c").read_bytes()[:50])
    with pytest.raises(ValueError, match=r"masks.c\.png cannot be read as a mask"):
        ImageFolders(root, "train").check()


def test_images_of_16_bits_keep_them(root: Path):
    Image.fromarray(np.full((6, 8), 40000, np.uint16)).save(_image(root, "b"))
    image, _ = ImageFolders(root, "train").check()[1]
    assert image.dtype == np.uint16 and image.shape == (6, 8, 3) and (image == 40000).all()


def test_two_images_of_one_name_are_both_named(root: Path):
    Image.open(_image(root, "b")).save(_image(root, "b").with_suffix(".jpg"))
    with pytest.raises(ValueError, match=r"images has both b\.jpg and b\.png"):
        ImageFolders(root, "train")


def test_classes_of_one_name_are_refused(root: Path):
    (root / "classes.txt").write_text("sky\ntree\nsky \n")
    with pytest.raises(ValueError, match=r"classes\.txt names sky more than once: give each"):
        ImageFolders(root, "train")


@pytest.mark.parametrize("kind, other", [("masks", "images"), ("images", "masks")])
def test_files_without_partner(kind: str, other: str, root: Path):
    (root / "train" / kind / "b.png").unlink()
    with pytest.raises(FileNotFoundError, match=rf"^1 of 3 pairs in .*train have no file in {kind}: b\.$"):
        ImageFolders(root, "train")


def test_folders_that_are_not_there(root: Path):
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*val.images: .*val/masks/NAME\.png"):
        ImageFolders(root, "val")
    (root / "classes.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*classes\.txt: .* a class a line"):
        ImageFolders(root, "train")


@pytest.mark.parametrize(
    "content, message",
    [
        (b" \n\n", r"classes\.txt is empty: it should name the classes"),
        (b"sky\n\nroad\n", r"classes\.txt has nothing in line 2: .* name that class or take the line out"),
        ("ciel\nv\u00e9lo\n".encode("latin-1"), r"classes\.txt is not UTF-8"),
    ],
)
def test_classes_that_cannot_be_counted(content: bytes, message: str, root: Path):
    (root / "classes.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        ImageFolders(root, "train")


def test_the_mark_of_an_editor_is_no_part_of_the_first_name(root: Path):
    (root / "classes.txt").write_bytes("sky\r\nv\u00e9lo\r\ntree\r\n".encode("utf-8-sig"))
    assert ImageFolders(root, "train").class_names == ("sky", "v\u00e9lo", "tree")


def test_a_file_in_place_of_a_folder(root: Path):
    (root / "val" / "images").mkdir(parents=True)
    (root / "val" / "masks").touch()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*val.masks: "):
        ImageFolders(root, "val")


def test_clothing(data_root: Path):
    folders = ImageFolders(data_root / "clothing", "val")
    image, mask = folders[0]
    assert len(folders) == 200 and len(folders.class_names) == 7
    assert image.shape == (*mask.shape, 3) and mask.max() < 7


def test_only_line_ends_end_the_line_of_a_class(tmp_path: Path) -> None:
    """Others may stand in a name; a line more would be another number for every class behind it."""
    names = ("sky", "wet\u2028road", "a\x85b", "c\x0bd", "e\x0cf", "tree")
    (tmp_path / "classes.txt").write_bytes("\r\n".join(names).encode())
    assert read_class_file(tmp_path / "classes.txt")[0] == names
