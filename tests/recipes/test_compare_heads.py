"""The recipe that compares heads: every configuration it offers, and what it writes."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import torch
from PIL import Image

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "compare_heads.py"
CONFIGURATIONS = runpy.run_path(str(RECIPE))["CONFIGURATIONS"]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_takes_the_recipes_images(name: str) -> None:
    arch, encoder_name, model_args = CONFIGURATIONS[name]
    model = smp.create_model(arch, encoder_name, None, classes=7, **model_args).eval()
    with torch.no_grad():
        assert model(torch.rand(1, 3, 128, 128)).shape == (1, 7, 128, 128)


def test_trainings_become_a_table_and_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_root: Path
) -> None:
    arguments = f"eomt --data {data_root} --dataset clothing --out {tmp_path} --epochs 1 --fraction 0.01"
    monkeypatch.setattr("vitseg_zoo.training.loop.choose_precision", lambda *_: "32-true")
    monkeypatch.setattr(sys, "argv", ["compare_heads.py", *arguments.split()])
    runpy.run_path(str(RECIPE), run_name="__main__")
    name = "eomt-epochs-1-fraction-0.01"
    run = tmp_path / f"{name}-seed-0"
    result = json.loads((run / "results.json").read_text())
    assert result["precision"] == "32-true"  # chosen, where nobody says it
    assert len(result["test_last"]) == 4 + 7  # and the loss; an IoU a class

    # A second seed, and another head with better scores, as if they had been trained.
    scores = {**result["test_last"], "miou": result["test_last"]["miou"] + 0.2}
    for folder, changed in {
        f"{name}-seed-1": {**result, "test_last": scores},
        f"{name}-seed-0".replace("eomt", "fpn"): {**result, "test_last": {**scores, "miou": 0.95}},
    }.items():
        shutil.copytree(run, tmp_path / folder)
        (tmp_path / folder / "results.json").write_text(json.dumps(changed))
    monkeypatch.setattr(sys, "argv", ["compare_heads.py", "--out", str(tmp_path)])
    runpy.run_path(str(RECIPE), run_name="__main__")
    rows = [row.strip("| ").split(" | ") for row in (tmp_path / "table.md").read_text().splitlines()[2:]]
    first = 100 * result["test_last"]["miou"]
    assert [row[0] for row in rows] == [name.replace("eomt", "fpn"), name]
    assert [row[2] for row in rows] == ["95.0 %", f"{first + 10:.1f} %"]
    assert rows[1][-1] == f"{first:.1f}, {first + 20:.1f}"
    picture = Image.open(tmp_path / "predictions.png")
    assert picture.height == 4 * 128  # images, truth, and two configurations


def test_a_folder_without_trainings_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["compare_heads.py", "--out", str(tmp_path / "new")])
    with pytest.raises(SystemExit, match=r"new holds no training: .* such as vitseg-linear-16\.$"):
        runpy.run_path(str(RECIPE), run_name="__main__")
    assert not (tmp_path / "new").exists()
