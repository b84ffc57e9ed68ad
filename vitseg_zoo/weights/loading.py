"""Loads weights of any known format: builds their model, or loads them into one, with a report."""

import json
import logging
import re
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel
from torch import nn
from torch.nn.modules.module import _IncompatibleKeys

from vitseg_zoo.encoders.mix_checkpoints import checkpoint_filter_fn, convert_to_smp
from vitseg_zoo.terminal import printable
from vitseg_zoo.weights.checkpoint import Checkpoint, read_checkpoint
from vitseg_zoo.weights.download import fetch, find_entry
from vitseg_zoo.weights.download_errors import without_password
from vitseg_zoo.weights.formats import StateDict, left_out, recognize
from vitseg_zoo.weights.identify import build_model, describe_checkpoint
from vitseg_zoo.weights.license import say_license
from vitseg_zoo.weights.metadata import metadata_of

_logger = logging.getLogger("vitseg_zoo")


@dataclass(frozen=True)
class LoadReport:
    """What became of a file's weights."""

    format: str  # the format that was recognized
    loaded: int  # number of the model's tensors that were set
    missing: tuple[str, ...]  # the model's tensors that the file does not have; they keep their values
    unexpected: tuple[str, ...]  # the file's tensors that the model does not have
    mismatched: tuple[str, ...]  # those of another shape, such as the head of another number of classes
    ignored: tuple[str, ...]  # the file's tensors beside the model's: a loss's, a classifier's, copies

    def __str__(self) -> str:
        parts = [f"{self.format}: {self.loaded} tensors loaded"]
        if self.mismatched:
            parts.append(f"not loaded, of another shape: {_some(self.mismatched)}")
        if self.missing:
            parts.append(f"not in the file: {_some(self.missing)}")
        if self.unexpected:
            parts.append(f"left over: {_some(self.unexpected)}")
        if self.ignored:
            parts.append(f"not of the model, left out: {_some(self.ignored)}")
        return "; ".join(parts)


def load_model(source: str | Path) -> tuple[SegmentationModel, dict[str, Any]]:
    """Build a model from a file or a folder alone, whatever program wrote it, and load its weights.

    Args:
        source: A file of `save_model`, a folder of `save_pretrained`, a checkpoint of this package's
            training, a foreign checkpoint that is recognized by its keys, or a name of the catalog.

    Returns:
        The model in evaluation mode, and what is known of it: `architecture`, `arguments`, `mean` and `std`
        of images in [0, 1], and where they are known `class_names`, `palette`, `license` and so on.

    Raises:
        ValueError: If the file does not say, and does not show, what model it is of.
        RuntimeError: If the weights do not fit the model.
        OSError: If the file cannot be found or downloaded.
    """
    model, metadata, _ = load_with_report(source)
    return model.eval(), metadata


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> LoadReport:
    """Load weights into a model, whatever program wrote them.

    Recognized by their keys: SegFormer of NVIDIA, Hugging Face and SMP, MiT, any SMP model, timm's ViTs and
    PVTv2, Segmenter, the notebook of the article; bare, in a Lightning checkpoint, with averaged weights
    (EMA), or with what `torch.compile` and DistributedDataParallel put before the names. No code from the
    file is run.

    Args:
        model: A model of `smp.create_model`, one of its encoders, or a timm model, also compiled or in
            (Distributed)DataParallel.
        path: The file, an https: or file: address, or a name of the catalog.
        strict: All of the model's tensors have to be in the file, and all of the file's in the model.
            Without, what fits is loaded, and what does not is reported in one line.

    Returns:
        What was loaded and what was not.

    Raises:
        ValueError: If the file is damaged, would run code, or has a format that is not known or another
            function.
        RuntimeError: If something is missing or left over and `strict` is set; the model is then as it was.
        OSError: If the file cannot be found or downloaded.

    Example:
        >>> import os, tempfile, torch
        >>> import segmentation_models_pytorch as smp
        >>> trained = torch.compile(smp.Unet("resnet18", encoder_weights=None))
        >>> path = os.path.join(tempfile.mkdtemp(), "last.pth")
        >>> torch.save(trained.state_dict(), path)
        >>> print(load_weights(smp.Unet("resnet18", encoder_weights=None), path))
        model of SMP: 182 tensors loaded
    """
    model, entry = unwrap(model), find_entry(path)
    checkpoint = read_checkpoint(fetch(entry or path))
    about: dict[str, Any] = (
        {} if entry is None else {"commercial_use": entry.commercial_use, "license": entry.license}
    )
    about = about or json.loads(checkpoint.notes.get("metadata", {}).get("vitseg_zoo", "{}"))
    name = without_password(str(path))
    say_license(name, about.get("commercial_use"), about.get("license"))
    return load_checkpoint(model, checkpoint, strict, name)


