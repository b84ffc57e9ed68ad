"""Encoders that there are weights for: timm's list of them, as entries of the catalog.

timm and SMP are imported where they are used: importing them registers the zoo's encoders, which import this.
"""

from dataclasses import replace
from functools import cache
from typing import Any

from vitseg_zoo.weights.entry import NVIDIA_LICENSE, WeightsEntry

# ImageNet-1k accuracy of one crop, in percent, of B0 to B5.
_MIT_TOP1 = (70.5, 78.7, 81.6, 83.1, 83.6, 83.8)
_MIT_SOURCE = "Hugging Face's documentation of SegFormer"
_PVT_TOP1 = (70.5, 78.7, 82.0, 83.1, 83.6, 83.8)
_PVT_SOURCE = "PVTv2's repository, https://github.com/whai362/PVT"
# Of the files, which have the classifier.
_MIT_MEGABYTES = (14, 55, 99, 178, 245, 328)
_PVT_MEGABYTES = (15, 56, 102, 181, 250, 328)

# Licenses in timm's spelling that let anybody use the weights, and those for research alone.
_PERMISSIVE = {"apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0"}
_FOR_RESEARCH = ("-nc", "noncommercial", "amlr")


def encoder_entry(name: str) -> WeightsEntry | None:
    """Makes an entry of an encoder's weights.

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
        return original and replace(original, name=name, filenames=("model.safetensors",), **places)
    cfg = get_pretrained_cfg(name)
    return None if cfg is None or not (cfg.hf_hub_id or cfg.url) else entry_of_cfg(cfg)


def entry_of_cfg(cfg: Any) -> WeightsEntry:
    """Makes an entry of a `PretrainedCfg` of timm that names a repository or an address."""
    repo_id, _, revision = (cfg.hf_hub_id or "").partition("@")
    is_nvidia = cfg.tag == "nv_in1k"
    entry = WeightsEntry(
        name=f"{cfg.architecture}.{cfg.tag}" if cfg.tag else cfg.architecture,
        kind="encoder",
        architecture=cfg.architecture,
        repo_id=repo_id or None,
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
    return entry


@cache
def list_encoder_entries() -> list[WeightsEntry]:
    """Lists the weights of the zoo's encoders: an entry for each tag that timm knows, and SMP's copies."""
    from timm.models import list_pretrained

    models = {name.removeprefix("vz-") for name in _smp_encoders() if name.startswith("vz-")}
    names = [name for name in list_pretrained() if name.partition(".")[0] in models]
    names += [f"mit_b{size}.imagenet" for size in range(6)]
    return [entry for name in sorted(names) if (entry := encoder_entry(name))]


def _smp_encoders() -> dict[str, Any]:
    from segmentation_models_pytorch.encoders import encoders

    return encoders


def _filenames(filename: str | None) -> tuple[str, ...]:
    """The names under which timm looks for weights in a repository, safetensors first."""
    if filename is None:
        return ("model.safetensors", "pytorch_model.bin")
    if filename == "open_clip_pytorch_model.bin":
        return ("open_clip_model.safetensors", filename)
    return (f"{filename[:-4]}.safetensors", filename) if filename.endswith(".bin") else (filename,)


def _allows_commercial_use(license: str) -> bool | None:
    """What a license in timm's spelling says; None where it has to be read."""
    if any(part in license for part in _FOR_RESEARCH):
        return False
    return True if license in _PERMISSIVE else None
