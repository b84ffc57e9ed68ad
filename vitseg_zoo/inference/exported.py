"""Exported files as modules: ONNX by ONNX Runtime, OpenVINO IR by OpenVINO, for the same `Predictor`."""

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitseg_zoo.weights.license import say_license
from vitseg_zoo.weights.metadata import METADATA, check_metadata

# Where a file of each format keeps the JSON object that says what it is.
KEY = "vitseg_zoo"

# What a file may take: normalized float32 (B, C, H, W), or uint8 that it normalizes itself.
INPUTS = ("normalized", "uint8_nchw", "uint8_nhwc")

SUFFIXES = (".onnx", ".xml", ".pt2")

Run = Callable[[np.ndarray], np.ndarray]


class ExportedModel(nn.Module):
    """A file that another runtime runs, in the form of a model: images (B, C, H, W) to logits or labels.

    Args:
        run: Runs the file: images of its `input` to logits (B, classes, h, w) or labels (B, h, w).
        input: One of `INPUTS`. Images come normalized; where the file normalizes, as floats from 0 to 1.
        batch: Number of images that the file takes, where it is fixed.
        size: Height and width of the images, where they are fixed.

    Example:
        >>> double = ExportedModel(lambda images: 2 * images, batch=1)
        >>> double(torch.ones(3, 1, 2, 2)).shape
        torch.Size([3, 1, 2, 2])
    """

    def __init__(
        self,
        run: Run,
        input: str = "normalized",
        batch: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self._run, self.input, self.batch, self.size = run, input, batch, size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Run the file, in parts of its batch where that is fixed; the last part is filled up.

        Raises:
            ValueError: If the file takes images of another size only.
        """
        if self.size is not None and tuple(images.shape[2:]) != tuple(self.size):
            raise ValueError(
                f"the file takes images of {self.size[0]} x {self.size[1]} only, got {images.shape[2]} x "
                f"{images.shape[3]}: predict with --fit squeeze, or in tiles, or export it for any size."
            )
        if self.input != "normalized":
            images = (images * 255).round().clamp(0, 255).to(torch.uint8)
        if self.input == "uint8_nhwc":
            images = images.permute(0, 2, 3, 1)
        array = images.cpu().numpy()
        outputs = []
        step = self.batch or len(array)
        for first in range(0, len(array), step):
            part = array[first : first + step]
            filled = np.concatenate([part, np.repeat(part[-1:], step - len(part), axis=0)])
            outputs.append(self._run(np.ascontiguousarray(filled))[: len(part)])
        return torch.from_numpy(np.concatenate(outputs)).to(images.device)


def is_exported(path: Any) -> bool:
    """Tell whether a path names an exported file.

    Example:
        >>> is_exported("model.onnx"), is_exported("segformer_b0.pets")
        (True, False)
    """
    return isinstance(path, str | Path) and Path(path).suffix.lower() in SUFFIXES


def load_exported(path: str | Path) -> tuple[ExportedModel, dict[str, Any]]:
    """Load a file of `export_model`, or a foreign one that maps normalized images to logits.

    Args:
        path: An ONNX file, or the `.xml` of OpenVINO IR with its `.bin` beside it.

    Returns:
        The model, and what the file says of it: the part of `vitseg_zoo.weights.metadata.METADATA` that is
        known, `arguments` (`in_channels` and `classes`) and `export` (how it was exported). `mean` and `std`
        are left out where the file normalizes images itself.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is a `.pt2`, its runtime cannot read it, it is no segmentation model, or its
            metadata are damaged.
        ModuleNotFoundError: If onnxruntime (extra `export`) or openvino (extra `openvino`) is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    if path.suffix.lower() == ".pt2":
        raise ValueError(
            f"{path} is of torch.export, which can run code from a file that it loads: predict with .onnx, "
            ".xml or the weights, or torch.export.load a file that you trust."
        )
    # Not caught below: a missing package has an answer of its own.
    if path.suffix.lower() == ".onnx":
        import onnxruntime  # noqa: F401

        open_file = open_onnx
    else:
        import openvino  # noqa: F401

        open_file = open_openvino
    try:
        run, text, shapes = open_file(path)
    except Exception as error:  # each runtime has classes of its own
        raise ValueError(f"{path} cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    described = _parse(text, path)
    export = described["export"]
    image, output = shapes
    if len(image) != 4 or len(output) not in (3, 4):
        raise ValueError(f"{path} is no model of images (B, C, H, W) to logits: it has shapes {shapes}.")
    nhwc = export["input"] == "uint8_nhwc"
    channels, sides = (image[3], image[1:3]) if nhwc else (image[1], image[2:])
    if not isinstance(channels, int):
        raise ValueError(f"{path} does not say how many channels its images have: {image}.")
    classes = output[1] if len(output) == 4 else described.get("arguments", {}).get("classes")
    described["arguments"] = {"in_channels": channels}
    if isinstance(classes, int):
        described["arguments"]["classes"] = classes
    check_metadata(described)
    if export["input"] != "normalized":
        described = {key: value for key, value in described.items() if key not in ("mean", "std")}
    size = (sides[0], sides[1]) if all(isinstance(side, int) for side in sides) else None
    batch = image[0] if isinstance(image[0], int) else None
    say_license(str(path), described.get("commercial_use"), described.get("license"))
    return ExportedModel(run, export["input"], batch, size).eval(), described | for_size(described, size)


def for_size(metadata: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """Say how images come to a model of one size: in tiles of that size if they did before, else squeezed.

    Example:
        >>> for_size({"input_size": (512, 512)}, (256, 256))
        {'input_size': (256, 256), 'fit': 'squeeze'}
    """
    if size is None:
        return {}
    return {"input_size": size, "fit": "tiles" if metadata.get("fit") == "tiles" else "squeeze"}


# Sides of the only input and of the first output: numbers where they are fixed.
_Shapes = tuple[list[Any], list[Any]]


def open_onnx(path: Path) -> tuple[Run, str | None, _Shapes]:
    """Open an ONNX file in ONNX Runtime, on CUDA where that is built in.

    Returns:
        How to run it, the text of its metadata, and the shapes of its input and output.
    """
    import onnxruntime

    available = onnxruntime.get_available_providers()
    providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=providers)
    source, target = session.get_inputs()[0], session.get_outputs()[0]

    def run(images: np.ndarray) -> np.ndarray:
        return session.run([target.name], {source.name: images})[0]

    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return run, text, (list(source.shape), list(target.shape))


@functools.cache
def _openvino_core() -> Any:
    """Give the one `openvino.Core` of this process, which stays.

    The first one's CPU device lends the thread that loads it a stack for signals, and unmaps that stack when
    it goes, in whichever thread: the next signal, as of a child that ends, would then kill the process.
    """
    import openvino

    return openvino.Core()


def open_openvino(path: Path) -> tuple[Run, str | None, _Shapes]:
    """Open OpenVINO IR on OpenVINO's CPU device; returns what `open_onnx` does."""
    core = _openvino_core()
    model = core.read_model(path)
    # By itself OpenVINO computes in bf16 where a CPU can, which is not what the model gives.
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else None
    shapes = tuple(
        [side.get_length() if side.is_static else str(side) for side in port.partial_shape]
        for port in (model.input(0), model.output(0))
    )

    def run(images: np.ndarray) -> np.ndarray:
        return compiled(images)[0]

    return run, text, (shapes[0], shapes[1])


def _parse(text: str | None, path: Path) -> dict[str, Any]:
    """Return what a file says of its model; of a foreign one, that it takes normalized images."""
    try:
        described = json.loads(text) if text else {}
    except ValueError as error:
        raise ValueError(f"{path}: its metadata are no JSON.") from error
    export = described.get("export", {"input": "normalized"}) if isinstance(described, Mapping) else None
    if not isinstance(export, Mapping) or export.get("input") not in INPUTS:
        raise ValueError(f"{path}: its metadata do not say what images it takes.")
    known = {key: described[key] for key in (*METADATA, "architecture", "arguments") if key in described}
    return known | {"export": dict(export)}
