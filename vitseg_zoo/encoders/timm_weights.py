"""Weights of timm's ViTs for the zoo's encoders: SMP's table of them, and the conversion while loading.

SMP takes weights and normalisation from a repository of the Hugging Face Hub with a `config.json` that has
`mean` and `std` at its top, and a `model.safetensors` of the encoder's own keys. timm's repositories have
another form, and not all have that file. So each entry of `pretrained_settings`, once it is used, puts two
small files of SMP's form into the local cache of the Hub, under `vitseg-zoo/timm`: the normalisation, which
timm knows without network, and the tag's name in place of the weights. The encoder reads the name, and timm
loads the weights, as `timm.create_model` would.
"""

import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import save
from timm.models import adapt_input_conv, create_model, get_pretrained_cfg
from torch import nn

StateDict = dict[str, torch.Tensor]

_REPO_ID = "vitseg-zoo/timm"
_POINTER = "vitseg_zoo.timm_model"

# What a timm checkpoint may have beyond an encoder's model: classifiers, and blocks behind the last one used.
_BEYOND_ENCODER = re.compile(r"^(head|head_dist|fc_norm|attn_pool|norm|neck|pre_logits|blocks\.\d+)\.")


class TimmWeights(dict):
    """An entry of SMP's `pretrained_settings` that is filled in at its first use.

    Args:
        name: Name of the timm model, with the tag of its weights, or without for the default tag.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __missing__(self, key: str) -> str:
        if key not in ("repo_id", "revision"):
            raise KeyError(key)
        self.update(repo_id=_REPO_ID, revision=_publish(self.name))
        return self[key]


def _publish(name: str) -> str:
    """Writes what SMP reads about a timm model into the Hub's local cache; returns its revision."""
    cfg = get_pretrained_cfg(name)
    config = {
        "timm_model": f"{cfg.architecture}.{cfg.tag}",
        "input_space": "RGB",
        "input_range": [0, 1],
        "mean": list(cfg.mean),
        "std": list(cfg.std),
    }
    content = json.dumps(config).encode()
    revision = hashlib.sha1(content).hexdigest()  # as long as a commit's, which the Hub's cache asks for
    storage = repo_folder_name(repo_id=_REPO_ID, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE) / storage / "snapshots" / revision
    pointer = torch.tensor(list(config["timm_model"].encode()), dtype=torch.uint8)
    for file, data in {"config.json": content, "model.safetensors": save({_POINTER: pointer})}.items():
        if not (folder / file).exists():
            folder.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=folder)
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
            os.replace(temporary, folder / file)
    return revision


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
    if _POINTER in own:
        own = create_model(bytes(own[_POINTER].tolist()).decode(), pretrained=True).state_dict()
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
    weights = _timm_filter(model)(weights, model)
    if not prefix:
        weights = adapt_in_channels(weights, model)
    state_dict.update({f"{prefix}model.{key}": value for key, value in weights.items()})
    state_dict.update({f"{prefix}{key}": value for key, value in others.items()})


def _timm_filter(model: nn.Module) -> Callable[[StateDict, nn.Module], StateDict]:
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
