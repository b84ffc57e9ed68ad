"""The catalog, models by name, and the commands that show them."""

import argparse
import hashlib
import logging
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg

import vitseg_zoo
from vitseg_zoo.cli import COMMANDS, load_command, main
from vitseg_zoo.weights import catalog
from vitseg_zoo.weights import entry as weights_entry
from vitseg_zoo.weights import license as weights_license
from vitseg_zoo.weights.catalog import get_entry, list_entries


@pytest.fixture
def offline_weights(tmp_path, monkeypatch):
    """Random weights of SMP's SegFormer-B0 in the folder that VITSEG_ZOO_WEIGHTS names."""
    monkeypatch.setenv("VITSEG_ZOO_WEIGHTS", str(tmp_path))
    source = smp.Segformer("mit_b0", encoder_weights=None, classes=150).eval()
    save_file(source.state_dict(), tmp_path / "segformer_b0.smp_ade20k_512.safetensors")
    weights_license._warn_once.cache_clear()
    return source


@pytest.mark.parametrize("entry", list_entries(kind="model"), ids=lambda entry: entry.name)
def test_entries_say_all(entry):
    assert entry.arguments["encoder_name"] in vitseg_zoo.list_models(kind="encoder")
    assert entry.architecture in vitseg_zoo.list_models(kind="architecture")
    assert entry.repo_id or entry.url
    assert len(entry.palette) in (0, len(entry.class_names))
    assert entry.license != "unknown" and entry.commercial_use is not None
    assert entry.training_data and entry.metric and entry.metric_source
    assert len(entry.mean) == len(entry.std) and entry.input_size


def test_entries_of_nvidia_are_pinned():
    entry = get_entry("segformer_b0.nv_ade20k_512")
    assert entry.revision == "489d5cd81a0b59fab9b7ea758d3548ebe99677da" and entry.file_format == "safetensors"
    assert entry.sha256 == "6ae39addd01de6b1b8bde2cf677d43a5cd733424b8d186de3f95d1c51fee23f9"
    pinned = [entry for entry in list_entries("*.nv_*") if entry.repo_id.startswith("nvidia/")]
    assert len(pinned) == 12 + 3 + 6
    for entry in pinned:
        assert entry.sha256 is None or re.fullmatch("[0-9a-f]{64}", entry.sha256)
        # A checksum is of one file at one commit.
        if entry.sha256:
            assert re.fullmatch("[0-9a-f]{40}", entry.revision) and len(entry.filenames) == 1
    assert sum(bool(re.fullmatch("[0-9a-f]{40}", entry.revision)) for entry in pinned) == 9 + 6
    assert get_entry("mit_b0.imagenet").sha256 is None  # another file than NVIDIA's own


def test_nvidias_models_are_run_as_they_were_measured():
    for entry in list_entries("segformer_*", kind="model"):
        if entry.repo_id:
            assert entry.arguments["align_corners"] == entry.repo_id.startswith("smp-hub/")
            assert (
                "sliding windows" in entry.metric
                or "shorter side" in entry.metric
                or "not stated" in entry.metric
            )
    assert "road (6) and skyscraper (48)" in get_entry("segformer_b1.nv_ade20k_512").limits
    model = vitseg_zoo.create_model("segformer_b0.nv_cityscapes_512x1024")
    assert model.segmentation_head[1].align_corners is False


def test_names_are_unique_and_listed():
    names = [entry.name for entry in list_entries()]
    assert len(names) == len(set(names))
    models = vitseg_zoo.list_models(kind="model")
    assert {f"segformer_b{i}.nv_cityscapes_1024" for i in range(6)} < set(models)
    assert set(models) < set(vitseg_zoo.list_models())
    assert vitseg_zoo.list_models("segformer_b5*ade*", kind="model") == [
        "segformer_b5.nv_ade20k_640",
        "segformer_b5.smp_ade20k_640",
    ]


def test_labels_of_data_sets():
    ade20k, cityscapes = get_entry("segformer_b0.nv_ade20k_512"), get_entry("segformer_b0.nv_cityscapes_1024")
    assert len(ade20k.class_names) == 150 and len(cityscapes.class_names) == 19
    assert dict(zip(ade20k.class_names, ade20k.palette, strict=True))["sky"] == (6, 230, 230)
    assert dict(zip(cityscapes.class_names, cityscapes.palette, strict=True))["car"] == (0, 0, 142)
    assert all(len(set(entry.class_names)) == len(entry.class_names) for entry in (ade20k, cityscapes))


