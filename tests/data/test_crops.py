"""Parts of large images: which, how they are read, and that nothing is squeezed."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset

from vitseg_zoo.data.crops import CropDataset
from vitseg_zoo.data.dataset import BadImage
from vitseg_zoo.data.images import read_image, read_pixels, read_window
from vitseg_zoo.data.segmentation_folder import SegmentationFolder


def _places(height: int, width: int) -> np.ndarray:
    """An image that says of each pixel where it is: row and column, in steps of 2."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows // 2, columns // 2, 0 * rows], 2).astype(np.uint8)


def _pair(height: int, width: int, mask: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    return _places(height, width), np.zeros((height, width), np.uint8) if mask is None else mask


class _None:
    def set_random_seed(self, seed: int) -> None: ...

    def __call__(self, **pair: np.ndarray) -> dict[str, np.ndarray]:
        return pair


def test_tiles_cover_every_pixel_and_are_of_one_size():
    sizes = [(100, 250), (64, 64), (40, 130)]
    dataset = CropDataset([_pair(*size) for size in sizes], (64, 96), classes=1)
    assert len(dataset) == 2 * 3 + 1 + 2
    assert {tuple(image.shape) for image, _ in dataset} == {(3, 64, 96)}
    seen = {(row, column) for i in range(6) for row, column, _ in dataset.plain(i)[0].reshape(-1, 3).tolist()}
    assert seen == {(row // 2, column // 2) for row in range(100) for column in range(250)}
    assert [dataset.name(index) for index in (0, 5, 6, 7)] == ["image 0", "image 0", "image 1", "image 2"]


@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 2.0)])
def test_random_parts_keep_the_ratio_of_sides_and_lie_in_the_image(scale: tuple[float, float]):
    dataset = CropDataset([_pair(300, 400)], 64, 1, augment=_None(), scale=scale, by_class=0)
    assert len(dataset) == 5 * 7
    spans = []
    for index in range(len(dataset)):
        image, _ = dataset.augmented(index)
        # Rows and columns rise over the part as far as it is high and wide in the image.
        spans.append([float(image[..., axis].max()) - image[..., axis].min() for axis in (0, 1)])
    spans = 2 * np.array(spans) + 2
    np.testing.assert_allclose(spans[:, 0], spans[:, 1], atol=4)
    low, high = 64 / scale[1], 64 / scale[0]
    assert spans.min() > low - 4 and spans.max() < high + 4
    assert (spans.max() - spans.min() > 50) == (scale != (1.0, 1.0))


def test_no_part_is_larger_than_an_image_that_could_fill_one():
    dataset = CropDataset([_pair(80, 200)], 64, 1, augment=_None(), by_class=0)
    for index in range(len(dataset)):
        rows = dataset.augmented(index)[0][:, 0, 0].astype(int)
        assert (np.diff(rows) >= 0).all()  # never mirrored


def test_small_images_are_continued_by_their_mirror_image():
    image, mask = CropDataset([_pair(40, 64)], 64, 1).plain(0)
    np.testing.assert_array_equal(image[40:60], image[38:18:-1])
    assert mask.shape == (64, 64)


def test_rare_classes_are_drawn_as_often_as_others():
    mask = np.zeros((400, 400), np.uint8)
    mask[300:304, 50:54] = 1
    mask[:4, 396:] = 2

    def share(by_class: float, number: int) -> float:
        dataset = CropDataset([_pair(400, 400, mask)] * 10, 64, 3, augment=_None(), by_class=by_class)
        return float(np.mean([(dataset.augmented(i)[1] == number).any() for i in range(len(dataset))]))

    assert share(0, 1) < 0.08 and share(0, 2) < 0.08
    for number in (1, 2):  # a third of those parts
        assert 0.25 < share(1.0, number) < 0.5
        assert 0.05 < share(1 / 3, number) < 0.25


@pytest.mark.parametrize("workers", [0, 2])
def test_parts_depend_on_seed_and_epoch_alone(workers: int):
    def parts(epoch: int, seed: int = 0) -> torch.Tensor:
        dataset = CropDataset([_pair(200, 200)] * 2, 64, 1, augment=_None(), seed=seed).cache()
        dataset.set_epoch(epoch)
        return torch.cat([image for image, _ in DataLoader(dataset, 4, num_workers=workers)])

    assert torch.equal(parts(1), parts(1))
    assert not torch.equal(parts(1), parts(2)) and not torch.equal(parts(1), parts(1, seed=1))


