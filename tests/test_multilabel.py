"""A pixel of several classes, from the folder to the prediction: train, save, load, predict, export."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from PIL import Image
from vitseg_zoo.recipes import own_data

from vitseg_zoo import Predictor, cli, load_model, save_model
from vitseg_zoo.comparison.evaluation import evaluate_images
from vitseg_zoo.data.segmentation_folder import SegmentationFolder
from vitseg_zoo.inference.evaluate import evaluate
from vitseg_zoo.inference.export import export_model
from vitseg_zoo.weights.metadata import check_metadata

NAMES = ["bar", "disk"]
SMALL = {"arch": "unet", "encoder_name": "tu-test_resnet", "encoder_weights": None, "image_size": 32}
SMALL |= {"crop_size": 32, "precision": "32-true", "num_workers": 0, "batch_size": 2, "epochs": 1}
TINY = {"decoder_channels": (32, 16, 16, 8, 8)}


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _draw(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A green bar over a red disk, as bright sums, and their masks (48, 64, 2)."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((2, 48, 64), np.uint8)
    y = int(rng.integers(10, 38))
    cv2.circle(masks[1], (int(rng.integers(16, 48)), 24), 14, 1, -1)
    cv2.rectangle(masks[0], (0, y), (64, y + 8), 1, -1)
    image = np.full((48, 64, 3), 30, np.uint8)
    image[..., 0] += 180 * masks[1]
    image[..., 1] += 180 * masks[0]
    return image, np.moveaxis(masks, 0, 2)


def _plain(folder: Path) -> Path:
    """The same with one class a pixel."""
    for i in range(4):
        image, masks = _draw(i)
        _save(folder / f"plain/images/{i}.png", image)
        _save(folder / f"plain/masks/{i}.png", masks[..., 0])
    return folder / "plain"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    for i in range(12):
        split = "train" if i < 8 else "val"
        image, masks = _draw(i)
        _save(root / split / f"images/{i}.png", image)
        for index, name in enumerate(NAMES):
            _save(root / split / f"masks/{name}/{i}.png", masks[..., index] * 255)
    return root


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    options = {**SMALL, "epochs": 24, "lr": 5e-3, "ema": 0.9, "model_args": TINY, "class_weights": "auto"}
    own_data.main(own_data.Config(**options, data=data, out=out))
    return out


def test_a_folder_is_trained_without_an_option_and_the_file_says_what_it_is(run: Path, data: Path):
    results = json.loads((run / "results.json").read_text())
    assert results["config"]["mode"] == "multilabel"
    assert results["test_last"].keys() == {"pixel_accuracy", "miou", "micro_iou", "iou_bar", "iou_disk"}
    assert results["test_last"]["miou"] > 0.6
    for name in ("predictions.png", "training.gif", "curves.png"):
        assert (run / name).is_file()
    model, metadata = load_model(run / "model.safetensors")
    assert metadata["mode"] == "multilabel" and metadata["class_names"] == NAMES
    # As the file's own score, by hand.
    masks = [
        (Predictor(model, "cpu", metadata=metadata)(_draw(i)[0]).labels, _draw(i)[1]) for i in range(8, 12)
    ]
    found, truth = (np.stack(part) > 0 for part in zip(*masks, strict=True))
    iou = (found & truth).sum((0, 1, 2)) / (found | truth).sum((0, 1, 2))
    np.testing.assert_allclose([results["test_last"][f"iou_{name}"] for name in NAMES], iou, atol=1e-5)
    assert (found.all(3) & truth.all(3)).sum() > 0.5 * truth.all(3).sum()  # pixels of both
    _, metadata = load_model(run / "checkpoints" / "last.ckpt")
    assert metadata["mode"] == "multilabel"


def test_options_that_do_not_fit_are_refused(data: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="the masks are multilabel, with which --mode binary does not go"):
        own_data.main(own_data.Config(**SMALL, data=data, out=tmp_path / "a", mode="binary"))
    plain = _plain(tmp_path)
    with pytest.raises(
        ValueError, match="the masks are multiclass, with which --mode multilabel does not go"
    ):
        own_data.main(own_data.Config(**SMALL, data=plain, out=tmp_path / "b", mode="multilabel"))


def test_metadata_are_checked_when_they_are_written_and_read(tmp_path: Path):
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=2)
    path = save_model(model, tmp_path / "m.safetensors", mode="multilabel")
    assert load_model(path)[1]["mode"] == "multilabel"
    with pytest.raises(
        ValueError, match="mode should be one of multiclass, binary, multilabel, got 'several'"
    ):
        save_model(model, tmp_path / "n.safetensors", mode="several")
    with pytest.raises(ValueError, match="mode binary does not go with a model of 2 classes"):
        save_model(model, tmp_path / "n.safetensors", mode="binary")
    with pytest.raises(ValueError, match="mode should be a text, got"):
        check_metadata({"mode": ["multilabel"]})


@pytest.mark.parametrize("activation", [None, "sigmoid"])
@pytest.mark.parametrize("classes", [1, 3])
def test_masks_are_sigmoids_above_one_half(activation: str | None, classes: int):
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=classes, activation=activation).eval()
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    metadata = {"mode": "multilabel", "input_size": (64, 96)}
    predictor = Predictor(model, "cpu", metadata=metadata)
    found = predictor(image)
    assert found.labels.shape == (50, 70, classes) and found.labels.dtype == bool
    assert len(predictor.class_names) == len(predictor.palette) == classes
    with torch.inference_mode():
        pixels = torch.from_numpy(cv2.resize(image, (96, 64), interpolation=cv2.INTER_AREA))
        logits = model(pixels.permute(2, 0, 1)[None] / 255)
        logits = logits.logit() if activation else logits
        chances = F.interpolate(logits, (50, 70), mode="bilinear").sigmoid()[0].numpy()
    np.testing.assert_array_equal(found.labels, np.moveaxis(chances > 0.5, 0, 2))
    both = predictor(image, probabilities=True, confidence=True)
    np.testing.assert_array_equal(both.labels, found.labels)
    np.testing.assert_allclose(both.probabilities, chances, atol=1e-6)
    np.testing.assert_allclose(
        both.confidence, np.moveaxis(np.maximum(chances, 1 - chances), 0, 2), atol=1e-6
    )
    score = evaluate(model, metadata | {"class_names": list("abc"[:classes])}, [(image, found.labels)])
    assert score["pixel_accuracy"] == score["micro_iou"] == 1


def test_tiles_are_blended_as_logits():
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=3).eval()
    image = np.random.default_rng(0).integers(0, 256, (70, 100, 3), np.uint8)
    predictor = Predictor(model, "cpu", metadata={"mode": "multilabel"}, tile=64)
    found = predictor(image, probabilities=True)
    assert found.labels.shape == (70, 100, 3)
    np.testing.assert_array_equal(found.labels, np.moveaxis(found.probabilities > 0.5, 0, 2))
    np.testing.assert_array_equal(predictor(image).labels, found.labels)


def test_an_exported_file_gives_logits_and_says_what_they_are(tmp_path: Path):
    model = smp.Unet("tu-test_resnet", encoder_weights=None, classes=2, **TINY)
    metadata = {"mode": "multilabel", "class_names": NAMES, "input_size": [64, 64]}
    with pytest.raises(
        ValueError, match="labels=True is for one class a pixel, and the model is multi-label"
    ):
        export_model(model, tmp_path / "m.pt2", metadata, size=(64, 64), batch=1, labels=True)
    report = export_model(model, tmp_path / "m.pt2", metadata, size=(64, 64), batch=1)
    assert report.agreements[0].labels > 0.99


def test_predict_writes_a_mask_a_class_and_an_overlay(run: Path, data: Path, tmp_path: Path, capsys):
    out = tmp_path / "out"
    words = [
        "predict",
        str(data / "val/images"),
        "--weights",
        str(run / "model.safetensors"),
        "--out",
        str(out),
    ]
    assert cli.main([*words, "--outputs", "mask,overlay,areas"]) == 0
    predictor = Predictor(run / "model.safetensors", "cpu")
    at = max(range(8, 12), key=lambda i: predictor(_draw(i)[0]).labels.all(2).sum())
    image = _draw(at)[0]
    labels = predictor(image).labels
    for index, name in enumerate(NAMES):
        mask = np.asarray(Image.open(out / f"{at}_mask/{name}.png"))
        np.testing.assert_array_equal(mask, labels[..., index] * 255)
    shown = np.asarray(Image.open(out / f"{at}_overlay.jpg"))[:48, :64].astype(int)
    mean = np.mean(predictor.palette, axis=0)  # where both are
    both = cv2.erode(labels.all(2).astype(np.uint8), np.ones((3, 3))) > 0  # away from JPEG's edges
    assert np.abs(shown[both].mean(0) - (image[both].mean(0) + mean) / 2).max() < 12
    rows = json.loads((out / "areas.json").read_text())
    shares = {row["class"]: row["share"] for row in rows if row["image"].endswith(f"{at}.png")}
    assert shares == {n: round(s, 6) for n, s in zip(NAMES, labels.mean((0, 1)), strict=True) if s}
    capsys.readouterr()
    assert cli.main(words) == 0 and "4 of 4 images have their mask and overlay" in capsys.readouterr().out
    assert cli.main([*words, "--outputs", "geojson"]) == 1
    assert "geojson is made of one class a pixel, but the model is multi-label" in capsys.readouterr().err


def test_outlines_are_those_of_each_class(run: Path, data: Path, tmp_path: Path):
    pytest.importorskip("pycocotools")
    words = ["predict", str(data / "val/images"), "--weights", str(run / "model.safetensors")]
    assert cli.main([*words, "--out", str(tmp_path), "--outputs", "coco"]) == 0
    annotations = json.loads((tmp_path / "coco.json").read_text())["annotations"]
    assert {annotation["category_id"] for annotation in annotations} == {1, 2}


def _aerial(path: Path) -> np.ndarray:
    """A GeoTIFF without data in its first rows."""
    rasterio = pytest.importorskip("rasterio")
    image = np.concatenate([_draw(i)[0] for i in range(3)])
    options = dict(driver="GTiff", height=144, width=64, count=3, dtype="uint8", crs="EPSG:32632")
    place = rasterio.transform.from_origin(5e5, 5e6, 1, 1)
    with rasterio.open(path, "w", **options, transform=place, nodata=7) as raster:
        raster.write(np.moveaxis(image, 2, 0))
        raster.write(np.full((3, 5, 64), 7, np.uint8), window=((0, 5), (0, 64)))
    image[:5] = 7
    return image


@pytest.mark.parametrize("tile", [[], ["--tile", "64"]], ids=["whole", "by window"])
def test_a_georeferenced_image_gives_a_band_a_class(run: Path, tmp_path: Path, tile: list[str], capsys):
    image, out = _aerial(tmp_path / "a.tif"), tmp_path / "out"
    words = [
        "predict",
        str(tmp_path / "a.tif"),
        "--weights",
        str(run / "model.safetensors"),
        "--out",
        str(out),
    ]
    assert cli.main([*words, *tile, "--outputs", "mask,overlay,areas"]) == 0
    labels = Predictor(run / "model.safetensors", "cpu", tile=64 if tile else None)(image).labels
    rasterio = pytest.importorskip("rasterio")
    with rasterio.open(out / "a_mask.tif") as mask, rasterio.open(tmp_path / "a.tif") as source:
        assert mask.descriptions == tuple(NAMES) and mask.dtypes == ("uint8", "uint8") and mask.nodata == 255
        assert mask.crs == source.crs and mask.transform == source.transform
        bands = np.moveaxis(mask.read(), 0, 2)
    assert (bands[:5] == 255).all()
    np.testing.assert_array_equal(bands[5:], labels[5:])
    rows = json.loads((out / "areas.json").read_text())
    pixels = {row["class"]: row["pixels"] for row in rows}
    assert pixels == dict(zip(NAMES, labels[5:].sum((0, 1)), strict=True))
    assert (out / "a_overlay.jpg").is_file()
    capsys.readouterr()
    assert cli.main([*words, *tile]) == 0 and "1 of 1 images have their mask" in capsys.readouterr().out
    assert cli.main([*words[:3], "segformer_b0.pets", *words[4:]]) == 1
    assert "a_mask.tif is the mask of a model with other classes" in capsys.readouterr().err


def test_an_interrupted_georeferenced_image_goes_on(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    _aerial(tmp_path / "a.tif")
    rasters = pytest.importorskip("vitseg_zoo.inference.rasters")
    predictor = Predictor(run / "model.safetensors", "cpu", tile=64)
    first, paths = [], [tmp_path / "a.tif", tmp_path / "a_mask.tif"]
    rows = predictor.label_rows

    def count(read, size, first_row=0):
        first.append(first_row)
        for number, labels in enumerate(rows(read, size, first_row)):
            if len(first) == 1 and number == 1:
                raise KeyboardInterrupt
            yield labels

    monkeypatch.setattr(predictor, "label_rows", count)
    with pytest.raises(KeyboardInterrupt):
        rasters.predict_raster(predictor, *paths, predictor.palette)
    counts = rasters.predict_raster(predictor, *paths, predictor.palette)
    assert first[0] == 0 < first[1]
    whole = rasters.predict_raster(predictor, paths[0], tmp_path / "whole.tif", predictor.palette)
    np.testing.assert_array_equal(counts, whole)
    np.testing.assert_array_equal(rasters.read_labels(paths[1]), rasters.read_labels(tmp_path / "whole.tif"))


def test_masks_of_another_model_in_the_folder_are_not_taken_for_this_one_s(
    run: Path, data: Path, tmp_path: Path, capsys
):
    image, weights = data / "val/images/8.png", run / "model.safetensors"
    words = ["predict", str(image), "--out", str(tmp_path), "--outputs", "mask", "--weights"]
    assert cli.main([*words, str(weights)]) == 0 == cli.main([*words, "segformer_b0.pets"])
    assert (tmp_path / "8_mask.png").is_file()  # beside the folder 8_mask
    for file in (tmp_path / "8_mask").iterdir():
        file.unlink()
    (tmp_path / "8_mask").rmdir()
    capsys.readouterr()
    assert cli.main([*words, str(weights)]) == 0 and "have their mask" not in capsys.readouterr().out
    assert {file.stem for file in (tmp_path / "8_mask").iterdir()} == {*NAMES}
    (tmp_path / "8_mask/bar.png").rename(tmp_path / "8_mask/cat.png")
    assert cli.main([*words, str(weights)]) == 1
    assert "8_mask is the mask of a model with other classes: choose another" in capsys.readouterr().err
    assert cli.main([*words, str(weights), "--overwrite"]) == 0
    assert {file.stem for file in (tmp_path / "8_mask").iterdir()} == {*NAMES}


def test_evaluate_and_compare_agree_with_the_training(run: Path, data: Path, tmp_path: Path, capsys):
    assert cli.main(["evaluate", str(run), str(data), "--out", str(tmp_path / "a")]) == 0
    assert cli.main(["compare", str(run), "--out", str(tmp_path / "b")]) == 0
    trained = json.loads((run / "results.json").read_text())["test_last"]
    for folder in ("a", "b"):
        table = (tmp_path / folder / "table.md").read_text()
        for name in NAMES:
            assert f"| {name} | {100 * trained[f'iou_{name}']:.1f} |" in table
        assert (
            f" {100 * trained['miou']:.1f} |" in table
            and f" {100 * trained['pixel_accuracy']:.1f} |" in table
        )
        page = (tmp_path / folder / "report.html").read_text()
        assert "What is taken for what" not in page and "their colors are mixed" in page
    assert len(list((tmp_path / "a/confidence").iterdir())) == 4


def test_planes_are_trained_on_and_measured_as_folders_are(run: Path, data: Path, tmp_path: Path):
    for image in sorted(data.rglob("images/*.png")):
        masks = image.parents[1] / "masks"
        planes = np.stack([np.asarray(Image.open(masks / name / image.name)) > 0 for name in NAMES], axis=2)
        copy = tmp_path / "planes" / image.relative_to(data)
        _save(copy, np.asarray(Image.open(image)))
        (copy.parents[1] / "masks").mkdir(exist_ok=True)
        np.save(copy.parents[1] / f"masks/{image.stem}.npy", planes)
    (tmp_path / "planes/classes.txt").write_text("\n".join(NAMES))
    tables = []
    for folder in (data, tmp_path / "planes"):
        assert cli.main(["evaluate", str(run), str(folder), "--out", str(tmp_path / folder.name)]) == 0
        tables.append((tmp_path / folder.name / "images.csv").read_text().splitlines()[1:])
    assert tables[0] == tables[1]
    own_data.main(own_data.Config(**SMALL, data=tmp_path / "planes", out=tmp_path / "run"))
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["config"]["mode"] == "multilabel" and "iou_disk" in results["test_last"]


def test_a_model_is_measured_on_data_of_its_own_kind(run: Path, data: Path, tmp_path: Path, capsys):
    plain = _plain(tmp_path)
    assert cli.main(["evaluate", str(run), str(plain), "--out", str(tmp_path / "a")]) == 1
    assert "the model is multilabel, but the data are multiclass" in capsys.readouterr().err
    assert cli.main(["evaluate", "segformer_b0.pets", str(data), "--out", str(tmp_path / "a")]) == 1
    assert "the model is multiclass, but the data are multilabel" in capsys.readouterr().err


def test_classes_in_another_order_are_matched_by_their_names(run: Path, data: Path):
    model, metadata = load_model(run / "model.safetensors")
    val = SegmentationFolder(data, "val")
    one = evaluate_images(Predictor(model, "cpu", metadata=metadata), val)
    val.class_names = tuple(NAMES[::-1])
    other = evaluate_images(Predictor(model, "cpu", metadata=metadata), val)
    np.testing.assert_allclose(other.counts.predicted, one.counts.predicted[:, ::-1])
