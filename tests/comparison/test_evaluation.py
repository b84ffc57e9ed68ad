"""Models measured image by image: sums, files that are read again, classes by name, the command."""

import csv
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

from vitseg_zoo import load_model, save_model
from vitseg_zoo.cli import main
from vitseg_zoo.comparison.evaluation import (
    Evaluation,
    evaluate_images,
    read_evaluation,
    save_evaluation,
    shrink,
)
from vitseg_zoo.data.origin import open_split
from vitseg_zoo.inference.evaluate import evaluate
from vitseg_zoo.inference.predictor import Predictor

NAMES = ["pet", "background", "border"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Six pets in the plain layout, of which one has a name that HTML must not read."""
    root = tmp_path_factory.mktemp("pets")
    pets = open_split(data_root / "oxford-iiit-pet")
    for kind in ("images", "masks"):
        (root / "test" / kind).mkdir(parents=True)
    for index in range(6):
        name = "<img src=x>&" if index == 0 else pets.name(index)
        image, mask = pets[index]
        Image.fromarray(image).save(root / "test" / "images" / f"{name}.png")
        Image.fromarray(mask).save(root / "test" / "masks" / f"{name}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a small model of random weights."""
    torch.manual_seed(0)
    model = smp.create_model("unet", encoder_name="resnet18", encoder_weights=None, classes=3)
    path = tmp_path_factory.mktemp("weights") / "unet.safetensors"
    return save_model(model, path, class_names=NAMES, input_size=(64, 64))


def test_sums_over_images_are_the_scores_of_the_split(folder: Path, weights: Path, tmp_path: Path):
    pairs = open_split(folder)
    found = evaluate_images(Predictor(weights, "cpu"), pairs, margins=True)
    expected = evaluate(*load_model(weights), pairs)
    assert found.scores()["miou"] == pytest.approx(expected["miou"], abs=1e-5)
    assert found.scores()["pixel_accuracy"] == pytest.approx(expected["pixel_accuracy"], abs=1e-5)
    np.testing.assert_array_equal(np.diag(found.confusion), found.counts.right.sum(0))
    np.testing.assert_array_equal(found.confusion.sum(0), found.counts.predicted.sum(0))
    assert found.image_scores()["miou"].shape == (6,) and len(found.margins) == 6
    # The margin is the largest probability less the second.
    top = np.sort(Predictor(weights, "cpu")(pairs[2][0], probabilities=True).probabilities, axis=0)
    np.testing.assert_allclose(found.margins[2] / 255, shrink(top[-1] - top[-2]), atol=0.003)

    save_evaluation(found, tmp_path / "evaluation.npz", {"weights": 1})
    again = read_evaluation(tmp_path / "evaluation.npz", {"weights": 1})
    assert isinstance(again, Evaluation) and again.names == found.names and again.class_names == tuple(NAMES)
    np.testing.assert_array_equal(np.stack(again.counts), np.stack(found.counts))
    for one, other in zip(again.labels, found.labels, strict=True):
        np.testing.assert_array_equal(one, other)
    assert read_evaluation(tmp_path / "evaluation.npz", {"weights": 2}) is None
    (tmp_path / "evaluation.npz").write_bytes((tmp_path / "evaluation.npz").read_bytes()[:500])
    assert read_evaluation(tmp_path / "evaluation.npz", {"weights": 1}) is None
    assert read_evaluation(tmp_path / "none.npz", {}) is None


def test_classes_are_matched_by_their_names(folder: Path, weights: Path, tmp_path: Path):
    pairs, predictor = open_split(folder), Predictor(weights, "cpu")
    expected = evaluate_images(predictor, pairs)
    order = [2, 0, 1]  # the model's numbers of the data's classes
    head = predictor.model.segmentation_head[0]
    with torch.no_grad():
        for parameter in (head.weight, head.bias):
            parameter.copy_(parameter[np.argsort(order)].clone())
    predictor.metadata["class_names"] = [NAMES[i] for i in np.argsort(order)]
    np.testing.assert_array_equal(
        np.stack(evaluate_images(predictor, pairs).counts), np.stack(expected.counts)
    )
    predictor.metadata["class_names"] = ["pet", "sky", "road"]
    with pytest.raises(ValueError, match=r"the model's classes \(pet, sky, road\) are not those of the data"):
        evaluate_images(predictor, pairs)
    predictor.metadata["class_names"], predictor.classes = ["a", "b"], 2
    with pytest.raises(ValueError, match=r"the model has 2 classes \(a, b\), but the data 3"):
        evaluate_images(predictor, pairs)


def test_evaluate_writes_a_report_a_table_scores_of_images_and_maps(
    folder: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["evaluate", str(weights), str(folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "6 images; images are squeezed to 64 x 64 pixels" in said and "14.33 M" in said
    with open(tmp_path / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {"model", "image", "miou", "boundary_f1", "iou_border"} <= set(rows[0])
    assert all(0 <= float(row["miou"]) <= 1 for row in rows)
    table = (tmp_path / "table.md").read_text()
    assert "| unet.safetensors | " in table and "| border | " in table
    maps = sorted((tmp_path / "confidence").iterdir())
    assert len(maps) == 6 and Image.open(maps[1]).size == Image.fromarray(open_split(folder)[1][0]).size
    html = (tmp_path / "report.html").read_text()
    assert "&lt;img src=x&gt;&amp;" in html and "<img src=x>" not in html and 'src="http' not in html
    assert html.count("confidence</figcaption>") == 6

    assert main(["evaluate", str(weights), str(folder), "--split", "train"]) == 1
    assert "has no split 'train', only test" in capsys.readouterr().err
