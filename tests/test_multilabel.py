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

from vitseg_zoo import Predictor, load_model, save_model
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
    options = {**SMALL, "epochs": 12, "lr": 5e-3, "ema": 0.9, "model_args": TINY, "class_weights": "auto"}
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
    plain = tmp_path / "plain"
    for i in range(4):
        image, masks = _draw(i)
        _save(plain / f"images/{i}.png", image)
        _save(plain / f"masks/{i}.png", masks[..., 0])
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
