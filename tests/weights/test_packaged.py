"""The models that come with the package: small, described in full, and good enough on real photographs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vitseg_zoo
from vitseg_zoo.cli import main
from vitseg_zoo.data.folders import ImageFolders
from vitseg_zoo.data.oxford_pets import CLASS_NAMES, PALETTE, OxfordPets
from vitseg_zoo.inference.evaluate import evaluate
from vitseg_zoo.weights import catalog
from vitseg_zoo.weights.catalog import DEFAULT_MODEL, get_entry
from vitseg_zoo.weights.entry import PACKAGED
from vitseg_zoo.weights.metadata import METADATA

FILES = sorted(Path(str(PACKAGED)).glob("*.safetensors"))
# Least mIoU on ten images of the held-out split: two points below what was measured.
FLOORS = {"segformer_b0.pets": 0.64, "vitseg_tiny.pets": 0.59, "segformer_b0.clothing": 0.56}


def _held_out(name: str, data_root: Path):
    if name.endswith(".pets"):
        return OxfordPets(data_root, "test")
    return ImageFolders(data_root / "clothing", "val")


def test_files_are_small_and_there():
    assert {path.stem for path in FILES} == FLOORS.keys()
    assert sum(path.stat().st_size for path in FILES) <= 30e6


@pytest.mark.parametrize("name", FLOORS)
def test_metadata_are_complete(name: str, capsys: pytest.CaptureFixture):
    entry = get_entry(name)
    _, metadata = vitseg_zoo.load_model(name)
    # With an input_size and no more said, images are squeezed, and a pixel has one class.
    for key in {*METADATA} - {"fit", "mode"}:
        assert getattr(entry, key) not in (None, "", ()), key
    assert len(entry.class_names) == len(entry.palette) == metadata["arguments"]["classes"]
    assert name in vitseg_zoo.list_models(kind="model")
    assert main(["info", name]) == 0
    shown = capsys.readouterr().out
    assert "in the package" in shown and entry.license in shown and entry.metric in shown


@pytest.mark.parametrize("name", FLOORS)
def test_segments_real_photographs(name: str, data_root: Path):
    held_out = _held_out(name, data_root)
    scores = evaluate(*vitseg_zoo.load_model(name), [held_out[index] for index in range(0, 120, 12)])
    assert scores["miou"] >= FLOORS[name]


def test_first_command_of_a_new_user(data_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pets = OxfordPets(data_root, "test")
    image, mask = pets[0]
    Image.fromarray(image).save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "photo.png"]) == 0
    predicted = Image.open("masks/photo_mask.png")
    assert predicted.size == image.shape[1::-1] and Path("masks/photo_overlay.jpg").is_file()
    assert predicted.getpalette()[:9] == list(np.ravel(PALETTE))
    assert (np.asarray(predicted) == mask).mean() > 0.75


def test_default_model_is_for_pets():
    assert get_entry(DEFAULT_MODEL).class_names == CLASS_NAMES


@pytest.mark.parametrize("name", FLOORS)
def test_created_by_name_in_full_precision(name: str):
    model = vitseg_zoo.create_model(name, pretrained=True)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    again, _ = vitseg_zoo.load_model(name)
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.eval()(image), again(image))


@pytest.mark.parametrize("name", FLOORS)
def test_an_altered_file_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray((Path(str(PACKAGED)) / f"{name}.safetensors").read_bytes())
    content[-1] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    monkeypatch.setattr(catalog, "PACKAGED", tmp_path)
    for load in (vitseg_zoo.load_model, lambda name: vitseg_zoo.create_model(name, pretrained=True)):
        with pytest.raises(OSError, match=rf"{name}\.safetensors was altered"):
            load(name)


def test_licenses_are_beside_the_files():
    text = Path(str(PACKAGED), "LICENSES.md").read_text(encoding="utf-8")
    assert all(path.name in text for path in FILES)
    assert get_entry("segformer_b0.pets").license == "CC-BY-SA-4.0" and "CC BY-SA 4.0" in text
