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

from vitseg_zoo.class_names import (
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
    "vitseg_tiny.pets": "4a8e004e1bd8d6eb809dc9dd48c4bd24ef9e512edd0faa58b642ee92c8d35b23",
}

_PAPER = "SegFormer paper, Table 1 (a), https://arxiv.org/abs/2105.15203"
# Of B0 to B5.
_MEGABYTES = (15, 55, 110, 189, 256, 339)
_ADE20K_PARAMETERS = (3.8, 13.7, 27.5, 47.3, 64.1, 84.7)
_CITYSCAPES_PARAMETERS = (3.7, 13.7, 27.4, 47.2, 64.0, 84.6)
# mIoU in percent on the validation part, one scale, of B0 to B5.
_ADE20K_MIOU = (37.4, 42.2, 46.5, 49.4, 50.3, 51.0)
_CITYSCAPES_MIOU = (76.2, 78.5, 81.0, 81.7, 82.3, 82.4)

# Commits (or, where only its number is known, pull requests) of the repositories, and SHA-256s of the first
# file that they have. Preferred is the commit with which the Hub's own converter added safetensors, mostly in
# a pull request that was never merged: `main` has the pickle alone, but for B0 on ADE20K. The SHA-256s are
# those that other projects pin, several of them independently equal.
_SAFETENSORS, _PICKLE = ("model.safetensors",), ("pytorch_model.bin",)
_EITHER = _SAFETENSORS + _PICKLE
_NVIDIA_FILES: dict[tuple[str, int], tuple[str, tuple[str, ...], str | None]] = {
    ("ade", 0): (
        "489d5cd81a0b59fab9b7ea758d3548ebe99677da",
        _SAFETENSORS,
        "6ae39addd01de6b1b8bde2cf677d43a5cd733424b8d186de3f95d1c51fee23f9",
    ),
    ("ade", 1): ("refs/pr/2", _EITHER, None),
    ("ade", 2): (
        "de01bae28967510f9ddd496c60a969357195400c",
        _PICKLE,
        "187ca07bea003a5717c63d04ea90b07f33cd033c0ebf44b4b89fce5070d6c8f3",
    ),
    ("ade", 3): ("d49ce4e74ab8bbcd9e7886e52d716add0c8f5136", _SAFETENSORS, None),
    ("ade", 4): ("2641fd1e2893964d8d473d8cf65a906cb0bff071", _PICKLE, None),
    ("ade", 5): (
        "f4c8e8f5b581b6bc8ed5208e4bd139d95f65610f",
        _SAFETENSORS,
        "3f451be733bc5f69227886ef4a472a373f3440ad11b59b3b82cf50f500855b62",
    ),
    ("cityscapes", 0): (
        "21b3847fae21ddee674abd31129307b6a1235bd9",
        _PICKLE,
        "027ed78d8ff9c535df5a66361c92b9673cca3cb923cbeb8c5802385b6b93194c",
    ),
    ("cityscapes", 1): ("ec86afeba68e656629ccf47e0c8d2902f964917b", _EITHER, None),
    ("cityscapes", 2): ("d633b2072669ca68d8f8e309de9b52bfdbf6bf72", _PICKLE, None),
    ("cityscapes", 4): ("refs/pr/4", _EITHER, None),
    ("cityscapes", 5): ("b6e4c4143a549ac9cf16ee2ea222ab01959d9e04", _SAFETENSORS, None),
}
# SMP's copies are safetensors on `main`; of these the commit is known.
_SMP_COMMITS = {("city", 1): "cec10a9a8cb3226e2892b253e95ebb1c16416e24"}

_ADE20K_COLORS = "the colors of road (6) and skyscraper (48) are the same, as in ADE20K's own palette"


