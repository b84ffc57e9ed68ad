"""The catalog: every complete model and every encoder that there are weights for.

Complete models are listed here. Encoders are listed by timm (`default_cfgs` of the zoo's and of timm's own
models) and read from there, by `encoder_catalog`. Models that come with the package are described by the
metadata of their own files.
"""

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

from vitseg_zoo.weights.class_names import (
    ADE20K_CLASSES,
    ADE20K_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
)
from vitseg_zoo.weights.entry import NVIDIA_LICENSE, PACKAGED, WeightsEntry
from vitseg_zoo.weights.metadata import current_arguments

# What `vitseg predict` uses where no model is named.
DEFAULT_MODEL = "segformer_b0.pets"

_PACKAGED_SHA256 = {
    "segformer_b0.clothing": "ca95e8a47177cc5b35f5e1e2834e965d3b49a0b020ac3cb5db530e2056ab0fb5",
    "segformer_b0.pets": "40f1b7bbd1e490bc3c6341612eb96b6d12224e0a9beb07f23c80141f5cca9398",
    "vitseg_tiny.pets": "d273657f1ddda2ec4f23fe16b0f74f6029d36d81dc6f81c76f4e17f123c24902",
}

_PAPER = "SegFormer paper, Table 1 (a), https://arxiv.org/abs/2105.15203"
# Of B0 to B5.
_MEGABYTES = (15, 55, 110, 189, 256, 339)
_ADE20K_PARAMETERS = (3.8, 13.7, 27.5, 47.3, 64.1, 84.7)
_CITYSCAPES_PARAMETERS = (3.7, 13.7, 27.4, 47.2, 64.0, 84.6)
# mIoU in percent on the validation part, one scale, of B0 to B5.
_ADE20K_MIOU = (37.4, 42.2, 46.5, 49.4, 50.3, 51.0)
_CITYSCAPES_MIOU = (76.2, 78.5, 81.0, 81.7, 82.3, 82.4)


def _segformer(size: int, host: Literal["nv", "smp"], data: Literal["ade20k", "cityscapes"]) -> WeightsEntry:
    """NVIDIA's SegFormer-B`size`, from its own repositories or from SMP's, which hold the same numbers."""
    ade20k = data == "ade20k"
    side = 1024 if not ade20k else 640 if size == 5 else 512
    if host == "nv":
        repo_id = f"nvidia/segformer-b{size}-finetuned-{'ade' if ade20k else 'cityscapes'}-{side}-{side}"
    else:
        repo_id = f"smp-hub/segformer-b{size}-{side}x{side}-{'ade' if ade20k else 'city'}-160k"
    miou = (_ADE20K_MIOU if ade20k else _CITYSCAPES_MIOU)[size]
    return WeightsEntry(
        name=f"segformer_b{size}.{host}_{data}_{side}",
        kind="model",
        architecture="fusedsegformer",
        arguments={
            "encoder_name": f"vz-mit_b{size}",
            "decoder_segmentation_channels": 256 if size < 2 else 768,
        },
        repo_id=repo_id,
        # Some of NVIDIA's repositories have only the pickle.
        filenames=("model.safetensors", "pytorch_model.bin") if host == "nv" else ("model.safetensors",),
        megabytes=_MEGABYTES[size],
        parameters=(_ADE20K_PARAMETERS if ade20k else _CITYSCAPES_PARAMETERS)[size],
        class_names=ADE20K_CLASSES if ade20k else CITYSCAPES_CLASSES,
        palette=ADE20K_PALETTE if ade20k else CITYSCAPES_PALETTE,
        input_size=(side, side),
        license=NVIDIA_LICENSE,
        commercial_use=False,
        training_data=f"ImageNet-1k, then {'ADE20K' if ade20k else 'Cityscapes'}",
        metric=f"mIoU {miou} % on {'ADE20K' if ade20k else 'Cityscapes'} val, one scale",
        metric_source=_PAPER,
    )


