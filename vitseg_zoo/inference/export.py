"""A trained model as a file for other runtimes: ONNX, `torch.export`, OpenVINO IR, compared with PyTorch.

A file gets its name only after it was run next to the model that it was made from.
"""

import copy
import json
import os
import statistics
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import Activation
from torch import nn
from torch.export import Dim

from vitseg_zoo import __version__
from vitseg_zoo.cost import take_turns
from vitseg_zoo.files import atomic_path
from vitseg_zoo.inference.exported import INPUTS, ExportedModel, Run, for_size
from vitseg_zoo.inference.formats import OPENERS, QUANTIZERS, WRITERS
from vitseg_zoo.inference.predictor import ImageLike, Predictor
from vitseg_zoo.weights.license import write_notice
from vitseg_zoo.weights.loading import unwrap
from vitseg_zoo.weights.metadata import METADATA

# Sides are multiples of this, as most decoders of SMP need them.
_STRIDE = 32

# Images (B, H, W) that a file of any size is traced with (of a batch of one it would not learn that it may be
# larger), and those that it is run on. PAN has nothing left to pool of less than 128 x 128.
_TRACED = (2, 128, 160)
_SIZES = ((1, 192, 128), (3, 160, 160), (1, 224, 256))
_LEAST = 64

# The least part of pixels whose labels have to be PyTorch's.
_LEAST_AGREEMENT = 0.99

# Images that a file is compared and calibrated on are kept as they come to the model, so many at most.
_MOST_IMAGES = 64

_ROUNDS = 7


@dataclass(frozen=True)
class Agreement:
    """How a file compares with the model that it was made from, on noise of one size or on given images."""

    what: str  # the size of random images, or how many given ones
    labels: float  # part of the pixels whose labels are equal
    difference: float | None  # the largest between logits; None of a file that gives labels

    def __str__(self) -> str:
        difference = "" if self.difference is None else f", logits differ by at most {self.difference:.1e}"
        return f"{self.what}: labels agree on {self.labels:.3%} of the pixels{difference}"


@dataclass(frozen=True)
class Quantized:
    """What a file gained and lost by 8-bit numbers."""

    agreements: list[Agreement]
    seconds: tuple[float, float]  # medians of one image, before and after
    megabytes: tuple[float, float]  # of the file, before and after


@dataclass
class ExportReport:
    """What was written, and how it compares with PyTorch."""

    path: Path
    agreements: list[Agreement] = field(default_factory=list)
    quantized: Quantized | None = None


class _AnotherModelError(ValueError):
    """A file was made that gives other labels than the model."""


class DeployedModel(nn.Module):
    """A model with what a file shall do beside it: normalization in front, arg-max behind.

    Args:
        model: Maps normalized images (B, C, H, W) to logits (B, classes, h, w), as a tensor, as the first of
            a tuple, or as `logits` of an output of Hugging Face.
        input: One of `INPUTS`.
        labels: Return labels (B, H, W), uint8 or, of more than 256 classes, int32.
        mean: Of images in [0, 1], one for each channel or one for all.
        std: Likewise.
        multilabel: A pixel may have several classes.

    Raises:
        ValueError: If labels are asked for where a pixel may have several.

    Example:
        >>> deployed = DeployedModel(nn.Conv2d(3, 2, 1), "uint8_nhwc", labels=True)
        >>> deployed(torch.zeros(1, 4, 6, 3, dtype=torch.uint8)).shape
        torch.Size([1, 4, 6])
    """

    def __init__(
        self,
        model: nn.Module,
        input: str = "normalized",
        labels: bool = False,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        multilabel: bool = False,
    ) -> None:
        super().__init__()
        if labels and multilabel:
            raise ValueError(
                "labels=True is for one class a pixel, and the model is multi-label: export its logits, of "
                "which those above 0 are there."
            )
        self.multilabel = multilabel
        self.model, self.input, self.labels = model, input, labels
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, -1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.permute(0, 3, 1, 2) if self.input == "uint8_nhwc" else images
        if self.input != "normalized":
            x = (x.float() / 255 - self.mean) / self.std
        output = self.model(x)
        is_small = hasattr(output, "logits")  # Hugging Face's logits are smaller than the image
        logits = output.logits if is_small else output[0] if isinstance(output, tuple) else output
        if not self.labels:
            return logits
        if is_small:
            logits = F.interpolate(logits, x.shape[2:], mode="bilinear")
        if logits.shape[1] == 1:
            return (logits[:, 0] > 0).to(torch.uint8)
        return logits.argmax(1).to(torch.uint8 if logits.shape[1] <= 256 else torch.int32)


