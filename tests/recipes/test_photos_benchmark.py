"""recipes/benchmarks/photos.py: what is compared is the same work."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from vitseg_zoo import Predictor

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "photos.py"


@pytest.fixture
def photos() -> ModuleType:
    spec = importlib.util.spec_from_file_location("photos_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_loop_predicts_what_the_predictor_does(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "SIZE", 64)
    photos.draw_photos(tmp_path / "photos", 2)
    paths = sorted((tmp_path / "photos").iterdir())
    for path in paths:
        Image.open(path).resize((64, 64)).save(path.with_suffix(".png"))
        path.unlink()
    for model in ("b0", "unet"):
        weights, out = tmp_path / f"{model}.safetensors", tmp_path / model
        out.mkdir()
        photos.save_weights(model, weights)
        photos.smp_loop(model, str(weights), str(tmp_path / "photos"), str(out))
        predictor = Predictor(weights, "cpu")
        for path in sorted((tmp_path / "photos").iterdir()):
            mask = np.asarray(Image.open(out / path.name))
            assert (mask == predictor(path).labels).mean() > 0.999


def test_the_whole_process_is_measured(photos):
    code = "import time; x = bytearray(200_000_000); time.sleep(0.2)"
    wall, processor, peak = photos.measure([sys.executable, "-c", code], 1)
    assert wall > 0.2 and processor < wall + 1 and peak > 200
    with pytest.raises(SystemExit, match="failed"):
        photos.measure([sys.executable, "-c", "raise SystemExit(3)"], 1)