def _folder(root: Path, suffix: str, **options) -> Path:
    """Two images of 150 x 200 with masks."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True)
    for index in range(2):
        image = Image.fromarray(rng.integers(0, 256, (150, 200, 3), np.uint8))
        image.save(root / "train" / "images" / f"{index}{suffix}", **options)
        mask = Image.fromarray(rng.integers(0, 3, (150, 200), np.uint8))
        mask.save(root / "train" / "masks" / f"{index}{'.tif' if suffix == '.tif' else '.png'}")
    (root / "classes.txt").write_text("a\nb\nc\n")
    return root


@pytest.mark.parametrize("suffix", [".tif", ".png"])
def test_parts_are_the_same_from_memory_and_from_files(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("rasterio")
    source = Subset(SegmentationFolder(_folder(tmp_path, suffix), "train"), [1, 0])

    def dataset() -> CropDataset:
        return CropDataset(source, 64, 3, augment=_None())

    kept = dataset().cache()
    monkeypatch.setattr("vitseg_zoo.data.dataset.free_memory", lambda: 0)
    read = dataset().cache()
    assert kept._kept is not None and read._kept is None
    if suffix == ".tif":  # only parts are read
        monkeypatch.setattr(SegmentationFolder, "__getitem__", lambda *_: pytest.fail("all of it is decoded"))
    for index in range(len(kept)):
        for one, other in zip(kept.augmented(index), read.augmented(index), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16", "F", "1", "CMYK", "LA", "turned", "jpeg"])
def test_a_window_of_a_tiff_is_what_is_read_of_it_or_nothing(mode: str, tmp_path: Path):
    pytest.importorskip("rasterio")
    rng = np.random.default_rng(0)
    options = {"jpeg": {"compression": "jpeg"}, "turned": {"tiffinfo": {274: 6}}}.get(mode, {})
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 2**16, (60, 90), np.uint16))
    else:
        image = Image.fromarray(rng.integers(0, 256, (60, 90, 3), np.uint8))
        image = image.convert(mode if mode not in ("turned", "jpeg") else "RGB")
    image.save(tmp_path / "a.tif", **options)
    part = read_window(tmp_path / "a.tif", (10, 20, 30, 40))
    assert (part is None) == (mode in ("P", "1", "CMYK", "turned"))
    if part is not None:
        whole, _ = read_pixels(tmp_path / "a.tif")
        difference = np.abs(part.astype(float) - whole[10:40, 20:60])
        assert difference.max() <= (1 if mode == "jpeg" else 0)  # by two builds of a decoder
        assert part.dtype == whole.dtype


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rasters_are_turned_as_pillow_turns_images(orientation: int, tmp_path: Path):
    rasterio = pytest.importorskip("rasterio")
    from vitseg_zoo.data.images import read_size

    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "8.tif", tiffinfo={274: orientation})
    expected = read_image(tmp_path / "8.tif")  # Pillow's
    profile = {"driver": "GTiff", "height": 20, "width": 30, "count": 3, "dtype": "uint16"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        with rasterio.open(tmp_path / "16.tif", "w", **profile) as file:
            file.write(np.moveaxis(pixels, -1, 0).astype(np.uint16))
    content = (tmp_path / "16.tif").read_bytes()
    with open(tmp_path / "16.tif", "wb") as file:
        file.write(_with_orientation(content, orientation))
    found = read_image(tmp_path / "16.tif")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, expected)
    assert read_size(tmp_path / "16.tif") == expected.shape[:2]


def _with_orientation(content: bytes, orientation: int) -> bytes:
    """Append the directory of a TIFF anew, with the tag of orientation in it."""
    start = int.from_bytes(content[4:8], "little")
    count = int.from_bytes(content[start : start + 2], "little")
    entries = [content[start + 2 + 12 * i : start + 14 + 12 * i] for i in range(count)]
    entry = ((274, 2), (3, 2), (1, 4), (orientation, 4))  # tag, type, count, value
    entries.append(b"".join(number.to_bytes(size, "little") for number, size in entry))
    entries.sort(key=lambda entry: int.from_bytes(entry[:2], "little"))
    content += b"\0" * (len(content) % 2)
    directory = len(entries).to_bytes(2, "little") + b"".join(entries) + bytes(4)
    return content[:4] + len(content).to_bytes(4, "little") + content[8:] + directory


def test_bad_images_are_named_or_passed_over(tmp_path: Path, capfd: pytest.CaptureFixture):
    folder = SegmentationFolder(_folder(tmp_path, ".png"), "train")
    path = tmp_path / "train" / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(BadImage, match=r"train/images/1\.png cannot be read as an image"):
        CropDataset(folder, 64, 3, augment=_None()).cache()
    dataset = CropDataset(folder, 64, 3, augment=_None(), skip_bad=True).cache()
    assert all(dataset[index][0].shape == (3, 64, 64) for index in range(len(dataset)))
    assert capfd.readouterr().err.count("passed over: ") == 1
