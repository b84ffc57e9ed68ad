"""Finds out which model a checkpoint is of, from its notes or its weights' shapes, and builds it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.base import SegmentationModel
from torch.overrides import TorchFunctionMode

from vitseg_zoo.weights.checkpoint import Checkpoint
from vitseg_zoo.weights.entry import IMAGENET_MEAN, IMAGENET_STD
from vitseg_zoo.weights.formats import StateDict, recognize
from vitseg_zoo.weights.metadata import check_description, current_arguments

# Blocks of MiT's stages -> size, for stages of 64, 128, 320 and 512 channels; B0 has half of them.
_MIT_SIZES = {(2, 2, 2, 2): 1, (3, 4, 6, 3): 2, (3, 4, 18, 3): 3, (3, 8, 27, 3): 4, (3, 6, 40, 3): 5}
_VITSEG_SIZES = {192: "tiny", 384: "small", 768: "base"}
_VIT_SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large"}


def build_model(
    metadata: Mapping[str, Any], weights: Mapping[str, torch.Tensor], name: str
) -> SegmentationModel:
    """Build the SMP model that metadata describe, with random weights.

    Args:
        metadata: `architecture` and `arguments`, and `encoder_arguments` for `model.encoder.configure`.
        weights: What will be loaded: a description of a much larger model is refused before any memory is
            taken for it.
        name: What to call the file in messages.

    Returns:
        The model.

    Raises:
        ValueError: If there is no such architecture or encoder, or an argument does not fit it.
    """
    check_description(metadata, name)
    needed = sum(value.numel() for value in build_empty(metadata).state_dict().values())
    present = sum(value.numel() for value in weights.values())
    if needed > 2 * present + 1_000_000:  # an unused head apart, as of a model without classifier
        raise ValueError(f"{name} describes a model of {needed:,} numbers, but holds {present:,}.")
    return _build(metadata)


def build_empty(metadata: Mapping[str, Any]) -> SegmentationModel:
    """Build the model that metadata describe without memory for its weights, on the device "meta"."""
    with torch.device("meta"), _NumbersOnCPU():
        return _build(metadata)


class _NumbersOnCPU(TorchFunctionMode):
    """Leaves `torch.linspace`, whose numbers SMP reads for its rates of stochastic depth, with values."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.linspace:
            kwargs = {"device": "cpu", **(kwargs or {})}
        return func(*args, **(kwargs or {}))


def _build(metadata: Mapping[str, Any]) -> SegmentationModel:
    arguments = {**metadata["arguments"], "encoder_weights": None}
    try:
        model = smp.create_model(metadata["architecture"], **arguments)
        if "encoder_arguments" in metadata:
            model.encoder.configure(**metadata["encoder_arguments"])
        return model
    except (KeyError, TypeError, AttributeError, AssertionError, RuntimeError, IndexError) as error:
        # SMP would list hundreds of encoders.
        reason = str(error.args[0] if error.args else error).partition(", supported encoders")[0]
        raise ValueError(
            f"A {metadata['architecture']} with {arguments} cannot be built: {reason}."
        ) from error


