"""Measurements of models that take turns, on the CPU and in their smallest form."""

import json
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401
import torch
from torch import nn

from vitseg_zoo import cli
from vitseg_zoo.benchmark import count_gmacs, measure
from vitseg_zoo.cli.bench import build_model
from vitseg_zoo.cost import count_macs, take_turns


def test_runs_take_turns_after_those_that_do_not_count() -> None:
    calls: list[str] = []
    times = take_turns([lambda: calls.append("a"), lambda: calls.append("b")], rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3
    assert [len(seconds) for seconds in times] == [2, 2]


def test_macs_of_attention_and_products_are_those_of_the_formulas() -> None:
    model = smp.create_model("vitseg", "vz-tiny_vit", None, classes=2, encoder_blocks=1)
    tokens, dim = 4 * 4 + 3, 64  # a class token and two registers
    block = tokens * 12 * dim**2 + 2 * tokens**2 * dim  # qkv, projection, MLP; scores and their products
    ends = 16 * (16 * 16 * 3 * dim) + 16 * (dim * 2 * 16 * 16)
    assert count_gmacs(model, (64, 64)) == (block + ends) / 1e9
    assert count_gmacs(nn.Linear(2, 2)) is None  # takes no such image


@pytest.mark.parametrize("train", [False, True])
def test_costs(train: bool) -> None:
    models = {
        "small": smp.create_model("vitseg", "vz-tiny_vit", None, classes=2, encoder_blocks=1),
        "large": smp.create_model("vitseg", "vz-tiny_vit", None, classes=2),
    }
    before = {
        name: model.state_dict()["segmentation_head.0.weight"].clone() for name, model in models.items()
    }
    costs = measure(models, (64, 64), (1, 2), train=train, precision="bf16", rounds=3, warm_up=1)
    assert [(cost.model, cost.batch) for cost in costs] == [
        *(("small", 1), ("large", 1), ("small", 2), ("large", 2))
    ]
    for cost in costs:
        assert 0 < cost.p50 <= cost.p95
        assert cost.images_per_second == pytest.approx(cost.batch / cost.p50)
        assert cost.peak_megabytes is None  # of a CPU nothing is said
    assert costs[0].parameters < costs[1].parameters
    assert costs[0].gmacs < costs[1].gmacs
    for name, model in models.items():  # the user's models are as they were
        torch.testing.assert_close(model.segmentation_head[0].weight, before[name])


def test_out_of_memory_is_a_row() -> None:
    class Large(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) > 1:
                raise torch.OutOfMemoryError
            return super().forward(x)

    costs = measure({"large": Large(3, 2, 1)}, (8, 8), (1, 2), rounds=1)
    assert [cost.p50 is None for cost in costs] == [False, True]
    assert costs[1].row() == "| large | 0.0 | 0.0 | 2 | out of memory | | | |"


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["vitseg:vz-tiny_vit", "unet:vz-tiny_vit", "tiny_vit"]
    arguments = ["--device", "cpu", "--size", "64", "--batch-size", "1", "2", "--rounds", "2"]
    assert cli.main(["bench", *names, *arguments, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert f"PyTorch {torch.__version__}" in said[0]
    assert "64 x 64, 21 classes, fp32, eager, 2 runs in turn" in said[0]
    assert said[4].startswith("| vitseg:vz-tiny_vit | 0.")
    results = json.loads((tmp_path / "results.json").read_text())
    assert [cost["model"] for cost in results["costs"]] == names * 2
    assert (tmp_path / "throughput.png").stat().st_size > 10_000


def test_what_is_refused(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cli.main(["bench", "resnetty", "--device", "cpu"]) == 1
    assert "there is no model 'resnetty'" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cli.main(["bench", "vitseg", "--device", "cuda"]) == 1
    assert "there is no CUDA device here: measure with --device cpu." in capsys.readouterr().err
    with pytest.raises(ValueError, match="precision should be one of fp32, tf32, bf16, fp16"):
        measure({}, precision="int8")


def test_models_of_every_library(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.SegformerConfig(depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8]).save_pretrained(tmp_path)
    classes = {
        "segformer_b0.pets": "FusedSegformer",
        "fpn": "FPN",
        "resnet18": "ResNet",
        str(tmp_path): "SegformerForSemanticSegmentation",
    }
    for name, expected in classes.items():
        assert type(build_model(name, 3, (64, 64))).__name__ == expected


def test_macs_in_inference_mode_are_counted() -> None:
    layer, tokens = nn.Linear(8, 4), torch.rand(1, 16, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    with torch.inference_mode():
        assert count_macs(lambda: layer(tokens)) == 16 * 8 * 4
        assert count_macs(lambda: attention(tokens, tokens, tokens)) == 2 * 16 * 16 * 8