def export_model(
    model: nn.Module,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    *,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    input: str = "normalized",
    labels: bool = False,
    images: Sequence[ImageLike] = (),
    quantize: str | None = None,
) -> ExportReport:
    """Write a model as a file for another runtime, after comparing that file's output with the model's.

    The file is run on random images of three sizes and on given ones. It gets its name if no more than 1 % of
    the labels of each are other ones; what 8-bit numbers change is only reported.

    Args:
        model: A model of the zoo, of SMP, with or without `vitseg_zoo.accelerate`, of Hugging Face, or any
            that maps images (B, C, H, W) to logits (B, classes, h, w). It is copied and left as it is; the
            file of a model of SMP's with an activation gives what is before that.
        path: The file: `.onnx`, `.pt2` of `torch.export`, or `.xml` of OpenVINO IR, with a `.bin` beside it.
        metadata: What the file shall say of itself, see `vitseg_zoo.save_model`; by default what the model
            was loaded with. `mean` and `std` are what it normalizes with.
        size: Height and width of the images; by default any multiples of 32.
        batch: Number of images; by default any.
        input: `"normalized"`, float32 (B, C, H, W) as in training; or `"uint8_nchw"` or `"uint8_nhwc"`,
            whole numbers from 0 to 255 that the file normalizes itself.
        labels: Give labels (B, H, W), uint8, instead of logits.
        images: Photographs to compare on, and to calibrate on for `quantize`.
        quantize: `"int8"` for 8-bit numbers, by ONNX Runtime's or NNCF's own tools.

    Returns:
        How the file compares with PyTorch.

    Raises:
        ValueError: If the suffix, `input` or `quantize` is none of these, what is asked for cannot be
            exported, or the file's output is another than the model's; then there is no file.
        ModuleNotFoundError: If onnx, onnxscript and onnxruntime (extra `export`) or openvino and nncf (extra
            `openvino`) are missing.

    Example:
        >>> import segmentation_models_pytorch as smp, tempfile
        >>> model = smp.create_model("vitseg", "vz-vitseg_tiny_patch16_128", None, classes=2)
        >>> path = f"{tempfile.mkdtemp()}/model.pt2"
        >>> report = export_model(model, path, {"class_names": ["cat", "rest"]}, size=(64, 64), batch=1)
        >>> report.agreements[0].labels
        1.0
    """
    path = Path(path)
    if path.suffix not in WRITERS:
        raise ValueError(f"an exported file ends in {', '.join(WRITERS)}, got {path.name!r}.")
    if input not in INPUTS:
        raise ValueError(f"input should be one of {', '.join(INPUTS)}, got {input!r}.")
    if quantize not in (None, "int8") or (quantize and path.suffix == ".pt2"):
        raise ValueError(f"quantize should be 'int8', for .onnx or .xml, got {quantize!r} for {path.name}.")
    if quantize and not images:
        raise ValueError("quantize='int8' needs images to calibrate on.")
    for name, number in (("batch", (batch,)), ("size", size or (None, None))):
        if any(value is not None and value < 1 for value in number):
            raise ValueError(f"{name} should be at least 1, got {number}.")
    model = copy.deepcopy(unwrap(model)).cpu().float().eval()
    _without_padding(model, size)
    _without_activation(model)
    about = dict(getattr(model, "pretrained_cfg", {}) if metadata is None else metadata)
    about |= for_size(about, size)
    predictor = Predictor(model, "cpu", metadata=about)
    mean, std = about.get("mean") or (0.0,), about.get("std") or (1.0,)
    deployed = DeployedModel(model, input, labels, mean, std, predictor.multilabel).eval()
    said = {
        **{key: about[key] for key in METADATA if about.get(key) not in (None, (), [], "")},
        "architecture": about.get("architecture", type(model).__name__.lower()),
        "arguments": {"in_channels": predictor.channels, "classes": predictor.classes},
        "vitseg_zoo_version": __version__,
        "export": {"input": input, "labels": labels, "quantize": quantize},
    }
    seen = _as_seen(predictor, deployed, images, batch, size)
    height, width = size or _TRACED[1:]
    traced = _random(deployed, predictor.channels, batch or _TRACED[0], height, width)
    shapes = [(b, *size) for b in (1, 2, 3)] if size else _SIZES
    tests = {
        f"{batch or b} x {h} x {w}": _random(deployed, predictor.channels, batch or b, h, w)
        for b, h, w in shapes
    }
    fixed = "" if size else "; give it one size instead: size=(512, 512), or --size 512 512"
    with ExitStack() as stack:
        partial = stack.enter_context(atomic_path(path))
        if path.suffix == ".xml":
            weights = stack.enter_context(atomic_path(path.with_suffix(".bin")))
            stack.callback(lambda: partial.with_suffix(".bin").unlink(missing_ok=True))
        text = json.dumps(said)
        step = f"exported to {path.suffix}"
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                deployed(torch.from_numpy(traced))  # what depends on the size, as BEiT's tables, is made now
                WRITERS[path.suffix](deployed, traced, _dynamic(batch, size, input), partial, text)
            run = OPENERS[path.suffix](partial)
            report = ExportReport(path, _compare_all(deployed, run, tests, seen))
            for agreement in report.agreements:
                if not agreement.labels >= _LEAST_AGREEMENT:
                    raise _AnotherModelError(f"the file is not what the model is, on {agreement}{fixed}.")
            if quantize:
                step = f"made {quantize} in {path.suffix}"
                before = partial.stat().st_size + _size(partial.with_suffix(".bin"))
                QUANTIZERS[path.suffix](partial, seen, text)
                small = OPENERS[path.suffix](partial)
                one = seen[0][: batch or 1]
                times = take_turns([lambda: run(one), lambda: small(one)], _ROUNDS)
                after = partial.stat().st_size + _size(partial.with_suffix(".bin"))
                report.quantized = Quantized(
                    _compare_all(deployed, small, tests, seen),
                    (statistics.median(times[0]), statistics.median(times[1])),
                    (before / 1e6, after / 1e6),
                )
        except (ModuleNotFoundError, _AnotherModelError):
            raise
        except Exception as error:  # of the exporter or a runtime: each has classes of its own
            cause: BaseException = error
            while cause.__cause__ is not None:  # the exporter's own tells what to do to PyTorch
                cause = cause.__cause__
            reason = str(cause).strip().partition("\n")[0]
            raise ValueError(
                f"{said['architecture']} cannot be {step} so ({type(cause).__name__}: {reason[:300]}){fixed}."
            ) from error
        if path.suffix == ".xml":
            os.replace(partial.with_suffix(".bin"), weights)
    write_notice(path.with_name(f"{path.stem}.LICENSE.txt"), said.get("license"))
    return report


