"""What each exported format needs: to be written, to be opened for comparison, and 8-bit numbers."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import ExportedProgram

from vitseg_zoo.inference.exported import KEY, Run, open_onnx, open_openvino


def _trace(deployed: nn.Module, traced: np.ndarray, dynamic: dict[int, Any]) -> ExportedProgram:
    program = torch.export.export(
        deployed,
        (torch.from_numpy(traced),),
        dynamic_shapes=(dynamic,),
        prefer_deferred_runtime_asserts_over_guards=True,
    )
    # PyTorch asserts that a batch is not of one wherever it looked at strides, which do not matter here. That
    # nothing depends on it is seen when the file is run.
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()
    return program


def _write_pt2(
    deployed: nn.Module, traced: np.ndarray, dynamic: dict[int, Any], path: Path, text: str
) -> None:
    torch.export.save(_trace(deployed, traced, dynamic), path, extra_files={KEY: text})


def _write_onnx(
    deployed: nn.Module, traced: np.ndarray, dynamic: dict[int, Any], path: Path, text: str
) -> None:
    import onnxruntime  # noqa: F401  to say now that it is missing

    # OpenVINO takes ONNX's antialiased resampling for one without, so that there is none in the file; and
    # PyTorch writes no attention of three dimensions, as SAM's.
    other_forms = {
        torch.ops.aten._upsample_bicubic2d_aa.vec: resample_bicubic,
        torch.ops.aten.scaled_dot_product_attention.default: _attend,
    }
    exported = _trace(deployed, traced, dynamic)
    if any(_has_another_form(node) for node in exported.graph.nodes):  # which takes as long as the tracing
        exported = exported.run_decompositions(other_forms)
    program = torch.onnx.export(
        exported,
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["labels" if deployed.labels else "logits"],
    )
    program.model.metadata_props[KEY] = text
    program.save(path, external_data=False)


def _has_another_form(node: torch.fx.Node) -> bool:
    if node.target is torch.ops.aten.scaled_dot_product_attention.default:
        return node.meta["val"].ndim == 3
    return node.target is torch.ops.aten._upsample_bicubic2d_aa.vec


def _attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **options: Any,
) -> torch.Tensor:
    """Give attention (B, N, D) its usual four dimensions."""
    if query.ndim != 3:
        return NotImplemented  # what has them is left to PyTorch
    mask = mask[:, None] if mask is not None and mask.ndim == 3 else mask
    query, key, value = query[:, None], key[:, None], value[:, None]
    return F.scaled_dot_product_attention(query, key, value, mask, dropout_p, is_causal, **options)[:, 0]


def resample_bicubic(
    x: torch.Tensor, size: Sequence[int], align_corners: bool = False, scales: Sequence[float] | None = None
) -> torch.Tensor:
    """Resample maps (B, C, h, w) as `F.interpolate(mode="bicubic", antialias=True)`, by two products.

    ViTs resample their position embeddings so. Every runtime has products of matrices.

    Args:
        x: The maps.
        size: Height and width to resample to.
        align_corners: False; what is not is left to PyTorch.
        scales: None, likewise.

    Example:
        >>> x = torch.rand(1, 2, 8, 8)
        >>> expected = F.interpolate(x, (5, 12), mode="bicubic", antialias=True)
        >>> torch.allclose(resample_bicubic(x, (5, 12)), expected, atol=1e-6)
        True
    """
    if align_corners or scales:
        return NotImplemented
    rows, columns = (_weights(x, source, side) for source, side in zip(x.shape[2:], size, strict=True))
    return rows @ x @ columns.T


def _weights(x: torch.Tensor, source: int, target: int) -> torch.Tensor:
    """Weights (target, source) of Keys' cubic with a = -0.5, stretched where an image becomes smaller."""
    scale = source / torch.full((), target, dtype=x.dtype, device=x.device)
    centers = (torch.arange(target, dtype=x.dtype, device=x.device) + 0.5) * scale
    places = torch.arange(source, dtype=x.dtype, device=x.device) + 0.5
    distance = ((places - centers[:, None]) / scale.clamp(min=1)).abs()
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    return weights / weights.sum(1, keepdim=True)


def _write_openvino(
    deployed: nn.Module, traced: np.ndarray, dynamic: dict[int, Any], path: Path, text: str
) -> None:
    import openvino

    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder, "model.onnx")
        _write_onnx(deployed, traced, dynamic, onnx_path, text)
        model = openvino.convert_model(onnx_path)
        model.set_rt_info(text, [KEY])
        openvino.save_model(model, path, compress_to_fp16=False)


def _open_pt2(path: Path) -> Run:
    module = torch.export.load(path).module()  # our own file: another's could run code

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run


def _quantize_onnx(path: Path, images: Sequence[np.ndarray], text: str) -> None:
    """Quantize products and convolutions, as ONNX Runtime recommends for transformers on CPUs."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"images": image}

    with tempfile.TemporaryDirectory() as folder:
        prepared, small = Path(folder, "prepared.onnx"), Path(folder, "int8.onnx")
        quant_pre_process(path, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            small,
            Reader(),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
        )
        model = onnx.load(small)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)


def _quantize_openvino(path: Path, images: Sequence[np.ndarray], text: str) -> None:
    import nncf
    import openvino

    model = openvino.Core().read_model(path, path.with_suffix(".bin"))
    small = nncf.quantize(
        model,
        nncf.Dataset(images),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
    )
    small.set_rt_info(text, [KEY])
    with tempfile.TemporaryDirectory() as folder:  # the model is still mapped to its file
        openvino.save_model(small, Path(folder, path.name))
        for suffix in (".bin", ".xml"):
            data = Path(folder, path.name).with_suffix(suffix).read_bytes()
            path.with_suffix(suffix).unlink()
            path.with_suffix(suffix).write_bytes(data)


# By suffix: how a file is written, opened to be compared, and written anew with 8-bit numbers.
WRITERS: dict[str, Callable[..., None]] = {
    ".onnx": _write_onnx,
    ".pt2": _write_pt2,
    ".xml": _write_openvino,
}
OPENERS: dict[str, Callable[[Path], Run]] = {
    ".onnx": lambda path: open_onnx(path)[0],
    ".pt2": _open_pt2,
    ".xml": lambda path: open_openvino(path)[0],
}
QUANTIZERS: dict[str, Callable[..., None]] = {".onnx": _quantize_onnx, ".xml": _quantize_openvino}
