"""Reads a checkpoint file of any kind without running code from it, and finds the model's weights in it."""

import argparse
import pathlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from vitseg_zoo.weights.check import archive_fault

StateDict = dict[str, torch.Tensor]

# Where training programs put the weights, averaged ones (EMA) first.
_CONTAINERS = (
    *("state_dict_ema", "model_ema", "model_ema_state_dict", "ema_state_dict", "ema_model", "ema"),
    *("swa_state_dict", "swa_model", "averaged_model", "averaged_model_state_dict"),
    *("state_dict", "model_state_dict", "model", "net", "module"),
)
# Left by DistributedDataParallel, by `torch.optim.swa_utils.AveragedModel` and by `torch.compile`.
_WRAPPERS = re.compile(r"(^|\.)(?:_orig_mod|module)(?=\.)")
# A training module's attribute that holds averaged weights.
_AVERAGED = re.compile(r"(^|[._])(ema|averaged|swa|shadow)([._]|$)")

_multiarray: Any = (np._core if hasattr(np, "_core") else np.core).multiarray  # its name before NumPy 2

# Found in training programs' notes beside the weights; making one of these runs nothing of the file's
# choosing.
_HARMLESS = [
    argparse.Namespace,
    pathlib.PosixPath,
    np.ndarray,
    np.dtype,
    _multiarray.scalar,
    _multiarray._reconstruct,
    *{type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "b1")},
]


@dataclass
class Checkpoint:
    """What a file holds."""

    weights: StateDict  # by the names that the model itself has, without those of a module around it
    notes: dict[str, Any] = field(default_factory=dict)  # what else is in it: metadata, hyper-parameters
    ignored: list[str] = field(
        default_factory=list
    )  # tensors beside the model's: a loss's, a copy not averaged
    prefix: str = ""  # what stood before the names


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read the weights from a safetensors file, or from what `torch.save` wrote.

    Of nested checkpoints, averaged weights (EMA) are preferred. What DataParallel, `torch.compile` or a
    Lightning module put before the names is taken away.

    Args:
        path: The file.

    Returns:
        Its weights, on the CPU, and notes.

    Raises:
        ValueError: If the file is damaged, holds no weights, or objects that only running code could make.
        FileNotFoundError: If there is no such file.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save({"state_dict": {"module.weight": torch.zeros(2)}}, f"{folder}/last.pth")
        ...     read_checkpoint(f"{folder}/last.pth").weights
        {'weight': tensor([0., 0.])}
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(9)
    # An archive, or a bare pickle as PyTorch wrote before 1.6. A safetensors file, whose header begins at its
    # ninth byte, may by chance begin like one.
    is_pickle = start[:1] in (b"P", b"\x80") and start[8:] != b"{"
    content, notes = _read_pickle(path) if is_pickle else _read_safetensors(path)
    tensors = _find_weights(content, notes)
    if not tensors:
        raise ValueError(f"{path} holds no weights: expected a state dict, or a dict with one.")
    return _strip(tensors, notes)


def _read_safetensors(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            return tensors, {"metadata": dict(file.metadata() or {})}
    except SafetensorError as error:
        raise ValueError(
            f"{path} is neither a complete safetensors file nor a PyTorch checkpoint ({error}): get it again."
        ) from error


def _read_pickle(path: Path) -> tuple[Mapping[str, Any], dict[str, Any]]:
    with path.open("rb") as file:
        is_archive = file.read(2) == b"PK"
    if is_archive and (fault := archive_fault(path)):
        raise ValueError(f"{path} {fault}: get it again.")
    if is_archive and _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive, whose code is not run: save the weights alone, "
            "torch.save(torch.jit.load(path).state_dict(), ...)."
        )
    try:
        with torch.serialization.safe_globals(_HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)|class ([\w.]+)|global ([\w.]+)", str(error))
        what = next(filter(None, named.groups()), "") if named else ""
        objects = f"Python objects ({what})" if what else "Python objects"
        raise ValueError(
            f"{path} holds {objects} beside tensors, which are not loaded as that would "
            "run code from the file: save the weights alone, torch.save(model.state_dict(), ...)."
        ) from error
    except Exception as error:  # PyTorch has many for a damaged file
        raise ValueError(f"{path} is damaged or no PyTorch checkpoint: get it again.") from error
    if isinstance(content, torch.Tensor) or not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a state dict.")
    return content, {}


def _is_torchscript(path: Path) -> bool:
    """Tell it as PyTorch does, which before 2.6 loads such archives even if asked for weights only."""
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == "constants.pkl" for name in archive.namelist())


def _find_weights(content: Mapping[str, Any], notes: dict[str, Any]) -> StateDict:
    """Return the state dict in a checkpoint's nested dicts; what is beside it goes to `notes`."""
    for key in _CONTAINERS:
        inner = content.get(key)
        if isinstance(inner, Mapping) and (found := _find_weights(inner, notes)):
            notes.update({other: value for other, value in content.items() if other not in _CONTAINERS})
            return found
    tensors = {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and isinstance(value, torch.Tensor)  # an optimizer's are numbered
    }
    notes.update({key: value for key, value in content.items() if key not in tensors})
    return tensors


def _strip(tensors: StateDict, notes: dict[str, Any]) -> Checkpoint:
    """Take away what stands before the model's own names."""
    plain = {
        _WRAPPERS.sub(r"\1", key).replace("..", ".").lstrip("."): value for key, value in tensors.items()
    }
    prefix = _model_prefix(list(plain))
    # The count of `AveragedModel` stands beside its model.
    own = {key: None for key in plain if key.startswith(prefix) and key != "n_averaged"}
    weights = {key.removeprefix(prefix): plain[key] for key in own}
    ignored = [key for key in plain if key not in own]
    notes["beside"] = {key: plain[key] for key in ignored}
    return Checkpoint(weights, notes, ignored, prefix)


# How the state dicts begin that the zoo knows: an SMP model's, a ViT's, a SegFormer's or a notebook's.
_KNOWN_START = re.compile(
    r"(encoder|backbone|segformer|block1\.0|blocks\.0|stages\.0)\.|patch_embed|layers\.0\.weight"
)


def _model_prefix(keys: list[str]) -> str:
    """Return the prefix behind which names begin that the zoo knows; an averaged model's before any other."""
    found: dict[str, int] = {}
    for key in keys:
        parts = key.split(".")
        for depth in range(min(4, len(parts) - 1)):
            prefix = "".join(f"{part}." for part in parts[:depth])
            if _KNOWN_START.match(key[len(prefix) :]):
                found.setdefault(prefix, len(found))
                break
    if not found:
        return ""
    return min(found, key=lambda prefix: (not _AVERAGED.search(prefix), prefix.count("."), found[prefix]))