def _without_padding(model: nn.Module, size: tuple[int, int] | None) -> None:
    """Take away a ViT's padding to whole patches where all images are made of those: a shorter graph."""
    for module in model.modules():
        if getattr(module, "dynamic_img_pad", False) and not any(
            side % patch for side, patch in zip(size or (_STRIDE, _STRIDE), module.patch_size, strict=True)
        ):
            module.dynamic_img_pad = False


def _without_activation(model: nn.Module) -> None:
    """Let a model of SMP's give logits, whatever its activation: tiles are blended in them."""
    head = getattr(model, "segmentation_head", None)
    for module in head.modules() if isinstance(head, nn.Module) else ():
        if isinstance(module, Activation):
            module.activation = nn.Identity()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _random(deployed: DeployedModel, channels: int, batch: int, height: int, width: int) -> np.ndarray:
    """Return a batch of noise in the form that a file takes, the same in each call."""
    generator = np.random.default_rng(0)
    if deployed.input == "normalized":
        return generator.standard_normal((batch, channels, height, width), dtype=np.float32)
    nhwc = deployed.input == "uint8_nhwc"
    shape = (batch, height, width, channels) if nhwc else (batch, channels, height, width)
    return generator.integers(0, 256, shape, np.uint8)


def _as_seen(
    predictor: Predictor,
    deployed: DeployedModel,
    images: Sequence[ImageLike],
    batch: int | None,
    size: tuple[int, int] | None,
) -> list[np.ndarray]:
    """Return images as the predictor gives them to a file: resized or in tiles, and normalized or not."""
    seen: list[np.ndarray] = []

    def run(array: np.ndarray) -> np.ndarray:
        seen.append(array)
        return np.zeros((len(array), 1, _STRIDE, _STRIDE), np.float32)

    recorder = ExportedModel(run, deployed.input, batch, size)
    metadata = predictor.metadata
    if deployed.input != "normalized":
        metadata = {key: value for key, value in metadata.items() if key not in ("mean", "std")}
    arguments = {"in_channels": predictor.channels, "classes": predictor.classes}
    through = Predictor(recorder, "cpu", metadata={**metadata, "arguments": arguments})
    for image in images:
        if len(seen) >= _MOST_IMAGES:
            break
        through(image)
    return seen[:_MOST_IMAGES]


