"""The one door from encoders to weights: how timm and SMP come to pretrained ones, and what converts them.

All are fetched by `vitseg_zoo.weights.download`: checked, resumed, and found in the folder that the variable
VITSEG_ZOO_WEIGHTS names.

SMP takes an encoder's weights and normalization from a repository of the Hugging Face Hub: a `config.json`
with `mean` and `std` at its top, and a `model.safetensors` of the encoder's own keys. timm's repositories
have another form, and not all have that file. So SMP is led to a pointer: a repository that exists only in
the Hub's local cache. Its `config.json` holds the normalization, its `model.safetensors` only the name of the
weights. The encoder reads the name while it loads (`resolve_pointer`).
"""

import hashlib
import json
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import save_file
from timm.models import adapt_input_conv, get_pretrained_cfg, load_state_dict, resolve_pretrained_cfg
from torch import nn

from vitseg_zoo.files import atomic_path
from vitseg_zoo.terminal import printable
from vitseg_zoo.weights.download import fetch
from vitseg_zoo.weights.encoder_catalog import encoder_entry, entry_of_cfg
from vitseg_zoo.weights.entry import WeightsEntry
from vitseg_zoo.weights.formats import left_out
from vitseg_zoo.weights.license import say_license

_logger = logging.getLogger("vitseg_zoo")

StateDict = dict[str, torch.Tensor]

# In the local cache alone. Nobody can register it: https://huggingface.co/api/ is the Hub's own interface, so
# that there is no user of that name.
POINTER_REPO_ID = "api/vitseg-zoo-timm"
_POINTER_KEY = "vitseg_zoo.timm_model"

# Ends the name of a model without weights. SMP's own examples ask for `"imagenet"`, mean and deviation of it.
UNTRAINED = ".untrained"

# What a timm checkpoint may have beyond an encoder's model: classifiers, and blocks behind the last one used.
_BEYOND_ENCODER = re.compile(r"^(head|head_dist|fc_norm|attn_pool|norm|neck|pre_logits|blocks\.\d+)\.")


class TimmWeights(dict):
    """An entry of SMP's `pretrained_settings` that leads to weights of timm.

    Args:
        name: Name of the timm model, with the tag of its weights, or without for the default tag; or a name
            of the catalog that ends in `.imagenet`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(repo_id=POINTER_REPO_ID)
        self.name = name

    def __missing__(self, key: str) -> str:
        if key != "revision":
            raise KeyError(key)
        model, _, tag = self.name.partition(".")
        cfg = get_pretrained_cfg(model if tag == "imagenet" else self.name)
        name = self.name if tag else f"{cfg.architecture}.{cfg.tag}"
        return write_pointer(name, cfg.mean, cfg.std)  # again at each use: the cache may have been emptied


def write_pointer(name: str, mean: Sequence[float], std: Sequence[float]) -> str:
    """Put a pointer to weights into the Hub's cache, where it is not there.

    A revision is the hash of the contents: the files are written where they are absent, are never changed,
    and are found offline, and in a cache that cannot be written but has them.

    Args:
        name: Name of the weights, as timm or the catalog have it.
        mean: Of images in [0, 1], for each channel.
        std: Likewise.

    Returns:
        The revision of `POINTER_REPO_ID` that has them.

    Raises:
        OSError: If the cache cannot be written.
    """
    config = {"timm_model": name, "input_space": "RGB", "input_range": [0, 1]}
    content = json.dumps(config | {"mean": list(mean), "std": list(std)})
    # As long as a commit's, which the Hub's cache asks for.
    revision = hashlib.sha1(content.encode()).hexdigest()
    storage = repo_folder_name(repo_id=POINTER_REPO_ID, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE) / storage / "snapshots" / revision
    try:
        if not (path := folder / "config.json").exists():
            with atomic_path(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
        if not (path := folder / "model.safetensors").exists():
            with atomic_path(path) as temporary:
                save_file({_POINTER_KEY: torch.tensor(list(name.encode()), dtype=torch.uint8)}, temporary)
    except OSError as error:
        raise type(error)(
            error.errno,
            f"SMP asks for {name} in the Hub's cache, and {constants.HF_HUB_CACHE} cannot be written "
            f"({error.strerror}): set HF_HOME to a folder of your own, or run this once as its owner.",
        ) from error
    return revision


def resolve_pointer(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    """Give the weights that a pointer names, as their file has them; another state dict comes back as it is.

    The article's models have none: an empty state dict stands for what the encoder has.

    Raises:
        OSError: If the weights cannot be had; see `vitseg_zoo.weights.download.fetch`.
    """
    if set(state_dict) != {_POINTER_KEY}:
        return dict(state_dict)
    name = bytes(state_dict[_POINTER_KEY].tolist()).decode()
    if name.endswith(UNTRAINED):
        _say_untrained(name.removesuffix(UNTRAINED))
        return {}
    entry = encoder_entry(name)
    # A model of the user's own may name a local file instead.
    return load_state_dict(str(_fetch(entry) if entry else get_pretrained_cfg(name).file))


@cache
def _say_untrained(model: str) -> None:
    """Log, once for a model, that what was asked for is random weights."""
    _logger.warning("%s has no pretrained weights: it starts from random ones.", model)


def with_checked_weights(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Let timm load a model's pretrained weights from a file that was fetched and checked.

    Args:
        name: Name of the timm model, with or without tag.
        arguments: Arguments of `timm.create_model`, or of the function that makes the model.

    Returns:
        The arguments; where weights are to be loaded that timm would download, with their file.

    Raises:
        OSError: If the weights cannot be had; see `vitseg_zoo.weights.download.fetch`.
    """
    overlay = arguments.get("pretrained_cfg_overlay") or {}
    cfg = resolve_pretrained_cfg(name, arguments.get("pretrained_cfg"), overlay)
    if arguments.get("pretrained") and f".{cfg.tag}" == UNTRAINED:
        _say_untrained(cfg.architecture)
        return {**arguments, "pretrained": False}
    if cfg.source or cfg.file or cfg.state_dict or not (cfg.hf_hub_id or cfg.url):
        return dict(arguments)
    path = _fetch(entry_of_cfg(cfg), arguments.get("cache_dir"))
    return {**arguments, "pretrained_cfg_overlay": {**overlay, "file": str(path), "custom_load": False}}