@pytest.mark.parametrize("size", range(6))
def test_encoders_are_pinned_as_smp_pins_them(size):
    entry = get_entry(f"mit_b{size}.imagenet")
    pinned = smp.encoders.encoders[f"mit_b{size}"]["pretrained_settings"]["imagenet"]
    assert (entry.repo_id, entry.revision) == (pinned["repo_id"], pinned["revision"])
    assert entry.commercial_use is False


def test_encoders_are_timms():
    timm_default = get_pretrained_cfg("vit_base_patch16_224")
    assert get_entry("vit_base_patch16_224").name == f"vit_base_patch16_224.{timm_default.tag}"
    assert get_entry("vit_base_patch16_clip_224").filenames[0].endswith(".safetensors")
    for entry in list_entries("vit_small*", kind="encoder"):
        cfg = get_pretrained_cfg(entry.name)
        assert entry.mean == tuple(cfg.mean) and entry.license in (cfg.license, "unknown")
    assert get_entry("mit_pvt_b2.in1k").commercial_use
    assert not any(entry.commercial_use for entry in list_entries() if "noncommercial" in entry.license)


def test_unknown_names_get_suggestions():
    with pytest.raises(ValueError, match=r"did you mean segformer_b2\.nv_ade20k_512"):
        get_entry("segformer_b2.nvidia_ade20k_512")
    with pytest.raises(ValueError, match=r"is an encoder.*vz-mit_b0"):
        vitseg_zoo.create_model("mit_b0.nv_in1k")


def test_create_model_with_weights(offline_weights, caplog):
    image = torch.rand(1, 3, 64, 64)
    for _ in range(2):
        model = vitseg_zoo.create_model("segformer_b0.smp_ade20k_512", pretrained=True)
        assert model.training
        with torch.inference_mode():
            torch.testing.assert_close(model.eval()(image), offline_weights(image), atol=1e-4, rtol=1e-4)
    assert len(model.pretrained_cfg["class_names"]) == 150
    # The license is said once, though weights were loaded twice.
    assert [message for message in caplog.messages if "commercially" in message] == caplog.messages
    assert len(caplog.messages) == 1


def test_create_model_with_other_classes_and_channels(offline_weights, caplog):
    caplog.set_level(logging.WARNING)
    model = vitseg_zoo.create_model("segformer_b0.smp_ade20k_512", pretrained=True, classes=5, in_channels=4)
    with torch.inference_mode():
        assert model.eval()(torch.rand(1, 4, 64, 64)).shape == (1, 5, 64, 64)
    own, theirs = model.state_dict(), offline_weights.state_dict()
    assert torch.equal(own["decoder.fuse_stage.0.weight"], theirs["decoder.fuse_stage.0.weight"])
    said = [message for message in caplog.messages if "not loaded" in message]
    assert len(said) == 1 and "segmentation_head.0.weight" in said[0]
    assert model.pretrained_cfg["class_names"] == ()


