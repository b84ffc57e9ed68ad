"""`vitseg quickstart` from end to end, in a process that may not use the network."""

import base64
import io
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from warm_python import WarmPython

from vitseg_zoo.cli import main

SMALL = """
import sys

def refuse(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "urllib.Request"):
        raise OSError(f"network used: {event} {arguments}")

sys.addaudithook(refuse)

import vitseg_zoo.cli.quickstart
from vitseg_zoo.cli import main

vitseg_zoo.cli.quickstart.COUNTS = {"train": 16, "val": 8, "test": 4}
vitseg_zoo.cli.quickstart.BATCH_SIZE = 8
sys.exit(main(["quickstart", "--epochs", "2", "--out", sys.argv[1]]))
"""


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("quickstart")
    process = WarmPython(SMALL, str(out), environment=dict(os.environ))
    printed, said = process.communicate()
    assert process.returncode == 0, said
    return SimpleNamespace(out=out, printed=printed, html=(out / "report.html").read_text())


@pytest.mark.slow  # the quickstart itself
def test_prints_the_comparison_and_the_path_of_the_report(quickstart):
    lines = quickstart.printed.strip().splitlines()
    assert Path(lines[-1].split("Report: ")[1]) == quickstart.out / "report.html"
    assert any(line.startswith("One model took 4 steps, too few to compare: ") for line in lines)
    scores, cost = (at for at, line in enumerate(lines) if line.startswith("model  "))
    for column in ("mIoU", "pixel accuracy", "boundary IoU", "boundary F1"):
        assert column in lines[scores]
    for column in ("parameters", "GMACs", "latency", "training"):
        assert column in lines[cost]
    for name in ("ViT-seg", "Hybrid", "SegFormer-B0", "U-Net"):
        assert any(re.match(rf"{name} +\d+\.\d +\d+\.\d to \d+\.\d ", line) for line in lines[scores:cost])
        assert any(re.match(rf"{name} +[\d.]+ M +[\d.]+ +[\d.]+ ms ", line) for line in lines[cost:])


@pytest.mark.slow  # the quickstart itself
def test_writes_a_row_for_each_epoch_and_scores_of_each_model(quickstart):
    for name in ("vit-seg", "hybrid", "segformer-b0", "u-net"):
        rows = (quickstart.out / name / "metrics.csv").read_text().strip().splitlines()
        assert len(rows) == 1 + 2
        scores = json.loads((quickstart.out / name / "results.json").read_text())["test_last"]
        assert {"pixel_accuracy", "miou", "iou_pet", "iou_background", "iou_border"} <= scores.keys()
        assert 0 < scores["miou"] < 1


class _References(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]


@pytest.mark.slow  # the quickstart itself
def test_the_report_refers_to_nothing_outside_itself(quickstart):
    references = _References()
    references.feed(quickstart.html)
    assert not references.tags & {"script", "link", "iframe", "object"}
    assert references.found and all(uri.startswith("data:image/") for uri in references.found)
    assert not re.search(r"url\(|@import|https?://", quickstart.html)


@pytest.mark.slow  # the quickstart itself
def test_the_report_holds_the_gif_and_no_other_scores_than_the_trainings(quickstart):
    (data,) = re.findall(r'src="data:image/gif;base64,([^"]+)"', quickstart.html)
    gif = Image.open(io.BytesIO(base64.b64decode(data)))
    assert gif.n_frames == 2 and gif.height == 6 * (128 + 24)  # image, truth, and four models
    for name in ("vit-seg", "hybrid", "segformer-b0", "u-net"):
        miou = json.loads((quickstart.out / name / "results.json").read_text())["test_last"]["miou"]
        found = re.findall(rf"^{name} +(\d+\.\d) ", quickstart.printed, re.MULTILINE | re.IGNORECASE)
        assert float(found[0]) == pytest.approx(100 * miou, abs=0.6)  # there perhaps in bf16


def test_bad_minutes_end_with_one_sentence(tmp_path, capsys):
    assert main(["quickstart", "--minutes", "nan", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "vitseg quickstart: --minutes should be more than 0, got nan.\n"


def test_bad_epochs_end_with_one_sentence(tmp_path, capsys):
    assert main(["quickstart", "--epochs", "0", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == "vitseg quickstart: --epochs should be 1 or more, got 0.\n"
    assert not (tmp_path / "out").exists()