def load_with_report(source: str | Path) -> tuple[SegmentationModel, dict[str, Any], LoadReport]:
    """Load a model like `load_model`, in training mode; give the report of `load_checkpoint`, too."""
    if Path(source).is_dir():
        files = [Path(source, name) for name in ("model.safetensors", "pytorch_model.bin")]
        source = next((file for file in files if file.is_file()), files[0])
    entry = find_entry(source)
    if entry is not None and entry.kind == "encoder":
        raise ValueError(
            f"{entry.name} is an encoder alone: use it in a model, "
            f"smp.create_model(..., encoder_name='vz-{entry.architecture}')."
        )
    path = fetch(entry or source)
    checkpoint = read_checkpoint(path)
    if entry is None:
        metadata = describe_checkpoint(checkpoint, path)
    else:
        arguments = {"classes": len(entry.class_names), **entry.arguments}
        metadata = {"architecture": entry.architecture, "arguments": arguments, **metadata_of(entry)}
    name = without_password(str(source)) if entry is None else entry.name
    say_license(name, metadata.get("commercial_use"), metadata.get("license"))
    model = build_model(metadata, checkpoint.weights, name)
    return model, metadata, load_checkpoint(model, checkpoint, strict=True, name=name)


def load_checkpoint(model: nn.Module, checkpoint: Checkpoint, strict: bool, name: str) -> LoadReport:
    """Load a checkpoint that was read; arguments, result and errors are those of `load_weights`.

    Args:
        model: See `load_weights`.
        checkpoint: What `read_checkpoint` gave.
        strict: See `load_weights`.
        name: What to call the file in messages.
    """
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unused = _unused(checkpoint.weights, before)
    used = {key: value for key, value in checkpoint.weights.items() if key not in unused}
    format_name, weights = _best_fit(model, used)
    if weights is None:
        raise ValueError(
            f"{name} ({format_name}) does not fit {type(model).__name__}: no tensor has one of its names; "
            f"the file begins with {_some(list(checkpoint.weights))}, "
            f"the model with {_some(list(before))}."
        )
    unused += left_out(used, weights)
    # Encoders resample positions and patches of other shapes; elsewhere another shape is an error.
    mismatched = [
        key
        for key, value in weights.items()
        if key in before and before[key].shape != value.shape and not key.startswith("encoder.")
    ]
    fitting = {key: value for key, value in weights.items() if key not in mismatched}
    try:
        result, of_encoder, unplaced = _load(model, fitting)
    except Exception as error:  # refused by the encoder's conversion
        model.load_state_dict(before)
        raise RuntimeError(
            f"{name} ({format_name}) does not fit {type(model).__name__}: {_reason(error)}"
        ) from error
    mismatched += of_encoder
    missing = [key for key in result.missing_keys if key not in mismatched]
    in_file = {id(value): key for key, value in used.items()}
    changes: list[str] = []
    for key in filter(fitting.__contains__, unplaced):
        block = _OF_A_BLOCK.search(key)
        # One with which a block of the model would compute something else is more than beside the model.
        counts = block and any(block["name"] in own for own in before) and fitting[key].any()
        (changes if counts else unused).append(in_file.get(id(fitting[key]), key))
    report = LoadReport(
        format_name,
        len(before) - len(result.missing_keys),
        tuple(missing),
        (*result.unexpected_keys, *changes),
        tuple(mismatched),
        (*checkpoint.ignored, *unused),
    )
    if report.missing or report.unexpected or report.mismatched:
        if strict:
            model.load_state_dict(before)
            raise RuntimeError(
                f"{name} does not fit {type(model).__name__}: {_without_count(report)}. "
                "To load the rest, pass strict=False."
            )
        _logger.warning("%s: %s.", printable(name), printable(report))
    return report


