"""recipes/benchmarks/engines.py: all its models can be built, and give logits of the same shape."""

import importlib.util
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "recipes" / "benchmarks" / "engines.py"


def test_every_model_can_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    for peer in ("onnxruntime", "openvino", "transformers"):
        pytest.importorskip(peer)
    monkeypatch.syspath_prepend(SCRIPT.parent)
    spec = importlib.util.spec_from_file_location("engines_benchmark", SCRIPT)
    engines = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(engines)
    for models in engines.MODELS.values():
        for build in models.values():
            with torch.no_grad():  # shapes alone
                logits = build().eval().to("meta")(torch.rand(1, 3, 64, 64, device="meta"))
            assert logits.shape == (1, engines.CLASSES, 64, 64)
