"""Trainings side by side: grouping, intervals, the report, and `vitseg compare` with and without training."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image
from scipy import stats

from vitseg_zoo import save_model
from vitseg_zoo.cli import main
from vitseg_zoo.comparison.bootstrap import interval, resample
from vitseg_zoo.comparison.evaluation import Evaluation
from vitseg_zoo.comparison.measure import FILE, open_data
from vitseg_zoo.comparison.pictures import disagreement
from vitseg_zoo.comparison.runs import Run, group_runs, read_runs
from vitseg_zoo.comparison.trainings import plan, time_left
from vitseg_zoo.counts import Counts, count_pixels
from vitseg_zoo.data.camvid import CamVid
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.origin import open_origin, open_split, origin_of
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.training.results import save_results

NAMES = ["pet", "background", "border"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, data_root: Path) -> Path:
    """Six pets in the plain layout."""
    root = tmp_path_factory.mktemp("pets")
    pets = OxfordPets(data_root, "test")
    for kind in ("images", "masks"):
        (root / "val" / kind).mkdir(parents=True)
    for index in range(6):
        for kind, pixels in zip(("images", "masks"), pets[index], strict=True):
            Image.fromarray(pixels).resize((48, 40), 0).save(root / "val" / kind / f"{index}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def make_run(out: Path, data: Path, seed: int, lr: float = 0.1, encoder: str = "tu-test_resnet") -> Path:
    """Write what a training leaves, of a model with random weights."""
    torch.manual_seed(seed)
    model = smp.create_model("unet", encoder_name=encoder, encoder_weights=None, classes=3)
    out.mkdir(parents=True)
    save_model(model, out / "model.safetensors", class_names=NAMES, input_size=(32, 32))
    rows = ["epoch,seconds,train_loss,val_loss,val_miou", "0,1.5,1.0,0.9,0.3", "1,1.5,0.8,0.7,0.4"]
    (out / "metrics.csv").write_text("\n".join(rows))
    (out / "epochs").mkdir()
    for epoch in range(2):
        Image.new("RGB", (7 * 16, 24 + 16), (250 * epoch, 0, 0)).save(out / "epochs" / f"{epoch:04d}.png")
    results = {
        "arch": "unet",
        "encoder_name": encoder,
        "epochs": 2,
        "seconds": 3.0,
        "hardware": "2 threads",
        "command": "python train.py --a '<b>'",
        "config": {"out": str(out), "seed": seed, "lr": lr, "epochs": 2},
        "measured_on": {"reader": "ImageFolders", "path": str(data), "split": "val"},
        "versions": {"torch": "2.5"},
    }
    save_results(results, out / "results.json")
    return out


def fake_evaluation(seed: int, images: int, share: float) -> Evaluation:
    """A model that is wrong in a random share of the pixels, around `share`, of each image."""
    generator, truth = np.random.default_rng(seed), np.arange(400).reshape(20, 20) % 2
    counts = []
    for _ in range(images):
        wrong = generator.random(truth.shape) < generator.uniform(0, 2 * share)
        counts.append(np.stack(count_pixels(np.where(wrong, 1 - truth, truth), truth, 2)))
    return Evaluation(tuple(map(str, range(images))), ("a", "b"), Counts(*np.stack(counts, 1)), np.eye(2), ())


def test_bootstrap_is_scipys_and_differences_are_paired():
    model = fake_evaluation(0, 60, 0.2)
    other = Evaluation(model.names, model.class_names, model.counts, model.confusion, ())
    found = resample({"a": [model], "b": [other], "c": [fake_evaluation(1, 60, 0.3)]})
    right, true = model.counts.right.sum(1), model.counts.true.sum(1)
    expected = stats.bootstrap(
        (right, true),
        lambda right, true, axis: right.sum(axis) / true.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=2000,
        random_state=0,
    ).confidence_interval
    assert interval(found["a"]["pixel_accuracy"]) == pytest.approx(tuple(expected), abs=0.003)
    np.testing.assert_array_equal(found["a"]["miou"], found["b"]["miou"])
    low, high = interval(found["c"]["miou"] - found["a"]["miou"])
    assert -0.25 < low < high < 0
    # The score of a resampled split, and no mean of images' scores.
    assert found["a"]["miou"].mean() == pytest.approx(model.scores()["miou"], abs=0.005)


def test_runs_that_differ_in_their_seed_alone_are_one_model():
    def run(name: str, encoder: str = "resnet18", **config) -> Run:
        return Run(Path(name), {"arch": "unet", "encoder_name": encoder, "config": {"out": name, **config}})

    same = [run("a", seed=1, lr=1), run("b", seed=0, lr=1)]
    assert {n: [r.seed for r in g] for n, g in group_runs(same).items()} == {"unet:resnet18": [0, 1]}
    groups = group_runs([*same, run("c", seed=0, lr=2), run("d", "segnet", seed=0, lr=1)])
    assert list(groups) == ["unet:resnet18, lr 1", "unet:resnet18, lr 2", "unet:segnet"]
    groups = group_runs([run("a", lr=1), run("runs/b", lr=1, crop_size=3)])
    assert list(groups) == ["unet:resnet18, a", "unet:resnet18, b"]


def test_compare_writes_a_report_of_runs_and_measures_each_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name, seed, lr in (("a-seed-0", 0, 0.1), ("a-seed-1", 1, 0.1), ("<b>", 2, 0.2)):
        make_run(tmp_path / "runs" / name, folder, seed, lr)
    arguments = ["compare", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("on 6 images") == 3 and "unet:tu-test_resnet, lr 0.1" in said
    table = (tmp_path / "out" / "table.md").read_text()
    row = next(line for line in table.splitlines() if line.startswith("| unet:tu-test_resnet, lr 0.1 "))
    assert re.search(r"\| \d+\.\d ± \d+\.\d \| \d+\.\d to \d+\.\d \|.*\| 2 \|$", row)
    with open(tmp_path / "out" / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18 and len({row["model"] for row in rows}) == 3
    html = (tmp_path / "out" / "report.html").read_text()
    assert "<b>" not in re.sub(r"<b>\d+\.png</b>", "", html) and "&lt;b&gt;" in html
    assert "data:image/gif" in html and 'src="http' not in html and html.count('class="place"') == 4
    assert html.count("errors</figcaption>") == 12 and html.count("two models differ") == 6
    # A curve from the first to the last epoch; losses fall, which is downwards in an SVG.
    (x1, y1, x2, y2), *_ = re.findall(r'class="curve val" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html)
    assert float(x1) < float(x2) and float(y1) < float(y2)

    state = (tmp_path / "runs" / "<b>" / FILE).stat().st_mtime_ns
    assert main(arguments) == 0
    assert "images" not in capsys.readouterr().out.split("measuring what they cost")[0]
    assert (tmp_path / "runs" / "<b>" / FILE).stat().st_mtime_ns == state


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measured_on": None}, "does not say what it was measured on: say --data DIR"),
        (
            {"measured_on": {"reader": "CamVid", "path": "/nowhere", "split": "test"}},
            "cannot be read: there is no folder /nowhere. Say by --data where",
        ),
        (
            {"measured_on": {"reader": "os.system", "path": "x", "split": "y"}},
            "there is no reader 'os.system'",
        ),
    ],
)
def test_data_that_are_not_there_are_told(change: dict, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_data([Run(tmp_path, change)])


def test_runs_of_different_images_and_no_runs_are_told(folder: Path, tmp_path: Path, capsys):
    runs = [
        Run(tmp_path, {"measured_on": {"reader": "CamVid", "path": path, "split": "val"}}) for path in "ab"
    ]
    with pytest.raises(ValueError, match="measured on different images, say --data DIR"):
        open_data(runs)
    assert len(open_data(runs, folder)) == 6
    assert main(["compare", str(tmp_path)]) == 1
    assert f"{tmp_path} is no finished training" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"is no results\.json of a training"):
        read_runs([tmp_path])
    assert main(["compare"]) == 1 and main(["compare", "--models", "unet"]) == 1
    said = capsys.readouterr().err
    assert "nothing to compare: name trainings" in said and "need --train RECIPE" in said


def test_readers_say_where_they_read_and_are_opened_again(data_root: Path, folder: Path):
    for pairs in (
        OxfordPets(data_root, "val"),
        CamVid(data_root / "camvid", "test"),
        ImageFolders(folder, "val", ignore_index=255),
        open_split(folder),
        torch.utils.data.Subset(OxfordPets(data_root, "val"), [0]),
    ):
        origin = json.loads(json.dumps(origin_of(pairs)))
        again = open_origin(origin)
        reader = getattr(pairs, "dataset", pairs)
        assert type(again) is type(reader) and len(again) == len(reader) and origin_of(again) == origin
        assert again.name(3) == reader.name(3) and again.ignore_index == reader.ignore_index
    assert origin_of([1, 2]) is None and open_split(data_root).split == "test"


def test_disagreement_is_the_mean_over_pairs_of_models():
    labels = [np.array([[0, 0, 0, 0]]), np.array([[0, 0, 0, 1]]), np.array([[0, 0, 2, 2]])]
    assert disagreement(labels) == pytest.approx((0.25 + 0.5 + 0.5) / 3)


def test_a_plan_names_models_folders_and_what_is_wrong(tmp_path: Path):
    planned = plan("camvid", "unet:resnet34, segnet", "0,1", tmp_path, ["--data", "x", "--epochs", "3"])
    assert [(t.name, t.config.seed) for t in planned[:2]] == [("unet:resnet34", 0), ("segnet", 0)]
    assert [t.config.encoder_name for t in planned] == ["resnet34", "segnet"] * 2
    assert planned[3].config.out == tmp_path / "segnet-seed-1" and planned[0].config.epochs == 3
    (tmp_path / "mine.py").write_text("from vitseg_zoo.recipes.oxford_pets import Config, main")
    (mine,) = plan(str(tmp_path / "mine.py"), "segnet", "3", tmp_path)
    assert mine.config.encoder_name == "segnet" and mine.config.seed == 3
    assert {t.config.devices for t in planned} == {"1"} and not any(t.is_finished for t in planned)
    assert time_left(planned, planned) is None
    (tmp_path / "segnet-seed-0").mkdir()
    (tmp_path / "segnet-seed-0" / "metrics.csv").write_text("epoch,seconds\n0,10\n1,20\n")
    assert time_left(planned, planned) == 15 * (3 * 3 + 1)
    for arguments, message in {
        ("nowhere", "unet", "0"): "there is no recipe 'nowhere'",
        ("plain_loop", "unet", "0"): "plain_loop has no Config of options",
        ("camvid", "unnet", "0"): "there is no architecture 'unnet'",
        ("camvid", " ", "0"): "name what to train",
        ("camvid", "unet", "0;1"): "--seeds should be whole numbers",
        ("camvid", "unet:a/b, unet:a:b", "0"): "two of the models would be trained into",
    }.items():
        with pytest.raises(ValueError, match=re.escape(message)):
            plan(*arguments, tmp_path, ["--data", "x"])


def test_train_trains_what_is_missing_and_goes_on_with_what_is_not_finished(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    small = ["--splits", "val", "val", "--image-size", "32", "--crop-size", "32", "--batch-size", "4"]
    command = ["compare", "--train", "own_data", "--out", str(tmp_path), "--data", str(folder)]
    models = ["--models", "unet:tu-test_resnet, unet:no-such-encoder", "--", *small, "--precision", "32-true"]
    assert main([*command, *models, "--epochs", "1"]) == 1  # one failed
    said = capsys.readouterr().out
    assert "2 trainings, 2 of them to be made:" in said and "training 2 of 2: unet:no-such-encoder" in said
    assert "not trained: unet:no-such-encoder, seed 0: Wrong encoder name" in said
    out = tmp_path / "unet-tu-test_resnet-seed-0"
    results = json.loads((out / "results.json").read_text())
    assert results["epochs"] == 1 and results["command"].startswith("python own_data.py --out ")
    assert results["measured_on"]["path"] == str(folder.resolve())
    assert (tmp_path / "report.html").is_file() and (out / FILE).is_file()

    models[1] = "unet:tu-test_resnet"
    assert main([*command, *models, "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert "unet:tu-test_resnet, seed 0: epoch 1 of 2" in said and "about 0:00:0" in said
    assert json.loads((out / "results.json").read_text())["epochs"] == 2
    assert main([*command, *models, "--epochs", "2"]) == 0
    said = capsys.readouterr().out
    assert "1 training, 0 of them to be made" in said and "seed 0: finished" in said and "epoch 2" not in said
    assert main([*command, *models, "--epochs", "2", "--lr", "0.5"]) == 1
    assert "was trained with lr 0.001, not 0.5" in capsys.readouterr().err
