"""ONNX files for batches and images of any size, as docs/export.md writes them, run by ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import segmentation_models_pytorch as smp
import tiny_vits  # noqa: F401
import torch
from torch.export import Dim

MODELS = {
    "fusedsegformer": lambda: smp.create_model("fusedsegformer", "vz-mit_b0", None, classes=3),
    "eomt": lambda: smp.create_model("eomt", "vz-tiny_vit", None, classes=3),
    "unet": lambda: smp.Unet("vz-tiny_vit", encoder_weights=None, classes=3),
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
