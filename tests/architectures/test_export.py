"""ONNX files for batches and images of any size, as the page on export writes them, run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401
import torch
from torch.export import Dim

# A pyramid of a ViT in tests/inference/test_export.py.
MODELS = {
    "fusedsegformer": lambda: smp.create_model("fusedsegformer", "vz-tiny_mit", None, classes=3),
    "eomt": lambda: smp.create_model("eomt", "vz-tiny_vit", None, classes=3),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_onnx_of_any_size(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    file = tmp_path / "model.onnx"
    any_size = {0: Dim("batch"), 2: 32 * Dim("rows", min=2), 3: 32 * Dim("columns", min=2)}
    with torch.no_grad():
        torch.onnx.export(model, (torch.rand(2, 3, 64, 96),), file, dynamo=True, dynamic_shapes=(any_size,))
    session = onnxruntime.InferenceSession(file)
    for shape in [(2, 3, 64, 96), (1, 3, 128, 64), (3, 3, 96, 96)]:
        images = torch.rand(shape)
        (output,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(output, model(images), rtol=1e-4, atol=1e-4)


def test_onnx_as_smp_shows_it(tmp_path: Path) -> None:
    """The steps of SMP's notebook convert_to_onnx by PyTorch's older exporter; docs show the newer."""
    model = MODELS["fusedsegformer"]().eval()
    file = tmp_path / "model.onnx"
    torch.onnx.export(
        model,
        torch.rand(1, 3, 64, 64),
        file,
        export_params=True,
        opset_version=17,
        do_constant_folding=True,
        input_names=["input"],
        output_names=["output"],
        dynamic_axes={"input": {0: "batch_size"}, "output": {0: "batch_size"}},
        dynamo=False,
    )
    saved = onnx.load(file)
    onnx.checker.check_model(saved)
    assert saved.opset_import[0].version == 17
    images = torch.rand(3, 3, 64, 64)
    (output,) = onnxruntime.InferenceSession(file).run(["output"], {"input": images.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, model(images), rtol=1e-4, atol=1e-4)
