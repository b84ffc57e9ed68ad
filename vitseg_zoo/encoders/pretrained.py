"""Weights of timm's models for the zoo's encoders: SMP's table of them, and the conversion while loading.

All are fetched by `vitseg_zoo.weights.download`: checked, resumed, and found in the folder that the variable
VITSEG_ZOO_WEIGHTS names.
"""

import re
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from timm.models import adapt_input_conv, create_model, get_pretrained_cfg, resolve_pretrained_cfg
from torch import nn

from vitseg_zoo.weights.checkpoint import read_checkpoint
from vitseg_zoo.weights.download import fetch
from vitseg_zoo.weights.encoder_catalog import encoder_entry, entry_of_cfg
from vitseg_zoo.weights.license import say_license
from vitseg_zoo.weights.smp_pointer import REPO_ID, read_pointer, write_pointer

StateDict = dict[str, torch.Tensor]

# What a timm checkpoint may have beyond an encoder's model: classifiers, and blocks behind the last one used.
_BEYOND_ENCODER = re.compile(r"^(head|head_dist|fc_norm|attn_pool|norm|neck|pre_logits|blocks\.\d+)\.")


class TimmWeights(dict):
    """An entry of SMP's `pretrained_settings` that leads to weights of timm; see `smp_pointer`.

    Args:
        name: Name of the timm model, with the tag of its weights, or without for the default tag; or a name
            of the catalog that ends in `.imagenet`.
    """

    def __init__(self, name: str) -> None:
        super().__init__(repo_id=REPO_ID)
        self.name = name

    def __missing__(self, key: str) -> str:
        if key != "revision":
            raise KeyError(key)
        model, _, tag = self.name.partition(".")
        cfg = get_pretrained_cfg(model if tag == "imagenet" else self.name)
        name = self.name if tag else f"{cfg.architecture}.{cfg.tag}"
        return write_pointer(name, cfg.mean, cfg.std)  # again at each use: the cache may have been emptied


def with_checked_weights(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Lets timm load a model's pretrained weights from a file that was fetched and checked.

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
    if cfg.source or cfg.file or cfg.state_dict or not (cfg.hf_hub_id or cfg.url):
        return dict(arguments)
    entry = entry_of_cfg(cfg)
    say_license(entry.name, entry.commercial_use, entry.license)
    path = fetch(entry, arguments.get("cache_dir"))
    return {**arguments, "pretrained_cfg_overlay": {**overlay, "file": str(path), "custom_load": False}}


def fetch_pointed(name: str) -> StateDict:
    """The weights that a pointer names, as their file has them; errors are those of `fetch`."""
    entry = encoder_entry(name)
    say_license(entry.name, entry.commercial_use, entry.license)
    return read_checkpoint(fetch(entry)).weights


def convert_while_loading(encoder: nn.Module, state_dict: StateDict, prefix: str, *args: Any) -> None:
    """Rewrites a state dict, in place, into that of an encoder that keeps a timm ViT as `model`.

    Taken are: the encoder's own; the timm model's, with or without classifier; and, where the encoder is
    loaded by itself, a whole SMP model's, or the pointer that `TimmWeights` gives. Position embeddings and
    patches of another size are resampled as timm does, and the input layers fitted to the number of image
    channels.
    """
    own = {
        key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)
    }
    if name := read_pointer(own):
        own = create_model(name, **with_checked_weights(name, {"pretrained": True})).state_dict()
    elif not prefix and any(key.startswith("encoder.") for key in own):
        own = {
            key.removeprefix("encoder."): value for key, value in own.items() if key.startswith("encoder.")
        }
    model: nn.Module = encoder.model
    if any(key.startswith("model.") for key in own):
        weights = {
            key.removeprefix("model."): value for key, value in own.items() if key.startswith("model.")
        }
        others = {key: value for key, value in own.items() if not key.startswith("model.")}
    else:
        kept = model.state_dict().keys()
        weights = {key: value for key, value in own.items() if key in kept or not _BEYOND_ENCODER.match(key)}
        # timm knows nothing of what the encoder adds to its model: that stays as it is.
        others = {key: value for key, value in encoder.state_dict().items() if not key.startswith("model.")}
    weights = timm_filter(model)(weights, model)
    if not prefix:
        weights = adapt_in_channels(weights, model)
    state_dict.update({f"{prefix}model.{key}": value for key, value in weights.items()})
    state_dict.update({f"{prefix}{key}": value for key, value in others.items()})


def timm_filter(model: nn.Module) -> Callable[[StateDict, nn.Module], StateDict]:
    """The function with which timm's module of a model converts and resamples checkpoints."""
    module = sys.modules[type(model).__module__]
    return getattr(module, "checkpoint_filter_fn", lambda state_dict, model: state_dict)


def adapt_in_channels(state_dict: StateDict, model: nn.Module) -> StateDict:
    """Fits the weights of a timm model's input layers to the number of image channels that `model` takes.

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