def _fetch(entry: WeightsEntry, cache_dir: str | Path | None = None) -> Path:
    say_license(entry.name, entry.commercial_use, entry.license)
    return fetch(entry, cache_dir)


def convert_while_loading(
    encoder: nn.Module, state_dict: StateDict, prefix: str, metadata: dict[str, Any], *args: Any
) -> None:
    """Rewrite a state dict, in place, into that of an encoder that keeps a timm ViT as `model`.

    Taken are: the encoder's own; the timm model's, with or without classifier; and, where the encoder is
    loaded by itself, a whole SMP model's, or the pointer that `TimmWeights` gives. Position embeddings and
    patches of another size are resampled as timm does, and the input layers fitted to the number of image
    channels. What the timm model has no place for is listed, see `note_left_out`.
    """
    own = {
        key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)
    }
    own = resolve_pointer(own) or encoder.state_dict()
    outer = "encoder." if not prefix and any(key.startswith("encoder.") for key in own) else ""
    if outer:
        own = {key.removeprefix(outer): value for key, value in own.items() if key.startswith(outer)}
    model: nn.Module = encoder.model
    if any(key.startswith("model.") for key in own):
        weights = {
            key.removeprefix("model."): value for key, value in own.items() if key.startswith("model.")
        }
        before, within, weights = weights, f"{prefix}model.", timm_filter(model)(weights, model)
        others = {key: value for key, value in own.items() if not key.startswith("model.")}
    else:
        # Before timm's conversion, which looks for the module of each key, and behind it, which renames some.
        before, within = own, f"{prefix}{outer}"
        weights = _without_rest(timm_filter(model)(_without_rest(own, model), model), model)
        # timm knows nothing of what the encoder adds to its model: that stays as it is.
        others = {key: value for key, value in encoder.state_dict().items() if not key.startswith("model.")}
    note_left_out(before, weights, within, metadata)
    if not prefix:
        weights = adapt_in_channels(weights, model)
    state_dict.update({f"{prefix}model.{key}": value for key, value in weights.items()})
    state_dict.update({f"{prefix}{key}": value for key, value in others.items()})


def note_left_out(before: StateDict, after: StateDict, prefix: str, metadata: dict[str, Any]) -> None:
    """List the tensors of a file that a timm model has no place for, in the log and for a report.

    Args:
        before: The tensors of the file.
        after: Those that the model is given.
        prefix: What stands before these names in the state dict.
        metadata: What PyTorch passes to hooks of the state dict's `_metadata`; `left_out` gets the names.
    """
    if names := [f"{prefix}{key}" for key in left_out(before, after)]:
        metadata.setdefault("left_out", []).extend(names)
        _logger.info("the encoder has no place for %s", ", ".join(map(printable, names)))


def _without_rest(weights: StateDict, model: nn.Module) -> StateDict:
    """Leave out what a timm model of the same name has beyond `model`, which was made shorter."""
    parts = {part[0] for key in model.state_dict() if (part := _BEYOND_ENCODER.match(key))}
    return {
        key: value
        for key, value in weights.items()
        if (part := _BEYOND_ENCODER.match(key)) is None or part[0] in parts
    }


def timm_filter(model: nn.Module) -> Callable[[StateDict, nn.Module], StateDict]:
    """Give the function with which timm's module of a model converts and resamples checkpoints."""
    module = sys.modules[type(model).__module__]
    filter_fn: Any = getattr(module, "checkpoint_filter_fn", lambda state_dict, model: state_dict)
    if "adapt_layer_scale" in signature(filter_fn).parameters:  # DeiT-III's names, which timm asks for by it
        filter_fn = partial(filter_fn, adapt_layer_scale=True)
    return filter_fn


def adapt_in_channels(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Fit the weights of a timm model's input layers to the number of image channels that `model` takes.

    The first convolution is adapted as timm does it (weights summed for one channel, repeated and scaled for
    more); a norm on the image itself repeats its channels.
    """
    adapted = dict(state_dict)
    for key, target in model.state_dict().items():
        weight = state_dict.get(key)
        if weight is None or weight.shape == target.shape:
            continue
        if weight.ndim == 4 and weight.shape[0] == target.shape[0] and weight.shape[2:] == target.shape[2:]:
            adapted[key] = adapt_input_conv(target.shape[1], weight, base_chans=weight.shape[1])
        elif ".input_norm." in f".{key}":
            adapted[key] = weight.repeat(-(-target.shape[0] // weight.shape[0]))[: target.shape[0]]
    return adapted