def _dynamic(batch: int | None, size: tuple[int, int] | None, input: str) -> dict[int, Any]:
    """Say which sides of the images may be any: what `torch.export` calls dynamic shapes."""
    rows, columns = (1, 2) if input == "uint8_nhwc" else (2, 3)
    sides: dict[int, Any] = {} if batch else {0: Dim("batch")}
    if size is None:
        sides |= {
            side: _STRIDE * Dim(name, min=_LEAST // _STRIDE)
            for side, name in ((rows, "rows"), (columns, "columns"))
        }
    return sides


def _compare_all(
    deployed: DeployedModel, run: Run, tests: Mapping[str, np.ndarray], seen: Sequence[np.ndarray]
) -> list[Agreement]:
    """Compare on noise of each size, and on all given images together."""
    agreements = [_compare(deployed, run, *test) for test in tests.items()]
    if seen:
        given = [_compare(deployed, run, "a given image", array) for array in seen]
        labels = statistics.fmean(agreement.labels for agreement in given)
        differences = [agreement.difference for agreement in given if agreement.difference is not None]
        what = f"{len(seen)} given images" if len(seen) > 1 else "a given image"
        agreements.append(Agreement(what, labels, max(differences, default=None)))
    return agreements


@torch.no_grad()
def _compare(deployed: DeployedModel, run: Run, what: str, images: np.ndarray) -> Agreement:
    expected, found = deployed(torch.from_numpy(images)).numpy(), run(images)
    if expected.shape != found.shape:
        raise ValueError(f"the file gives {found.shape} of {what}, but the model gives {expected.shape}.")
    if expected.ndim == 3:
        return Agreement(what, float((expected == found).mean()), None)
    by_class = expected.shape[1] > 1 and not deployed.multilabel
    labels = [maps.argmax(1) if by_class else maps > 0 for maps in (expected, found)]
    return Agreement(what, float((labels[0] == labels[1]).mean()), float(np.abs(expected - found).max()))
