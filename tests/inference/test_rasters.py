"""GeoTIFFs and images larger than memory, by window, against the same prediction in memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import ExifTags, Image

from vitseg_zoo import Predictor
from vitseg_zoo.cli import main
from vitseg_zoo.inference import rasters
from vitseg_zoo.inference.rasters import NODATA, is_windowed, predict_raster

rasterio = pytest.importorskip("rasterio")

PALETTE = [(0, 0, 0), (255, 0, 0), (0, 0, 255)]
ORIGIN, PIXEL = (500000.0, 5500000.0), 0.5  # UTM zone 32 north


@pytest.fixture
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3)
    return Predictor(model, "cpu", tile=64)


@pytest.fixture
def image() -> np.ndarray:
    small = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return np.asarray(small.resize((210, 270), Image.Resampling.BICUBIC))


def _write(path: Path, image: np.ndarray, **options) -> Path:
    place = dict(crs="EPSG:32632", transform=rasterio.transform.from_origin(*ORIGIN, PIXEL, PIXEL))
    shape = dict(height=image.shape[0], width=image.shape[1], count=image.shape[2], dtype=image.dtype)
    with rasterio.open(path, "w", driver="GTiff", **shape, **(place | options)) as raster:
        raster.write(np.moveaxis(image, -1, 0))
    return path


def test_georeference_and_gaps_are_kept(predictor, image, tmp_path):
    image = image.copy()
    image[:40, 30:60] = 0
    path = _write(tmp_path / "a.tif", image, nodata=0)
    expected = predictor(image).labels
    expected[:40, 30:60] = NODATA
    counts = predict_raster(predictor, path, tmp_path / "a_mask.tif", PALETTE)
    with rasterio.open(path) as source, rasterio.open(tmp_path / "a_mask.tif") as mask:
        assert (mask.crs, mask.transform, mask.nodata) == (source.crs, source.transform, NODATA)
        labels = mask.read(1)
        assert [mask.colormap(1)[index][:3] for index in range(3)] == PALETTE
    is_gap = (image == 0).any(2)
    assert (labels == expected)[~is_gap | (expected == NODATA)].all()
    np.testing.assert_array_equal(counts, np.bincount(labels[labels != NODATA], minlength=3))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.tif", "a_mask.tif"]


@pytest.mark.parametrize("kind", ["png", "jpg", "gray.png", "palette.png"])
def test_other_images_by_window(predictor, image, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "LARGE", 1000)
    picture = Image.fromarray(image)
    picture = picture.convert({"gray": "L", "palette": "P"}.get(kind.split(".")[0], "RGB"))
    picture.save(tmp_path / f"a.{kind}")
    assert is_windowed(tmp_path / f"a.{kind}", predictor)
    predict_raster(predictor, tmp_path / f"a.{kind}", tmp_path / "mask.png", PALETTE)
    mask = Image.open(tmp_path / "mask.png")
    assert mask.mode == "P" and mask.getpalette()[:9] == [part for color in PALETTE for part in color]
    labels = predictor(tmp_path / f"a.{kind}").labels
    assert (np.asarray(mask) == labels).mean() > (0.98 if kind == "jpg" else 0.9999)  # two JPEG decoders


@pytest.mark.parametrize("kind", ["tif", "jpg"])
def test_a_turned_image_is_read_whole(predictor, image, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "LARGE", 1000)
    for turned in (False, True):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6 if turned else 1
        Image.fromarray(image).save(tmp_path / f"a.{kind}", exif=exif)
        assert is_windowed(tmp_path / f"a.{kind}", predictor) is not turned
    assert predictor(tmp_path / f"a.{kind}").labels.shape == (210, 270)


def test_an_interrupted_image_goes_on(predictor, image, tmp_path, monkeypatch):
    path, out = _write(tmp_path / "a.tif", image), tmp_path / "a_mask.tif"
    predict_raster(predictor, path, tmp_path / "whole.tif", PALETTE, "model")
    runs = []
    predictor.model.register_forward_pre_hook(lambda *_: runs.append(1))
    label_rows = predictor.label_rows

    def stops(*args):
        for number, labels in enumerate(label_rows(*args)):
            if number == 3:
                raise KeyboardInterrupt
            yield labels

    monkeypatch.setattr(predictor, "label_rows", stops)
    with pytest.raises(KeyboardInterrupt):
        predict_raster(predictor, path, out, PALETTE, "model")
    first = len(runs)
    monkeypatch.setattr(predictor, "label_rows", label_rows)
    assert not out.exists() and (tmp_path / ".a_mask.partial.tif").is_file()
    counts = predict_raster(predictor, path, out, PALETTE, "model")
    with rasterio.open(out) as mask, rasterio.open(tmp_path / "whole.tif") as whole:
        np.testing.assert_array_equal(mask.read(1), whole.read(1))
        np.testing.assert_array_equal(counts, np.bincount(mask.read(1).ravel(), minlength=3))
    assert len(runs) - first == 4 * 5  # of 6 rows of 5 tiles those that were left, and the one above
    assert not list(tmp_path.glob(".*"))


def test_rows_of_another_model_are_not_taken_over(predictor, image, tmp_path):
    path, out = _write(tmp_path / "a.tif", image), tmp_path / "a_mask.tif"
    predict_raster(predictor, path, out, PALETTE, "one")
    state = {"task": ["a.tif", path.stat().st_size, path.stat().st_mtime_ns, "another", predictor.describe()]}
    (tmp_path / ".a_mask.partial.json").write_text(json.dumps(state | {"rows": 48, "counts": [0, 0, 0]}))
    with rasterio.open(out) as mask:
        expected = mask.read(1)
    rasterio.shutil.copy(out, tmp_path / ".a_mask.partial.tif")
    predict_raster(predictor, path, out, PALETTE, "one")
    with rasterio.open(out) as mask:
        np.testing.assert_array_equal(mask.read(1), expected)


def test_the_command(image, tmp_path, capsys):
    """A georeferenced image in tiles and squeezed, with areas in square meters and polygons on the globe."""
    path = _write(tmp_path / "field.tif", image)
    for options in (["--tile", "128"], []):
        out = tmp_path / f"out{len(options)}"
        outputs = ["--outputs", "overlay,areas,geojson", "--out", str(out)]
        assert main(["predict", str(path), *outputs, *options]) == 0, capsys.readouterr().err
        with rasterio.open(out / "field_mask.tif") as mask:
            assert mask.crs.to_epsg() == 32632 and mask.shape == (270, 210)
            labels = mask.read(1)
        rows = json.loads((out / "areas.json").read_text())
        assert sum(row["square_meters"] for row in rows) == pytest.approx(270 * 210 * PIXEL**2)
        features = json.loads((out / "field.geojson").read_text())["features"]
        longitudes, latitudes = zip(*features[0]["geometry"]["coordinates"][0], strict=True)
        assert 8.99 < min(longitudes) < 9.01 and 49.6 < min(latitudes) < 49.7
        assert {feature["properties"]["class"] for feature in features} <= {"pet", "border"}
        assert len(np.unique(labels)) > 1 and Image.open(out / "field_overlay.jpg").width == 210


def test_overviews(predictor, tmp_path):
    image = np.zeros((300, 1100, 3), np.uint8)
    predict_raster(predictor, _write(tmp_path / "a.tif", image), tmp_path / "mask.tif", PALETTE)
    with rasterio.open(tmp_path / "mask.tif") as mask:
        assert mask.overviews(1) and mask.profile["tiled"]


@pytest.mark.parametrize("overviews", [False, True])
def test_reduced(overviews, image, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "OVERLAY_SIDE", 135)
    monkeypatch.setattr(rasters, "_SAMPLED_ROWS", 20)
    path = _write(tmp_path / "a.tif", image)
    if overviews:
        with rasterio.open(path, "r+") as raster:
            raster.build_overviews([2])
    small = rasters.reduced_raster(path)
    assert small.shape == (135, 105, 3)
    assert np.abs(small.astype(int) - image[1::2, 1::2]).mean() < (8 if overviews else 1e-9)


def test_a_mask_in_other_colors_is_of_another_model(image, tmp_path, capsys):
    words = ["predict", str(_write(tmp_path / "a.tif", image)), "--out", str(tmp_path / "out"), "--weights"]
    assert main([*words, "segformer_b0.pets"]) == 0 == main([*words, "vitseg_tiny.pets"])
    assert "have their mask" in capsys.readouterr().out
    assert main([*words, "segformer_b0.clothing"]) == 1
    assert "a_mask.tif is the mask of a model with other classes" in capsys.readouterr().err
