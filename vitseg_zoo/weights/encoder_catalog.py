"""Encoders that there are weights for: timm's list of them, as entries of the catalog.

timm and SMP are imported where they are used: importing them registers the zoo's encoders, which import this.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from vitseg_zoo.weights.entry import NVIDIA_LICENSE, WeightsEntry

# ImageNet-1k accuracy of one crop, in percent, of B0 to B5.
_MIT_TOP1 = (70.5, 78.7, 81.6, 83.1, 83.6, 83.8)
_MIT_SOURCE = "Hugging Face's documentation of SegFormer, version 4.30 and before"
_PVT_TOP1 = (70.65, 78.70, 82.06, 83.12, 83.71, 83.76)
_PVT_SOURCE = "timm's results-imagenet.csv, which measured these files at 224 x 224, crop 0.9"
# Of the files, which have the classifier.
_MIT_MEGABYTES = (14, 55, 99, 178, 246, 328)
_PVT_MEGABYTES = (15, 56, 101, 181, 250, 328)

# Of nvidia/mit-b0 to -b5: commit, file, SHA-256; chosen as in the catalog of complete models.
_SAFETENSORS, _PICKLE = ("model.safetensors",), ("pytorch_model.bin",)
_MIT_FILES: tuple[tuple[str, tuple[str, ...], str | None], ...] = (
    (
        "25ce79d97e6d9d509ed12e17cb2eb89b0a83a2dc",
        _SAFETENSORS,
        "3e5ad9cd1dd8ecf8305c23fcdf01ef241f08c7b2dddacb6ec7de5a887188798a",
    ),
    (
        "44575a0572f5374ed1e5b4e46ec8276222f6ffe8",
        _SAFETENSORS,
        "4c19537dff32bbaa876174c371759ac1046c980bbf8096273bb03261429bdce1",
    ),
    (
        "d15ed1f9ae92346f6a6067dbb490a62494ae0d28",
        _SAFETENSORS,
        "b3ad4dd552f9e1b871f46666f39187414133b861e3d07eda016600230f8a1ad6",
    ),
    ("4c2f314b6a213100cb822264a737f39d1ce062b8", _SAFETENSORS, None),
    ("3844ddaa13d9ce98816bacb904688a5284f164af", _PICKLE, None),
    ("8c15ac959fdc3130572f9320d6955cef46046a72", _SAFETENSORS, None),
)

# Licenses in timm's spelling that let anybody use the weights, and those for research alone.
_PERMISSIVE = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
_FOR_RESEARCH = ("-nc", "noncommercial", "amlr")


def encoder_entry(name: str) -> WeightsEntry | None:
    """Make an entry of an encoder's weights.

    Args:
        name: A timm model with a tag, or without for the default tag; or one of SMP's copies of NVIDIA's,
            `"mit_b0.imagenet"`.

    Returns:
        The entry; None if timm knows no such weights.

    Example:
        >>> from vitseg_zoo.weights.encoder_catalog import encoder_entry
        >>> encoder_entry("mit_pvt_b2").license
        'apache-2.0'
    """
    from timm.models import get_pretrained_cfg

    model, _, tag = name.partition(".")
    if tag == "imagenet" and model in _smp_encoders():
        # What SMP loads, at the revision that it pins.
        pinned = _smp_encoders()[model]["pretrained_settings"]["imagenet"]
        original = encoder_entry(f"{model}.nv_in1k")
        places = {"repo_id": pinned["repo_id"], "revision": pinned["revision"]}
        return original and replace(original, name=name, filenames=_SAFETENSORS, sha256=None, **places)
    cfg = get_pretrained_cfg(name)
    return None if cfg is None or not (cfg.hf_hub_id or cfg.url) else entry_of_cfg(cfg)


def entry_of_cfg(cfg: Any) -> WeightsEntry:
    """Make an entry of a `PretrainedCfg` of timm that names a repository or an address."""
    repo_id, _, revision = (cfg.hf_hub_id or "").partition("@")
    is_nvidia = cfg.tag == "nv_in1k"
    entry = WeightsEntry(
        name=f"{cfg.architecture}.{cfg.tag}" if cfg.tag else cfg.architecture,
        kind="encoder",
        architecture=cfg.architecture,
        repo_id=repo_id,
        revision=revision or "main",
        filenames=_filenames(cfg.hf_hub_filename),
        url=None if repo_id else cfg.url or None,
        mean=tuple(cfg.mean),
        std=tuple(cfg.std),
        input_size=tuple(cfg.input_size[1:]),
        license=NVIDIA_LICENSE if is_nvidia else cfg.license or "unknown",
        commercial_use=False if is_nvidia else _allows_commercial_use(cfg.license or ""),
    )
    if cfg.architecture.startswith(("mit_b", "mit_pvt_b")):
        size, is_mit = int(cfg.architecture[-1]), cfg.architecture.startswith("mit_b")
        entry = replace(
            entry,
            training_data="ImageNet-1k",
            megabytes=(_MIT_MEGABYTES if is_mit else _PVT_MEGABYTES)[size],
            metric=f"top-1 {(_MIT_TOP1 if is_mit else _PVT_TOP1)[size]} % on ImageNet-1k val",
            metric_source=_MIT_SOURCE if is_mit else _PVT_SOURCE,
        )
        if is_nvidia and not revision:
            commit, filenames, sha256 = _MIT_FILES[size]
            entry = replace(entry, revision=commit, filenames=filenames, sha256=sha256)
    return entry


@cache
def list_encoder_entries() -> list[WeightsEntry]:
    """List the weights of the zoo's encoders: an entry for each tag that timm knows, and SMP's copies."""
    from timm.models import list_pretrained

    models = {name.removeprefix("vz-") for name in _smp_encoders() if name.startswith("vz-")}
    names = [name for name in list_pretrained() if name.partition(".")[0] in models]
    names += [f"mit_b{size}.imagenet" for size in range(6)]
    return [entry for name in sorted(names) if (entry := encoder_entry(name))]


def _smp_encoders() -> dict[str, Any]:
    from segmentation_models_pytorch.encoders import encoders

    return encoders


def _filenames(filename: str | None) -> tuple[str, ...]:
    """Return the names under which timm looks for weights in a repository, safetensors first."""
    if filename is None:
        return ("model.safetensors", "pytorch_model.bin")
    if filename == "open_clip_pytorch_model.bin":
        return ("open_clip_model.safetensors", filename)
    return (f"{filename[:-4]}.safetensors", filename) if filename.endswith(".bin") else (filename,)


def _allows_commercial_use(license: str) -> bool | None:
    """Say what a license in timm's spelling says; None where it has to be read."""
    if any(part in license for part in _FOR_RESEARCH):
        return False
    return True if license in _PERMISSIVE else None