def _segformer(
    size: int, host: Literal["nv", "smp"], data: Literal["ade20k", "cityscapes"], crop: tuple[int, int]
) -> WeightsEntry:
    """List NVIDIA's SegFormer-B`size`, from its own repositories or from SMP's, which hold the same numbers.

    `crop` is the height and width of the crops in training, which name the repository.
    """
    ade20k = data == "ade20k"
    height, width = crop
    main_crop = height == width != 768  # NVIDIA trained B0 for Cityscapes with three others as well
    if host == "nv":
        part = "ade" if ade20k else "cityscapes"
        repo_id = f"nvidia/segformer-b{size}-finetuned-{part}-{height}-{width}"
        known = _NVIDIA_FILES.get((part, size)) if main_crop else None
        revision, filenames, sha256 = known or ("main", _EITHER, None)
    else:
        part = "ade" if ade20k else "city"
        repo_id = f"smp-hub/segformer-b{size}-{height}x{width}-{part}-160k"
        revision, filenames, sha256 = _SMP_COMMITS.get((part, size), "main"), _SAFETENSORS, None
    if ade20k:
        metric = f"mIoU {_ADE20K_MIOU[size]} % on ADE20K val, one scale, shorter side {height}"
    else:
        metric = (
            f"mIoU {_CITYSCAPES_MIOU[size]} % on Cityscapes val, one scale, sliding windows of 1024 x 1024"
        )
    return WeightsEntry(
        name=f"segformer_b{size}.{host}_{data}_{height if height == width else f'{height}x{width}'}",
        kind="model",
        architecture="fusedsegformer",
        arguments={
            "encoder_name": f"vz-mit_b{size}",
            "decoder_segmentation_channels": 256 if size < 2 else 768,
            # NVIDIA and Hugging Face measure so; SMP's copies are run as SMP runs them.
            "align_corners": host == "smp",
        },
        repo_id=repo_id,
        revision=revision,
        filenames=filenames,
        sha256=sha256,
        megabytes=_MEGABYTES[size],
        parameters=(_ADE20K_PARAMETERS if ade20k else _CITYSCAPES_PARAMETERS)[size],
        class_names=ADE20K_CLASSES if ade20k else CITYSCAPES_CLASSES,
        palette=ADE20K_PALETTE if ade20k else CITYSCAPES_PALETTE,
        input_size=crop,
        fit="shorter_side" if ade20k else "tiles",  # as it was measured
        license=NVIDIA_LICENSE,
        commercial_use=False,
        training_data=f"ImageNet-1k, then {'ADE20K' if ade20k else 'Cityscapes'}",
        limits=_ADE20K_COLORS if ade20k else "",
        metric=metric if main_crop else "mIoU not stated for this crop",
        metric_source=_PAPER if main_crop else "the repository, whose card prints no score",
    )


_MODELS = [
    _segformer(size, host, data, crop)
    for host in ("nv", "smp")
    for data in ("ade20k", "cityscapes")
    for size in range(6)
    for crop in (
        [(640, 640) if size == 5 else (512, 512)]
        if data == "ade20k"
        else [(1024, 1024)] + ([(768, 768), (640, 1280), (512, 1024)] if size == 0 else [])
    )
]


def list_entries(filter: str = "*", kind: Literal["model", "encoder"] | None = None) -> list[WeightsEntry]:
    """List what there are weights for.

    Args:
        filter: Wildcard that the name has to match.
        kind: `"model"` or `"encoder"`; both by default.

    Returns:
        The entries: packaged models, other models, encoders.

    Example:
        >>> from vitseg_zoo.weights.catalog import list_entries
        >>> [entry.name for entry in list_entries("segformer_b0.nv*1024")]
        ['segformer_b0.nv_cityscapes_1024', 'segformer_b0.nv_cityscapes_512x1024']
    """
    entries: list[WeightsEntry] = []
    if kind != "encoder":
        entries += [*_packaged(), *_MODELS]
    if kind != "model":
        from vitseg_zoo.weights.encoder_catalog import list_encoder_entries  # timm takes a while

        entries += list_encoder_entries()
    return [entry for entry in entries if fnmatch.fnmatch(entry.name, filter or "*")]


def get_entry(name: str) -> WeightsEntry:
    """Find weights by name.

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
    """List the models whose files are in the package; their metadata say what they are."""
    folder = Path(str(PACKAGED))
    # The default comes first, as a name without a tag means the first of its model.
    for path in sorted(folder.glob("*.safetensors"), key=lambda path: (path.stem != DEFAULT_MODEL, path)):
        yield replace(entry_of_file(path), sha256=_PACKAGED_SHA256.get(path.stem))


def entry_of_file(path: Path) -> WeightsEntry:
    """Make an entry of a file of `vitseg_zoo.save_model`, from what it says of itself.

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
    from vitseg_zoo.weights.metadata import check_description  # SMP takes a while

    if not isinstance(metadata, dict):
        raise ValueError(f"{path} does not say in a known form what model it is of.")
    check_description(metadata, str(path))
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
