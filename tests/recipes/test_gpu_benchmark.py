"""recipes/benchmarks/gpu.py in its smallest form, on the CPU."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "benchmarks" / "gpu.py"


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_quick(gpu: ModuleType, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("transformers")
    assert gpu.main(["--device", "cpu", "--quick"]) == 0
    page = capsys.readouterr().out
    rows = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and "ours" in line]
    assert rows == ["| ours B0"] * 3
    assert "- Times of ours, batch 2: HF B0 " in page
    assert f"PyTorch {torch.__version__}" in page


def test_without_a_card(
    gpu: ModuleType, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        "There is no CUDA device here: run this on a machine with one, or with --device cpu --quick.\n"
    )


@pytest.mark.parametrize("name", ["timm ViT-S + resize", "vitseg, ViT-S", "U-Net, ViT-S", "U-Net, ResNet-34"])
def test_models_of_the_tables(gpu: ModuleType, name: str) -> None:
    with torch.device("meta"):
        model = gpu.build(name, 5, 64)
    assert {name for part in gpu.PARTS for name in part.models} >= {name}
    assert sum(parameter.numel() for parameter in model.parameters()) > 20e6


def test_the_page_has_a_place_for_each_row(gpu: ModuleType) -> None:
    measured = (ROOT / "docs" / "how_to" / "gpu.md").read_text(encoding="utf-8").split("## Measured")[1]
    tables = {table.splitlines()[0]: table for table in measured.split("### ")[1:]}
    assert list(tables) == [part.title for part in gpu.PARTS]
    for part in gpu.PARTS:
        rows = tables[part.title].split(gpu.HEADER)[1].split("\n")
        places = [tuple(cell.strip() for cell in row.split("|")) for row in rows if row]
        assert [(row[1], row[4]) for row in places] == [
            (model, str(batch)) for batch in part.batches for model in part.models
        ]
