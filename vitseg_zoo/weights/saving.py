"""Saves a model as one file that says what it is, or as a folder, and publishes it, both with a model card.

The file is safetensors with a JSON object under the key `vitseg_zoo` of its metadata: the SMP architecture
and its arguments, and what `metadata.METADATA` lists. SMP's own `from_pretrained` reads the folders.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from segmentation_models_pytorch.base import SegmentationModel
from torch import nn

from vitseg_zoo.files import atomic_path
from vitseg_zoo.weights.card import make_model_card
from vitseg_zoo.weights.download_errors import explained_upload
from vitseg_zoo.weights.identify import build_empty
from vitseg_zoo.weights.license import write_notice
from vitseg_zoo.weights.loading import LoadReport, load_with_report, unwrap
from vitseg_zoo.weights.metadata import METADATA, describe_model

_LARGEST_HALF = torch.finfo(torch.float16).max


def save_model(model: SegmentationModel, path: str | Path, half: bool = False, **metadata: Any) -> Path:
    """Save a model as one safetensors file from which `load_model` builds it again.

    Args:
        model: A model of `smp.create_model`, also compiled or in DistributedDataParallel.
        path: The file; replaced in one step if it exists.
        half: Store 32-bit numbers as 16-bit ones, in half the space; they are 32-bit again when loaded.
            Tensors with numbers above 65504 stay as they are.
        metadata: `class_names`, `palette`, `mean`, `std` (of images in [0, 1]), `input_size`, `fit` (see
            `vitseg_zoo.Predictor`), `mode` (SMP's word: `"multiclass"`, `"binary"` or `"multilabel"`),
            `license`, `commercial_use`, `training_data`, `metric`, `metric_source`, `source`, `recipe`,
            `limits`. What `load_model` gave may be passed as it is: what it says of the
            model itself is not used. What a model of `vitseg_zoo.create_model` was loaded with is kept where
            nothing else is given. Numbers may be arrays or tensors.

    Returns:
        The path. Beside NVIDIA's weights lies a file that says what their license asks for, `.LICENSE.txt`.

    Raises:
        ValueError: If some of the metadata is unknown or does not fit the model, the encoder was configured
            with what a file cannot hold, such as a function, or the model's parts were changed since it was
            built (another head, another activation, pruning), so that its file would build another one.
        TypeError: If the model is none of SMP's.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> import segmentation_models_pytorch as smp, vitseg_zoo
        >>> model = smp.Unet("resnet18", encoder_weights=None, classes=2).eval()
        >>> path = f"{tempfile.mkdtemp()}/pets.safetensors"
        >>> path = vitseg_zoo.save_model(model, path, class_names=["pet", "rest"])
        >>> again, metadata = vitseg_zoo.load_model(path)
        >>> metadata["class_names"]
        ['pet', 'rest']
    """
    path, model = Path(path), _inner_model(model)
    described = describe_model(model, metadata)
    _refuse_changed(model, described)
    description = {"format": "pt", "vitseg_zoo": json.dumps(described)}
    weights = {}
    for key, value in model.state_dict().items():
        # Beyond float16's range numbers would become infinite.
        fits = half and value.dtype == torch.float32 and bool((value.abs() <= _LARGEST_HALF).all())
        dtype = torch.float16 if fits else value.dtype
        # A copy of its own: neither shared with another tensor nor in another memory format.
        weights[key] = value.detach().to("cpu", dtype, memory_format=torch.contiguous_format, copy=True)
    try:
        with atomic_path(path) as partial:
            save_file(weights, partial, metadata=description)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}.") from error
    write_notice(path.with_name(f"{path.stem}.LICENSE.txt"), described.get("license"))
    return path


def save_pretrained(model: SegmentationModel, folder: str | Path, **metadata: Any) -> Path:
    """Save a model, its configuration and a model card to a folder for `smp.from_pretrained`.

    Args:
        model: A model of `smp.create_model`.
        folder: Where to; made if need be.
        metadata: See `save_model`.

    Returns:
        The folder.

    Raises:
        ValueError: See `save_model`; also if the model's class is SMP's own and its encoder was configured so
            that `smp.from_pretrained` could not build it.
    """
    folder = Path(folder)
    _write_folder(model, folder, folder.resolve().name, metadata)
    return folder


def push_to_hub(
    model: SegmentationModel,
    repo_id: str,
    private: bool | None = None,
    token: str | None = None,
    **metadata: Any,
) -> str:
    """Publish a model on the Hugging Face Hub as `save_pretrained` writes it.

    Args:
        model: A model of `smp.create_model`.
        repo_id: Repository, made if need be: `"name/model"`.
        private: Make the repository visible to nobody else.
        token: Token with the right to write; that of `hf auth login` or HF_TOKEN by default.
        metadata: See `save_model`.

    Returns:
        Address of the commit.

    Raises:
        ValueError, TypeError: See `save_pretrained`.
        ConnectionError: If there is no network, or the Hub fails.
        PermissionError: If the Hub does not let the token's owner write there.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    with explained_upload(repo_id), tempfile.TemporaryDirectory() as folder:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _write_folder(model, Path(folder), repo_id, metadata)
        return api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Add model").commit_url


def _inner_model(model: nn.Module) -> SegmentationModel:
    model = unwrap(model)
    if not isinstance(model, SegmentationModel):
        raise TypeError(
            f"A {type(model).__name__} cannot be saved so that its file says all: pass a model of "
            "smp.create_model, or save its state_dict()."
        )
    return model


def _refuse_changed(model: SegmentationModel, described: Mapping[str, Any]) -> None:
    """Refuse a model that is no longer the one that its description builds."""
    same = build_empty(described)
    ours, theirs = model.state_dict(), same.state_dict()
    changed = [key for key in {**ours, **theirs} if _shape(ours, key) != _shape(theirs, key)]
    parts, described_parts = dict(model.named_modules()), dict(same.named_modules())
    for name in {**parts, **described_parts}:
        classes = type(parts.get(name)), type(described_parts.get(name))
        # `vitseg_zoo.accelerate` puts a subclass in place, or the class that it derives from.
        if not (issubclass(*classes) or issubclass(*classes[::-1])):
            changed.append(name)
    if changed:
        raise ValueError(
            f"The model is not the {described['architecture']} that its arguments build: {changed[0]} and "
            f"{len(changed) - 1} other parts were changed. Build it with the arguments that make it so, or "
            "save model.state_dict()."
            if len(changed) > 1
            else f"The model is not the {described['architecture']} that its arguments build: {changed[0]} "
            "was changed. Build it with the arguments that make it so, or save model.state_dict()."
        )


def _shape(state_dict: Mapping[str, torch.Tensor], key: str) -> torch.Size | None:
    return state_dict[key].shape if key in state_dict else None


def _write_folder(model: SegmentationModel, folder: Path, where: str, metadata: Mapping[str, Any]) -> None:
    model = _inner_model(model)
    described = describe_model(model, metadata)
    # Rates of dropout are of training alone; SMP's own architectures cannot pass on anything to the encoder.
    lost = [key for key in described.get("encoder_arguments", {}) if not key.endswith("_rate")]
    if lost:
        raise ValueError(
            f"smp.from_pretrained cannot build a {type(model).__name__} whose encoder was configured with "
            f"{', '.join(lost)}: use vitseg_zoo.save_model, whose file load_model builds it from."
        )
    save_model(model, folder / "model.safetensors", **metadata)
    config = {**described["arguments"], "_model_class": type(model).__name__}
    with atomic_path(folder / "config.json") as partial:
        partial.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    with atomic_path(folder / "README.md") as partial:
        make_model_card(described, where, type(model).__name__).save(partial)


def load_model(source: str | Path) -> tuple[SegmentationModel, dict[str, Any]]:
    """Build a model from a file or a folder alone, whatever program wrote it, and load its weights.

    Args:
        source: A file of `save_model`, a folder of `save_pretrained`, a checkpoint of this package's
            training, a foreign checkpoint that is recognized by its keys, or a name of the catalog.

    Returns:
        The model in evaluation mode, and what is known of it: `architecture`, `arguments`, `mean` and `std`
        of images in [0, 1], and where they are known `class_names`, `palette`, `license` and so on.

    Raises:
        ValueError: If the file does not say, and does not show, what model it is of.
        RuntimeError: If the weights do not fit the model.
        OSError: If the file cannot be found or downloaded.
    """
    model, metadata, _ = load_with_report(source)
    return model.eval(), metadata


def convert_file(
    source: str | Path, target: str | Path, **metadata: Any
) -> tuple[LoadReport, dict[str, Any]]:
    """Rewrite what `load_model` takes as a file of `save_model`.

    Args:
        source: See `load_model`.
        target: The file to write.
        metadata: See `save_model`; comes before what the source says.

    Returns:
        What was recognized and left over, and what the new file says. If the source states
        neither origin nor license, `source` is the file's name and format, and the license is unknown.

    Raises:
        ValueError, RuntimeError, OSError: See `load_model`.
    """
    model, known, report = load_with_report(source)
    origin = {"source": f"{Path(source).name} ({report.format})", "license": "unknown"}
    known = origin | known | metadata
    save_model(model, target, **{key: value for key, value in known.items() if key in METADATA})
    return report, known