def unwrap(model: nn.Module) -> nn.Module:
    """Give the model in what `torch.compile`, (Distributed)DataParallel and `AveragedModel` put around it."""
    while isinstance(inner := getattr(model, "_orig_mod", getattr(model, "module", None)), nn.Module):
        model = inner
    return model


# A parameter of a timm ViT's block, and no constant.
_OF_A_BLOCK = re.compile(
    r"\b(?P<name>blocks\.\d+\.).*(?<!bias_mask)(?<!relative_position_index)(?<!periods)$"
)


def _load(model: nn.Module, weights: StateDict) -> tuple[_IncompatibleKeys, list[str], list[str]]:
    """Load the tensors that fit once the encoder has converted them.

    Returns:
        What PyTorch says; the names of those that do not fit; and of those that the encoder has no place for.
    """
    unplaced: list[str] = []
    weights = OrderedDict(weights)
    # What PyTorch passes to the hooks of the model, which may be the encoder, and of its encoder.
    weights._metadata = {key: {"left_out": unplaced} for key in ("", "encoder")}  # type: ignore[attr-defined]
    own = model.state_dict()
    load = model.load_state_dict  # SMP's renames some encoders of old
    if any(key in own and own[key].shape != value.shape for key, value in weights.items()):
        # SMP's would drop these before the encoder can resample them.
        load = partial(nn.Module.load_state_dict, model)
    try:
        return load(weights, strict=False), [], unplaced
    except RuntimeError as error:
        mismatched = re.findall(r"size mismatch for (\S+): copying", str(error))
        if not mismatched:
            raise
    unplaced.clear()
    for key in mismatched:
        weights.pop(key, None)
    return load(weights, strict=False), mismatched, unplaced


def _unused(weights: StateDict, own: StateDict) -> list[str]:
    """Say what the model has no use for, by the format; a classifier is used where the model has one."""
    known = recognize(weights)
    if known is None or any(key.startswith("head.") for key in own):
        return []
    return [key for key in weights if re.match(known.unused, key)]


def _best_fit(model: nn.Module, weights: StateDict) -> tuple[str, StateDict | None]:
    """Return the spelling of the weights with most of the model's names and shapes; None if none has any."""
    own = model.state_dict()
    known = recognize(weights)
    name = known.name if known else "unknown format"
    best, most = None, 0
    for spelling in _spellings(model, weights):
        for placed in _placements(spelling):
            fit = sum(
                2 if own[key].shape == value.shape else 1 for key, value in placed.items() if key in own
            )
            if fit > most:
                best, most = placed, fit
    return name, best


def _spellings(model: nn.Module, weights: StateDict) -> Iterator[StateDict]:
    """Return the weights under the names of each library that the model could be of; their own first."""
    known = recognize(weights)
    if known is None:
        yield weights
        return
    converted = known.convert(weights)  # refuses what is another function
    yield weights
    yield converted
    if any(key.startswith("encoder.model.stages.") for key in weights):  # the zoo's own
        yield convert_to_smp(weights)
    if "SegFormer" in known.name:
        yield convert_to_smp(converted)
        yield checkpoint_filter_fn(
            weights, model if hasattr(model, "head") and hasattr(model, "stages") else None
        )
    elif "MiT" in known.name:
        yield convert_to_smp({f"encoder.model.{key}": value for key, value in converted.items()})


def _placements(weights: StateDict) -> Iterator[StateDict]:
    """Yield the weights as they are, as an encoder's within a model, and those of the encoder in them."""
    yield weights
    for prefix in ("encoder.model.", "encoder.", "model."):
        yield {f"{prefix}{key}": value for key, value in weights.items()}
        if any(key.startswith(prefix) for key in weights):
            yield {key.removeprefix(prefix): value for key, value in weights.items()}


def _some(keys: list[str] | tuple[str, ...]) -> str:
    shown = ", ".join(keys[:3])
    return f"{shown} and {len(keys) - 3} more" if len(keys) > 3 else shown


def _without_count(report: LoadReport) -> str:
    return str(report).partition("loaded; ")[2]


def _reason(error: Exception) -> str:
    """Return the first particular that `load_state_dict` gives, behind its general first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[1 if len(lines) > 1 else 0]