def test_a_file_of_another_model_under_the_name(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_ZOO_WEIGHTS", str(tmp_path))
    weights = smp.Segformer("mit_b0", encoder_weights=None, classes=150).state_dict()
    wrong = {key: value[:100] if "fuse_stage.0" in key else value for key, value in weights.items()}
    save_file(wrong, tmp_path / "segformer_b0.smp_ade20k_512.safetensors")
    for classes in (150, 5):
        with pytest.raises(RuntimeError, match=r"does not fit.*fuse_stage\.0\.weight"):
            vitseg_zoo.create_model("segformer_b0.smp_ade20k_512", pretrained=True, classes=classes)


def test_sizes_are_those_of_the_models():
    for entry in list_entries("segformer_b[0-2]*.nv*", kind="model"):
        with torch.device("meta"):
            model = vitseg_zoo.create_model(entry.name)
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == entry.parameters
        size = sum(value.nbytes for value in model.state_dict().values()) / 1e6
        assert entry.megabytes == pytest.approx(size, abs=0.6)
    for name in ("mit_b0.nv_in1k", "mit_pvt_b2.in1k"):
        weights = timm.create_model(name, device="meta").state_dict()
        size = sum(value.nbytes for value in weights.values()) / 1e6
        assert get_entry(name).megabytes == pytest.approx(size, abs=0.6)


def test_packaged_files_are_listed_by_what_they_say(tmp_path, monkeypatch, capsys):
    for module in (catalog, weights_entry):
        monkeypatch.setattr(module, "PACKAGED", tmp_path)
    model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=3).eval()
    names, colors = ("pet", "background", "border"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    vitseg_zoo.save_model(
        model,
        tmp_path / "vitseg_tiny.drawn.safetensors",
        half=True,
        class_names=names,
        palette=colors,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        license="cc-by-sa-4.0",
        commercial_use=True,
        source="drawn for this test",
    )
    entry = get_entry("vitseg_tiny")
    assert (entry.name, entry.class_names, entry.palette) == ("vitseg_tiny.drawn", names, colors)
    assert entry.source == "in the package"
    assert main(["info", str(tmp_path / "vitseg_tiny.drawn.safetensors")]) == 0
    shown = capsys.readouterr().out
    digest = hashlib.sha256((tmp_path / "vitseg_tiny.drawn.safetensors").read_bytes()).hexdigest()
    for part in ("pet, background, border", "made from:             drawn for this test", digest):
        assert part in shown
    again = vitseg_zoo.create_model("vitseg_tiny.drawn", pretrained=True).eval()
    assert again.pretrained_cfg["source"] == "drawn for this test"
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(again(image), model(image), atol=2e-2, rtol=2e-2)  # 16-bit numbers
    assert again.state_dict()["segmentation_head.0.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", ["photo.jpg", "last.pth"])
def test_info_of_another_file(name, tmp_path, capsys):
    path = tmp_path / name
    if name == "photo.jpg":
        Image.new("RGB", (8, 8)).save(path)
    else:
        torch.save({"weight": torch.zeros(2)}, path)
    assert main(["info", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is no complete safetensors file" in line and "vitseg convert" in line


def test_commands(tmp_path, capsys):
    assert main(["list", "vz-shuffle-vitseg_*"]) == 0
    table = capsys.readouterr().out
    assert "vz-shuffle-vitseg_tiny_patch16_128" in table and "5.5 M" in table
    assert main(["list", "--kind", "model"]) == 0
    assert "segformer_b2.nv_ade20k_512" in capsys.readouterr().out
    assert main(["list", "nothing*"]) == 1
    assert "No name matches" in capsys.readouterr().err

    assert main(["info", "segformer_b2.nv_ade20k_512"]) == 0
    shown = capsys.readouterr().out
    for part in (
        "NOT ALLOWED",
        "46.5 %",
        "Table 1",
        "nvidia/segformer-b2",
        "wall, building, sky",
        "187ca07bea003a57",
    ):
        assert part in shown
    assert main(["info", "vitseg"]) == 0
    assert "decoder_head" in capsys.readouterr().out
    assert main(["info", "vz-mit_b1"]) == 0
    shown = capsys.readouterr().out
    assert "smp-hub/mit_b1.imagenet" in shown and "78.7 %" in shown
    assert "timm.create_model('mit_b1.nv_in1k'" in shown
    assert "timm.create_model('mit_b1.imagenet'" not in shown  # a name of SMP's
    assert main(["info", "no_such_thing"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_command_whose_reader_has_enough_ends_quietly():
    command = [sys.executable, "-m", "vitseg_zoo.cli", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


_ROOT = Path(__file__).parents[2]
_PAGES = [_ROOT / "README.md", *sorted((_ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_documentation_names_only_what_there_is(page):
    text = page.read_text()
    code = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)).replace("\\\n", "")
    commands = {name for group in COMMANDS.values() for name in group}
    assert set(re.findall(r"\bvitseg ([a-z]+)", code)) <= commands
    for line in re.findall(r"^(?:\$ )?vitseg (.*)$", code, re.MULTILINE):
        command, *arguments = shlex.split(line, comments=True)
        parser = argparse.ArgumentParser(exit_on_error=False)
        load_command(command).add_arguments(parser)
        parser.parse_args(arguments)
    for name in re.findall(r"\b(?:segformer_b|mit_|vitseg_(?!zoo))\w+\.(?!safetensors|pth|py|md)\w+", code):
        assert get_entry(name).name == name
    encoders = set(re.findall(r"[\"'`](vz-\w[\w-]*)[\"'`]", code)) - {"vz-NAME", "vz-"}
    assert encoders <= set(vitseg_zoo.list_models(kind="encoder"))
    for name in re.findall(r"VITSEG_ZOO_\w+", code):
        assert any(
            name in path.read_text()
            for path in [*_ROOT.glob("vitseg_zoo*.py"), *(_ROOT / "vitseg_zoo").rglob("*.py")]
        )