def describe_checkpoint(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Find out which model a checkpoint is of.

    Args:
        checkpoint: What was read.
        path: Its file; a `config.json` beside it is read.

    Returns:
        Metadata in the form of `save_model`.

    Raises:
        ValueError: If neither the file nor one beside it says what the model is, and the weights do not show
            it.
    """
    try:
        described = _describe(checkpoint, path)
        described["arguments"] = current_arguments(described["architecture"], described["arguments"])
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} does not say in a known form what model it is of ({type(error).__name__}: {error}): "
            "build the model and call vitseg_zoo.load_weights(model, path)."
        ) from error
    check_description(described, str(path))
    return described


def _describe(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    notes = checkpoint.notes
    if "vitseg_zoo" in notes.get("metadata", {}):
        return _own_metadata(notes["metadata"]["vitseg_zoo"], path)
    hyper_parameters = notes.get("hyper_parameters", {})
    if {"arch", "encoder_name"} <= hyper_parameters.keys():
        return _from_training(hyper_parameters, checkpoint, path)
    config, preprocessing = _json_beside(path, "config.json"), _json_beside(path, "preprocessor_config.json")
    if "_model_class" in config:
        described = {
            "architecture": config.pop("_model_class").lower(),
            "arguments": {key: value for key, value in config.items() if not key.startswith("_")},
        }
    else:
        described = _from_shapes(checkpoint.weights, path)
    described |= _segmenter_normalization(path) if described["architecture"] == "segmenter" else {}
    usual = {
        "mean": preprocessing.get("image_mean", IMAGENET_MEAN),
        "std": preprocessing.get("image_std", IMAGENET_STD),
    }
    channels = described["arguments"].get("in_channels", 3)
    usual = {key: values for key, values in usual.items() if len(values) in (1, channels)}
    known = recognize(checkpoint.weights)
    is_known = preprocessing or (known is not None and known.name == "SegFormer of NVIDIA")
    assumed = [] if is_known else [key for key in usual if key not in described]
    described = usual | described | ({"assumed": assumed} if assumed else {})
    return described | _class_names(notes, config)


def _own_metadata(text: str, path: Path) -> dict[str, Any]:
    """Say what `save_model` wrote, or a program that writes files like it."""
    try:
        described = json.loads(text)
        is_whole = isinstance(described["architecture"], str) and isinstance(described["arguments"], dict)
    except (ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise ValueError(
            f"{path}: its metadata `vitseg_zoo` should be JSON with `architecture` and `arguments` of the "
            "model: write the file with vitseg_zoo.save_model."
        )
    return described


def _json_beside(path: Path, name: str) -> dict[str, Any]:
    beside = path.with_name(name)
    try:
        return json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{beside} is not JSON: {error}.") from error


def _segmenter_normalization(path: Path) -> dict[str, Any]:
    """Say what the `variant.yml` says that Segmenter's authors put beside a checkpoint."""
    beside = path.with_name("variant.yml")
    if not beside.is_file():
        return {}
    import yaml

    variant = yaml.safe_load(beside.read_text())
    is_deit = variant["dataset_kwargs"]["normalization"] == "deit"
    return {"mean": IMAGENET_MEAN, "std": IMAGENET_STD} if is_deit else {}


def _from_training(hyper_parameters: Mapping[str, Any], checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """Return a checkpoint of this package's Lightning module, or of one like that of SMP's examples."""
    names = hyper_parameters.get("class_names") or ()
    classes = len(names) or hyper_parameters.get("out_classes") or hyper_parameters.get("classes")
    if not classes:
        raise ValueError(f"{path} does not say how many classes its model has.")
    described = {
        "architecture": hyper_parameters["arch"].lower(),
        "arguments": {
            "encoder_name": hyper_parameters["encoder_name"],
            "in_channels": hyper_parameters.get("in_channels", 3),
            "classes": classes,
            **(hyper_parameters.get("model_args") or {}),
        },
        **{
            key: list(hyper_parameters[key])
            for key in ("class_names", "palette")
            if hyper_parameters.get(key)
        },
        **({"mode": hyper_parameters["mode"]} if hyper_parameters.get("mode") else {}),
    }
    size = hyper_parameters.get("image_size")
    if size is not None:
        described["input_size"] = [size, size] if isinstance(size, int) else list(size)
    for key in ("mean", "std"):
        if key in checkpoint.notes["beside"]:  # the module's own buffers
            described[key] = checkpoint.notes["beside"][key].flatten().tolist()
    return described


def _class_names(notes: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Find names and colors of the classes in mmsegmentation's notes or Hugging Face's configuration."""
    meta = notes.get("meta")
    found = {}
    if isinstance(meta, Mapping):
        if meta.get("CLASSES"):
            found["class_names"] = list(meta["CLASSES"])
        if meta.get("PALETTE") is not None:
            found["palette"] = [[int(value) for value in color] for color in meta["PALETTE"]]
    elif config.get("id2label"):
        labels = {int(index): name for index, name in config["id2label"].items()}
        found["class_names"] = [labels[index] for index in sorted(labels)]
    return found


def _from_shapes(weights: StateDict, path: Path) -> dict[str, Any]:
    known = recognize(weights)
    if known is not None and known.is_model:
        converted = known.convert(weights)
        if "SegFormer" in known.name:
            return _segformer(converted)
        if "ViT-seg" in known.name:
            return _vitseg(converted)
        if "Segmenter" in known.name:
            return _segmenter(converted)
        if "SegNet" in known.name:
            return _segnet(converted)
    if known is None:
        raise ValueError(
            f"{path}: weights of an unknown format, that begin with {', '.join(list(weights)[:3])}."
        )
    raise ValueError(
        f"{path}: {known.name}, and nothing says "
        + (
            "which architecture: build the model and call vitseg_zoo.load_weights(model, path), or put the "
            "config.json of `save_pretrained` beside the file."
            if known.is_model
            else "which decoder: this is an encoder alone, for vitseg_zoo.load_weights(model.encoder, path)."
        )
    )


def _segformer(weights: StateDict) -> dict[str, Any]:
    first, second, third, fourth = (
        len({key.split(".")[5] for key in weights if key.startswith(f"encoder.model.stages.{stage}.blocks.")})
        for stage in range(4)
    )
    blocks = (first, second, third, fourth)
    width = weights["encoder.model.patch_embed.proj.weight"].shape[0]
    size = 0 if width == 32 and blocks == (2, 2, 2, 2) else _MIT_SIZES.get(blocks)
    if size is None or width != (64 if size else 32):
        raise ValueError(
            f"There is no SegFormer with {list(blocks)} blocks and {width} channels in its first stage."
        )
    head = weights["segmentation_head.0.weight"]
    return {
        "architecture": "fusedsegformer",
        "arguments": {
            "encoder_name": f"vz-mit_b{size}",
            "decoder_segmentation_channels": head.shape[1],
            "in_channels": weights["encoder.model.patch_embed.proj.weight"].shape[1],
            "classes": head.shape[0],
        },
    }


def _vitseg(weights: StateDict) -> dict[str, Any]:
    width, channels, side, _ = weights["encoder.model.patch_embed.proj.weight"].shape
    if width not in _VITSEG_SIZES or side not in (8, 16):
        raise ValueError(
            f"There is no ViT-seg with {width} channels and patches of {side}: build the model and call "
            "vitseg_zoo.load_weights(model, path)."
        )
    patches = weights["encoder.model.pos_embed"].shape[1]
    return {
        "architecture": "vitseg",
        "arguments": {
            "encoder_name": f"vz-vitseg_{_VITSEG_SIZES[width]}_patch{side}_128",
            "in_channels": channels,
            "classes": weights["segmentation_head.0.weight"].shape[0] // side**2,
            "img_size": round(patches**0.5) * side,
        },
        "mean": [0.0] * channels,  # the model's first layer normalizes
        "std": [1.0] * channels,
    }


def _segmenter(weights: StateDict) -> dict[str, Any]:
    width, channels, side, _ = weights["encoder.model.patch_embed.proj.weight"].shape
    if width not in _VIT_SIZES or side not in (16, 32):
        raise ValueError(f"There is no Segmenter with {width} channels and patches of {side}.")
    is_mask = "decoder.class_tokens" in weights
    classes = weights["decoder.class_tokens"].shape[1] if is_mask else weights["decoder.weight"].shape[0]
    patches = weights["encoder.model.pos_embed"].shape[1] - 1  # without the class token
    blocks = {key.split(".")[2] for key in weights if key.startswith("decoder.blocks.")}
    return {
        "architecture": "segmenter",
        "arguments": {
            "encoder_name": f"vz-vit_{_VIT_SIZES[width]}_patch{side}_384",
            "decoder_head": "mask" if is_mask else "linear",
            **({"decoder_depth": len(blocks)} if is_mask else {}),
            "in_channels": channels,
            "classes": classes,
            "img_size": round(patches**0.5) * side,
        },
        "mean": [0.5] * channels,  # of the ViTs that the authors begin with
        "std": [0.5] * channels,
    }


def _segnet(weights: StateDict) -> dict[str, Any]:
    channels = len(weights["encoder.input_norm.weight"])
    classes = len(list(weights.values())[-1])
    first = weights["encoder.blocks.0.0.weight"]
    return {
        "architecture": "segnet"
        if first.shape[1] == channels and first.shape[0] != channels
        else "segnetdsc",
        "arguments": {"in_channels": channels, "classes": classes},
        "mean": [0.0] * channels,  # the model's first layer normalizes
        "std": [1.0] * channels,
    }
