"""`vitseg trace`: steps of ViT-seg as the article has them, and of other models."""

import re

import pytest
import segmentation_models_pytorch as smp
import torch

from vitseg_zoo.cli import main
from vitseg_zoo.cli.trace import trace


def test_trace_shows_the_articles_steps() -> None:
    model = smp.create_model("vitseg", classes=3)
    steps, whole = trace(model, torch.rand(2, 3, 128, 128))
    assert [(step.name, step.shape_in, step.shape_out, step.parameters) for step in steps] == [
        ("batch norm", (2, 3, 128, 128), (2, 3, 128, 128), 6),
        ("image to patches", (2, 3, 128, 128), (2, 64, 768), 0),
        ("patch embedding", (2, 64, 768), (2, 64, 768), 590_592),
        ("position embedding", (2, 64, 768), (1, 64, 768), 49_152),
        ("addition", (2, 64, 768), (2, 64, 768), 0),
        ("transformer encoder", (2, 64, 768), (2, 64, 768), 85_054_464),
        ("linear output projection", (2, 64, 768), (2, 64, 768), 590_592),
        ("patches to image", (2, 64, 768), (2, 3, 128, 128), 0),
    ]
    assert sum(step.parameters for step in steps) == whole.parameters == 86_284_806 and model.training


def test_trace_shows_the_hidden_layer_of_the_mlp_head() -> None:
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", decoder_head="mlp", encoder_weights=None)
    steps, whole = trace(model, torch.rand(1, 3, 128, 128))
    assert [(step.name, step.parameters) for step in steps][6] == ("hidden layer", 192 * 192 + 192)
    assert sum(step.parameters for step in steps) == whole.parameters


def test_trace_of_the_articles_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "vitseg", "--embed-dim", "512", "--classes", "10"]) == 0
    rows = [re.split(r" {2,}", line) for line in capsys.readouterr().out.splitlines()[2:10]]
    assert [row[2] for row in rows] == [
        "(1, 3, 128, 128)",
        "(1, 64, 768)",
        *["(1, 64, 512)"] * 4,
        "(1, 64, 2560)",
        "(1, 10, 128, 128)",
    ]


def test_trace_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trace", "unet", "--encoder-name", "resnet18", "--image-size", "64", "96"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[0] == "encoder.conv1" and "(1, 64, 32, 48)" in lines[2]
    assert re.fullmatch(r"whole model +\(1, 3, 64, 96\) +\(1, 3, 64, 96\) +14,328,499", lines[-1])
    for wrong, message in {
        "vitsag": "no architecture or timm model 'vitsag'",
        "vitseg --image-size 0 3": "--classes and --embed-dim take positive numbers",
        "unet --encoder-name resnet0": "Wrong encoder name `resnet0`\n",
        "vitseg --embed-dim 500": "There is no vitseg with --embed-dim 500: ",
        "unet --embed-dim 512": "--embed-dim is for vitseg: channels of unet are its own.",
        "vit_tiny_patch16_224": "vit_tiny_patch16_224 does not take such an image",
    }.items():
        assert main(["trace", *wrong.split()]) == 1
        assert message in capsys.readouterr().err


def test_trace_of_the_fused_head_counts_all_parameters() -> None:
    model = smp.create_model("fusedsegformer", "vz-mit_b0", encoder_weights=None, classes=3)
    steps, whole = trace(model, torch.rand(1, 3, 256, 256))  # large enough for several strips
    assert sum(step.parameters for step in steps) == whole.parameters
    assert ("decoder", (1, 256, 64, 64)) in [(step.name, step.shape_out) for step in steps]
    assert [step.name for step in steps].count("segmentation_head.0") == 1
