"""The HTML report, from hand-written runs."""

import json
import math
import re
from pathlib import Path

import pytest
from PIL import Image

from vitseg_zoo.training.report import write_report
from vitseg_zoo.training.results import read_results, save_results

COLUMNS = "epoch,train_loss,val_loss,val_pixel_accuracy,val_miou"


def _run(folder: Path, miou: float, rows: list[str]) -> Path:
    folder.mkdir()
    scores = {"loss": 0.5, "pixel_accuracy": 0.8, "miou": miou, "iou_pet": miou}
    results = {
        "arch": "unet",
        "encoder_name": "resnet18",
        "parameters": 14_300_000,
        "epochs": len(rows),
        "test_last": scores,
        "seconds": 12.3,
        "precision": "32-true",
        "hardware": "2 threads",
        "command": "python train.py --a '<b>'",
        "versions": {"torch": "2.5"},
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "metrics.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    return folder


def test_scores_curves_and_pictures_of_runs(tmp_path):
    runs = {
        "A": _run(tmp_path / "a", 0.61, ["0,1.0,0.9,0.5,0.3", "1,0.8,0.7,0.7,0.6"]),
        "B & <C>": _run(tmp_path / "b", 0.58, ["0,1.0,0.9,0.5,0.3"]),
    }
    Image.new("RGB", (4, 4)).save(runs["A"] / "predictions.png")
    write_report(runs, tmp_path / "report.html", "Two runs")
    html = (tmp_path / "report.html").read_text()

    assert '<td class="best">61.0 %</td>' in html and "<td>58.0 %</td>" in html
    assert "B &amp; &lt;C&gt;" in html and "<C>" not in html and "<b>" not in html
    assert html.count("<img ") == 1 and "A: predictions at the end" in html
    # A curve from the first to the last epoch; losses fall, which is downwards in an SVG.
    (x1, y1, x2, y2), *_ = re.findall(r'class="curve val" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html)
    assert float(x1) < float(x2) and float(y1) < float(y2)
    assert html.count("<circle") == 4  # a single epoch is a point: two losses, accuracy, mIoU


def test_best_checkpoint_counts_where_it_was_tested(tmp_path):
    run = _run(tmp_path / "a", 0.5, ["0,1,1,0.5,0.3"])
    results = json.loads((run / "results.json").read_text())
    results["test_best"] = results["test_last"] | {"miou": 0.7}
    (run / "results.json").write_text(json.dumps(results))
    write_report({"A": run}, tmp_path / "report.html", "One run")
    html = (tmp_path / "report.html").read_text()
    assert "70.0 %" in html and "best validation mIoU" in html


def test_an_unfinished_run_is_named(tmp_path):
    run = _run(tmp_path / "a", 0.5, ["0,1,1,0.5,0.3"])
    (run / "results.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no results\.json"):
        write_report({"A": run}, tmp_path / "report.html", "One run")


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_no_score_is_null_and_never_the_best(order: str, tmp_path: Path):
    runs = {name: _run(tmp_path / name, 0.5, ["0,1,1,0.5,0.3"]) for name in order}
    for name, scores in {"A": [math.nan, math.nan], "B": [0.4, math.nan]}.items():
        path = runs[name] / "results.json"
        results = read_results(path)
        results["test_last"] |= dict(zip(("miou", "iou_pet"), scores, strict=True))
        save_results(results, path)
        assert "NaN" not in path.read_text() and json.loads(path.read_text())["test_last"]["iou_pet"] is None
        assert math.isnan(read_results(path)["test_last"]["iou_pet"])
    write_report(runs, tmp_path / "report.html", "Two runs")
    html = (tmp_path / "report.html").read_text()
    assert '<td class="best">40.0 %</td>' in html and '<td class="best">-</td>' not in html
    assert html.count("<td>-</td>") == 3
