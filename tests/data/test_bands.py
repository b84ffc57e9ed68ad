"""Images of other than three channels of 8 bits: read alike by check, training and prediction."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from vitseg_zoo import Predictor, load_model
from vitseg_zoo.cli import main
from vitseg_zoo.data.dataset import SegmentationDataset
from vitseg_zoo.data.images import as_image, read_image, read_pixels, to_picture
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

rasterio = pytest.importorskip("rasterio")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def _write(path: Path, bands: np.ndarray) -> None:
    """Write (C, H, W) as a TIFF."""
    count, height, width = bands.shape
    path.parent.mkdir(parents=True, exist_ok=True)
    options = dict(driver="GTiff", count=count, height=height, width=width, dtype=bands.dtype, compress="lzw")
    with rasterio.open(path, "w", **options) as file:
        file.write(bands)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 13])
def test_tiffs_are_read_as_they_were_written(count: int, dtype: str, tmp_path: Path, capfd) -> None:
    bands = (np.random.default_rng(0).random((count, 20, 30)) * 200).astype(dtype)
    _write(tmp_path / "a.tif", bands)
    pixels, palette = read_pixels(tmp_path / "a.tif")
    assert palette is None
    np.testing.assert_array_equal(pixels.reshape(20, 30, count), np.moveaxis(bands, 0, -1))
    image = read_image(tmp_path / "a.tif", count)
    assert image.dtype == (dtype if dtype.startswith("u") else "float32")
    assert to_picture(image).shape == (20, 30, 3) and to_picture(image).dtype == np.uint8
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("channels", [3, 4])
def test_color_pngs_of_16_bits_keep_them(channels: int, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, channels), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., [2, 1, 0, 3][:channels]])
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", channels), pixels)


def test_gray_and_color_become_each_other_and_no_other_channels_do() -> None:
    rgba = np.random.default_rng(0).integers(0, 256, (6, 5, 4), np.uint8)
    np.testing.assert_array_equal(as_image(rgba, 3), rgba[..., :3])
    gray = as_image(rgba, 1)
    reference = np.asarray(Image.fromarray(rgba[..., :3]).convert("L")).astype(int)
    assert gray.dtype == np.uint8 and abs(gray.astype(int) - reference).max() <= 1
    np.testing.assert_array_equal(as_image(gray, 3), np.repeat(gray[..., None], 3, 2))
    with pytest.raises(ValueError, match="has 4 channels, where 5 are wanted"):
        as_image(rgba, 5)


def test_an_array_may_have_its_channels_first(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((80, 90, 7))
    for name, array in (("last", pixels), ("first", np.moveaxis(pixels, 2, 0))):
        np.save(tmp_path / f"{name}.npy", array)
        np.testing.assert_array_equal(read_image(tmp_path / f"{name}.npy", 7), pixels.astype(np.float32))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images of 4 bands of 12 bits in 16; what is to be found shows in the fourth alone."""
    rng = np.random.default_rng(0)
    for i in range(10):
        inside = np.zeros((40, 48), bool)
        inside[8 : 20 + i, 10:38] = True
        bands = rng.integers(300, 500, (4, 40, 48)).astype(np.uint16)
        bands[3, inside] = rng.integers(3000, 3500, inside.sum())
        _write(tmp_path / f"data/images/{i}.tif", bands)
        (tmp_path / "data/masks").mkdir(exist_ok=True)
        Image.fromarray(inside.astype(np.uint8) * 255).save(tmp_path / f"data/masks/{i}.png")
    return tmp_path / "data"


def test_four_bands_of_16_bits_from_check_to_prediction(root: Path, tmp_path: Path, capsys) -> None:
    written = tmp_path / "dataset.yaml"
    assert main(["check", str(root), "--write", str(written), "--html", str(tmp_path / "check.html")]) == 0
    said = capsys.readouterr().out
    assert "4 channels" in said and "channels: 4" in written.read_text()
    assert "10 images of 16 bits without a number above 3499, as of 12 bits" in said
    train = SegmentationFolder(root, "train")
    assert train.channels == 4 and train[0][0].shape == (40, 48, 4) and train[0][0].dtype == np.uint16

    measured = SegmentationDataset(train, (40, 48), classes=2).measure_channels()
    stacked = np.stack([image for image, _ in train]).astype(np.float64) / 65535
    np.testing.assert_allclose(measured["mean"], stacked.mean((0, 1, 2)), rtol=1e-5)
    np.testing.assert_allclose(measured["std"], stacked.std((0, 1, 2)), rtol=1e-4)

    out = tmp_path / "run"
    options = "--epochs 1 --batch-size 4 --image-size 32 --crop-size 32 --num-workers 0 --precision 32-true"
    options += " --arch unet --encoder-name mobilenet_v2"
    assert main(["train", str(written), "--out", str(out), *options.split()]) == 0
    weights = out / "model.safetensors"
    model, metadata = load_model(weights)
    assert metadata["arguments"]["in_channels"] == 4
    for key, values in SegmentationDataset(train, 32, classes=2).measure_channels().items():
        np.testing.assert_allclose(metadata[key], values, rtol=1e-5)

    image = train[0][0]
    pixels = cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA).astype(np.float32) / 65535
    pixels = (pixels - metadata["mean"]) / metadata["std"]
    with torch.inference_mode():
        logits = model.eval()(torch.tensor(pixels, dtype=torch.float32).permute(2, 0, 1)[None])
        expected = torch.nn.functional.interpolate(logits, (40, 48), mode="bilinear").argmax(1)[0].numpy()
    target = tmp_path / "masks"
    assert main(["predict", str(root / "images"), "--weights", str(weights), "--out", str(target)]) == 0
    mask = np.asarray(Image.open(target / f"{train.pairs[0].name}_mask.png"))
    assert 0 < mask.mean() < 1 and (mask != expected).mean() < 0.01  # but for ties
    predictor = Predictor(weights, "cpu")
    floats = torch.from_numpy(np.moveaxis(image.astype(np.float32) / 65535, 2, 0).copy())
    assert (predictor(floats).labels != expected).mean() < 0.01
    with pytest.raises(ValueError, match=r"photo\.png has 3 channels, where 4 are wanted"):
        Image.new("RGB", (48, 40)).save(tmp_path / "photo.png")
        predictor(tmp_path / "photo.png")
