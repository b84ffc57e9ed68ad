"""The catalog: every complete model and every encoder that there are weights for.

Complete models are listed here. Encoders are listed by timm (`default_cfgs` of the zoo's and of timm's own
models) and read from there, by `encoder_catalog`. Models that come with the package are described by the
metadata of their own files.
"""

import fnmatch
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from vitseg_zoo.weights.class_names import (
    ADE20K_CLASSES,
    ADE20K_PALETTE,
    CITYSCAPES_CLASSES,
    CITYSCAPES_PALETTE,
    Palette,
)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# What `vitseg predict` uses where no model is named.
DEFAULT_MODEL = "segformer_b0.pets"

# Where the package keeps its own files; the file's name is the entry's.
PACKAGED = files("vitseg_zoo") / "weights" / "files"
_PACKAGED_SHA256 = {
    "segformer_b0.clothing": "ca95e8a47177cc5b35f5e1e2834e965d3b49a0b020ac3cb5db530e2056ab0fb5",
    "segformer_b0.pets": "40f1b7bbd1e490bc3c6341612eb96b6d12224e0a9beb07f23c80141f5cca9398",
    "vitseg_tiny.pets": "de632e9699b6c6fa91aef959666fcba307c8681a2c6fe5926e2008bb45787813",
}


@dataclass(frozen=True, kw_only=True)
class WeightsEntry:
    """Weights by name: what they build, where they are, and what is known of them."""

    name: str  # model and tag, "segformer_b2.nv_ade20k_512"
    kind: Literal["model", "encoder"]  # a complete segmentation model, or an encoder
    architecture: str  # of a model, as `smp.create_model` takes it; of an encoder, its name in timm
    arguments: dict[str, Any] = field(default_factory=dict)  # what else `smp.create_model` is given

    repo_id: str | None = None  # repository on the Hugging Face Hub
    revision: str = "main"  # its commit, tag or branch; what a branch holds is fixed when it is downloaded
    filenames: tuple[str, ...] = ("model.safetensors",)  # the first of these that the repository has
    url: str | None = None  # instead of a repository: https:, or file: (of a packaged file, too)
    # Of the file, in hexadecimal digits. None: not pinned; the download is compared with what the Hub states.
    sha256: str | None = None
    megabytes: float | None = None  # of the file, about; the exact size is the Hub's to say
    parameters: float | None = None  # of a model, in millions

    class_names: tuple[str, ...] = ()  # in the order of the model's outputs
    palette: Palette = ()  # RGB color of each class, 0 to 255
    mean: tuple[float, ...] = IMAGENET_MEAN  # of the images in [0, 1] that the model takes
    std: tuple[float, ...] = IMAGENET_STD  # likewise
    input_size: tuple[int, int] | None = (
        None  # height and width of the crops in training; others are taken, too
    )
    fit: str | None = None  # how an image comes to the model: see `vitseg_zoo.Predictor`

    license: str = "unknown"  # of the weights, not of the code: SPDX identifier or name
    commercial_use: bool | None = None  # whether it allows it; None: read the license
    training_data: str = ""  # what the weights were trained on
    metric: str = ""  # as published, in one phrase
    metric_source: str = ""  # who published it
    recipe: str = ""  # how it was trained, of models of our own
    limits: str = ""  # what it is not good for
    origin: str = ""  # what a file of the user's or the package's own was made from, as it says itself

    @property
    def file_format(self) -> str:
        """`"safetensors"`, or `"pickle"`, read with `torch.load(weights_only=True)`, which runs no code."""
        names = [self.url] if self.url else self.filenames
        formats = ["safetensors" if name.endswith(".safetensors") else "pickle" for name in names]
        return " or ".join(dict.fromkeys(formats))

    @property
    def source(self) -> str:
        """Where the weights come from, as one address."""
        if self.url is not None and self.url.startswith(Path(str(PACKAGED)).as_uri()):
            return "in the package"
        return self.url or f"https://huggingface.co/{self.repo_id}/tree/{self.revision}"


NVIDIA_LICENSE = "NVIDIA Source Code License for SegFormer (research and evaluation only)"
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
        fit="shorter_side" if ade20k else "tiles",  # as it was measured
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
    known["origin"] = metadata.get("source", "")
    known["palette"] = tuple(tuple(color) for color in metadata.get("palette", ()))
    known |= {"name": path.stem, "kind": "model", "url": path.resolve().as_uri()}
    known |= {"megabytes": path.stat().st_size / 1e6, "parameters": sum(map(math.prod, shapes)) / 1e6}
    return WeightsEntry(**known)