_MODELS = [
    _segformer(size, host, data)
    for host in ("nv", "smp")
    for data in ("ade20k", "cityscapes")
    for size in range(6)
]


def list_entries(filter: str = "*", kind: Literal["model", "encoder"] | None = None) -> list[WeightsEntry]:
    """Lists what there are weights for.

    Args:
        filter: Wildcard that the name has to match.
        kind: `"model"` or `"encoder"`; both by default.

    Returns:
        The entries: packaged models, other models, encoders.

    Example:
        >>> from vitseg_zoo.weights.catalog import list_entries
        >>> [entry.name for entry in list_entries("segformer_b0.nv*")]
        ['segformer_b0.nv_ade20k_512', 'segformer_b0.nv_cityscapes_1024']
    """
    entries: list[WeightsEntry] = []
    if kind != "encoder":
        entries += [*_packaged(), *_MODELS]
    if kind != "model":
        from vitseg_zoo.weights.encoder_catalog import list_encoder_entries  # timm takes a while

        entries += list_encoder_entries()
    return [entry for entry in entries if fnmatch.fnmatch(entry.name, filter or "*")]


def get_entry(name: str) -> WeightsEntry:
    """Finds weights by name.

    Args:
        name: Name of an entry; without a tag, the first one of that model, or timm's default of an encoder.

    Returns:
        The entry.

    Raises:
        ValueError: If there is none of that name; says which come close.

    Example:
        >>> from vitseg_zoo.weights.catalog import get_entry
        >>> get_entry("segformer_b2.nv_ade20k_512").license
        'NVIDIA Source Code License for SegFormer (research and evaluation only)'
    """
    for entry in (*_packaged(), *_MODELS):
        if name in (entry.name, entry.name.partition(".")[0]):
            return entry
    from vitseg_zoo.weights.encoder_catalog import encoder_entry, list_encoder_entries

    for entry in list_encoder_entries():
        if name == entry.name:
            return entry
        if name == entry.architecture:
            return encoder_entry(name) or entry
    import difflib

    known = [entry.name for entry in list_entries()]
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    hint = f": did you mean {', '.join(close)}?" if close else "."
    raise ValueError(f"There are no weights named {name!r}{hint} `vitseg list` shows all names.")


def _packaged() -> Iterator[WeightsEntry]:
    """Models whose files are in the package; their metadata say what they are."""
    folder = Path(str(PACKAGED))
    # The default comes first, as a name without a tag means the first of its model.
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != DEFAULT_MODEL, path)):
        yield replace(entry_of_file(path), sha256=_PACKAGED_SHA256.get(path.stem))


def entry_of_file(path: Path) -> WeightsEntry:
    """Makes an entry of a file of `vitseg_zoo.save_model`, from what it says of itself.

    Args:
        path: The file; its name without the ending becomes the entry's.

    Raises:
        ValueError: If it is no such file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            metadata = json.loads((file.metadata() or {}).get("vitseg_zoo", "{}"))
            shapes = [file.get_slice(key).get_shape() for key in file.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is no complete safetensors file ({str(error).rstrip('.')}); of another checkpoint, "
            "`vitseg convert` makes one."
        ) from error
    if not metadata:
        raise ValueError(f"{path} does not say what model it is of: `vitseg convert` writes files that do.")
    known = {key: metadata[key] for key in WeightsEntry.__dataclass_fields__ if key in metadata}
    for key in ("class_names", "mean", "std", "input_size"):
        if known.get(key) is not None:
            known[key] = tuple(known[key])
    if "architecture" in known:
        known["arguments"] = current_arguments(known["architecture"], known.get("arguments", {}))
    known["origin"] = metadata.get("source", "")
    known["palette"] = tuple(tuple(color) for color in metadata.get("palette", ()))
    known |= {"name": path.stem, "kind": "model", "url": path.resolve().as_uri()}
    known |= {"megabytes": path.stat().st_size / 1e6, "parameters": sum(map(math.prod, shapes)) / 1e6}
    return WeightsEntry(**known)
