"""Two small files in the Hub's local cache that lead SMP to weights it cannot load by itself.

SMP takes an encoder's weights and normalization from a repository of the Hugging Face Hub: a `config.json`
with `mean` and `std` at its top, and a `model.safetensors` of the encoder's own keys. timm's repositories
have another form, and not all have that file. So SMP is pointed to a repository that exists only in the local
cache, `vitseg-zoo/timm`. Its `config.json` holds the normalization, its `model.safetensors` only the name of
the weights. The encoder reads the name, and the weights are fetched like all others.

A revision is the hash of the contents: the files are written where they are absent, are never changed, and
are found offline, and in a cache that cannot be written but has them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.file_download import repo_folder_name
from safetensors.torch import save

REPO_ID = "vitseg-zoo/timm"
_KEY = "vitseg_zoo.timm_model"


def write_pointer(name: str, mean: Sequence[float], std: Sequence[float]) -> str:
    """Puts the files into the Hub's cache, where they are not there.

    Args:
        name: Name of the weights, as timm or the catalog have it.
        mean: Of images in [0, 1], for each channel.
        std: Likewise.

    Returns:
        The revision of `REPO_ID` that has them.

    Raises:
        OSError: If the cache cannot be written.
    """
    config = {"timm_model": name, "input_space": "RGB", "input_range": [0, 1]}
    content = json.dumps(config | {"mean": list(mean), "std": list(std)}).encode()
    revision = hashlib.sha1(content).hexdigest()  # as long as a commit's, which the Hub's cache asks for
    storage = repo_folder_name(repo_id=REPO_ID, repo_type="model")
    folder = Path(constants.HF_HUB_CACHE) / storage / "snapshots" / revision
    pointer = torch.tensor(list(name.encode()), dtype=torch.uint8)
    for filename, data in {"config.json": content, "model.safetensors": save({_KEY: pointer})}.items():
        path = folder / filename
        if path.exists():
            continue
        partial = folder / f"{filename}.{os.getpid()}.partial"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial.write_bytes(data)
            os.replace(partial, path)
        except OSError as error:
            raise type(error)(
                error.errno,
                f"SMP asks for {name} in the Hub's cache, and {constants.HF_HUB_CACHE} cannot be written "
                f"({error.strerror}): set HF_HOME to a folder of your own, or run this once as its owner.",
            ) from error
    return revision


def read_pointer(state_dict: Mapping[str, torch.Tensor]) -> str | None:
    """The name of the weights that a state dict stands for; None if it is no pointer."""
    pointer = state_dict.get(_KEY)
    return None if pointer is None else bytes(pointer.tolist()).decode()
