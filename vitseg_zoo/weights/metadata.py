"""What a file says of its model: the SMP architecture and its arguments, and what `METADATA` lists."""

import json
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel

from vitseg_zoo import __version__
from vitseg_zoo.weights.entry import WeightsEntry

# What may be said of a model; the meaning is that of the catalog's fields.
METADATA = (
    *("class_names", "palette", "mean", "std", "input_size", "fit", "mode"),
    *("license", "commercial_use", "training_data", "metric", "metric_source", "source", "recipe", "limits"),
)

# What else `load_model` gives.
OF_THE_MODEL = ("architecture", "arguments", "encoder_arguments", "vitseg_zoo_version", "assumed")

# Arguments of timm's and SMP's that open files or the network, or build no model for segmentation.
_NO_DESCRIPTION = re.compile(r"pretrained|checkpoint|cache|file|url|hub|path$|weights$|scriptable|exportable")
_LARGEST = {"depth": 256, "blocks": 256, "layers": 256}
_LARGEST_NUMBER = 65536

# How an image may come to a model; `vitseg_zoo.Predictor` says what each means.
FITS = ("squeeze", "shorter_side", "tiles", "whole")

# What a model's logits are, in SMP's words: one class a pixel, one class or none, or each class by itself.
MODES = ("multiclass", "binary", "multilabel")


# What stands before the last name of an absolute path: the author's own folders.
_ABSOLUTE_FOLDER = re.compile(r"(?<![\w:/\\.])(?:~|[A-Za-z]:)?[/\\](?:[^\s/\\'\"]+[/\\])+")


def without_folders(text: str) -> str:
    """Leave out what stands before the last name of absolute paths: the author's own folders.

    Example:
        >>> without_folders("python train.py --data /home/me/cats; see https://example.org/cats/")
        'python train.py --data cats; see https://example.org/cats/'
    """
    return _ABSOLUTE_FOLDER.sub("", text)


def metadata_of(entry: WeightsEntry) -> dict[str, Any]:
    """Return a catalog entry's part that is said of a model."""
    described = {key: getattr(entry, key) for key in METADATA if hasattr(entry, key)}
    return described | {"source": entry.origin or entry.source}


def describe_model(model: SegmentationModel, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a file says of a model: its SMP architecture, that one's arguments, and metadata."""
    # What `load_model` says of the model itself is read from the model instead.
    metadata = {key: _plain(value) for key, value in metadata.items() if key not in OF_THE_MODEL}
    if isinstance(metadata.get("recipe"), str):  # a command line
        metadata["recipe"] = without_folders(metadata["recipe"])
    unknown = sorted(set(metadata) - set(METADATA))
    if unknown:
        raise ValueError(f"Unknown metadata {', '.join(unknown)}: known are {', '.join(METADATA)}.")
    arguments = {key: value for key, value in model.config.items() if not key.startswith("_")}
    arguments["encoder_weights"] = None  # the file has them
    channels, configured = encoder_arguments(model)
    arguments |= channels
    if getattr(model, "passes_arguments_to_encoder", False):  # the zoo's own architectures
        arguments |= configured
        configured = {}
    kept = {key: value for key, value in getattr(model, "pretrained_cfg", {}).items() if key in METADATA}
    described = {
        "architecture": type(model).__name__.lower(),
        "arguments": arguments,
        **({"encoder_arguments": configured} if configured else {}),
        **{key: value for key, value in (kept | metadata).items() if value not in (None, (), [], "")},
        "vitseg_zoo_version": __version__,
    }
    check_metadata(described)
    return described


def current_arguments(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments in a file the names that they have today.

    Version 0.1 wrote `encoder_depth` for what is `encoder_blocks` now, a number of a plain ViT's blocks.

    Example:
        >>> current_arguments("vitseg", {"encoder_name": "vz-vitseg_tiny_patch16_128", "encoder_depth": 6})
        {'encoder_name': 'vz-vitseg_tiny_patch16_128', 'encoder_depth': None, 'encoder_blocks': 6}
    """
    is_vit = architecture in ("vitseg", "eomt", "segmenter") and not str(
        arguments.get("encoder_name")
    ).startswith("vz-mit_")
    if not is_vit or "encoder_blocks" in arguments or "encoder_depth" not in arguments:
        return dict(arguments)
    return {**arguments, "encoder_depth": None, "encoder_blocks": arguments["encoder_depth"]}


def encoder_arguments(model: SegmentationModel) -> tuple[dict[str, Any], dict[str, Any]]:
    """Say what an encoder of the zoo is today, whatever the model was built with.

    Returns:
        `in_channels`, and the arguments of the timm model that were given beside its name. Both are empty for
        other encoders.

    Raises:
        ValueError: If such an argument is none that JSON can hold.
    """
    if not isinstance(getattr(model.encoder, "configured", None), Mapping):
        return {}, {}
    configured = {key: _plain(value) for key, value in model.encoder.configured.items()}
    for key, value in configured.items():
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(
                f"The encoder was configured with {key}={value!r}, which a file cannot hold: save "
                "model.state_dict(), and build the model in your code before you load it."
            ) from error
    return {"in_channels": model.encoder.out_channels[0]}, configured


def check_description(described: Mapping[str, Any], name: str) -> None:
    """Refuse a description of a model that a file should not have: the same on reading as on saving.

    Args:
        described: `architecture`, `arguments`, perhaps `encoder_arguments`, and `METADATA`.
        name: What to call the file in messages.

    Raises:
        ValueError: If it names what is no architecture or encoder of SMP, has arguments that do not describe
            one (`pretrained`, `checkpoint_path`, ...) or are out of all measure, or metadata that do not fit.
    """
    from segmentation_models_pytorch import MODEL_ARCHITECTURES_MAPPING

    architecture = described.get("architecture")
    if not isinstance(architecture, str) or architecture not in MODEL_ARCHITECTURES_MAPPING:
        raise ValueError(f"{name} names no architecture of SMP or the zoo: {_short(architecture)}.")
    for key in ("arguments", "encoder_arguments"):
        arguments = described.get(key, {})
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{name}: {key} should be a dictionary, got {_short(arguments)}.")
        _check_arguments(arguments, name)
    encoder = described["arguments"].get("encoder_name", "resnet34")
    if not isinstance(encoder, str) or re.search(r"[:/\\\s]", encoder):  # `tu-hf-hub:...` would be fetched
        raise ValueError(f"{name} names no encoder of SMP: {_short(encoder)}.")
    try:
        check_metadata(described)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _check_arguments(arguments: Mapping[str, Any], name: str, depth: int = 0) -> None:
    for key, value in arguments.items():
        if not isinstance(key, str) or (_NO_DESCRIPTION.search(key) and key != "encoder_weights"):
            raise ValueError(f"{name}: {_short(key)} is no argument that describes a model.")
        for item in value if isinstance(value, list | tuple) else [value]:
            largest = next((most for part, most in _LARGEST.items() if part in key), _LARGEST_NUMBER)
            if isinstance(item, Mapping) and depth < 3:
                _check_arguments(item, name, depth + 1)
            elif not (item is None or isinstance(item, bool | str | int | float)):
                raise ValueError(f"{name}: {key} should be a number, a text or a list, got {_short(item)}.")
            elif isinstance(item, int | float) and not abs(item) <= largest:  # NaN as well
                raise ValueError(f"{name}: {key} should be at most {largest}, got {item}.")
        if isinstance(value, list | tuple) and len(value) > 64:
            raise ValueError(f"{name}: {key} has {len(value)} values, more than any model takes.")


def check_metadata(described: Mapping[str, Any]) -> None:
    """Refuse metadata over which only a later prediction, or a reader, would stumble.

    Raises:
        ValueError: If something is of another type, length or range than `save_model` describes.
    """
    # What is not known may be left empty.
    described = {
        key: value
        for key, value in described.items()
        if not (value is None or (isinstance(value, str | list | tuple) and not value))
    }
    arguments = described.get("arguments", {})
    classes = arguments.get("classes")
    channels = arguments.get("in_channels", 3)
    for key, least in (("classes", 1), ("in_channels", 1)):
        value = arguments.get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{key} should be a whole number of at least {least}, got {_short(value)}.")
    for key in ("class_names", "palette"):
        if key in described and not isinstance(described[key], list | tuple):
            raise ValueError(
                f"{key} should be a list, one entry for each class, got {_short(described[key])}."
            )
        if key in described and classes is not None and len(described[key]) != classes:
            raise ValueError(f"{key} has {len(described[key])} values, but the model has {classes} classes.")
    for class_name in described.get("class_names", ()):
        if not isinstance(class_name, str):
            raise ValueError(f"class_names should be texts, got {_short(class_name)}.")
    for key in METADATA[5:]:
        value = described.get(key)
        if key == "commercial_use" and not (value is None or isinstance(value, bool)):
            raise ValueError(f"commercial_use should be True, False or None, got {_short(value)}.")
        if key != "commercial_use" and isinstance(value, Mapping | list | tuple | int | float):
            raise ValueError(f"{key} should be a text, got {_short(value)}.")
    _check_numbers(described, channels)


def _short(value: Any) -> str:
    """Say what stands in a message for a value from a file."""
    return reprlib.repr(value)


def _check_numbers(described: Mapping[str, Any], channels: int) -> None:
    """Refuse what only a later prediction would stumble over."""
    for key, lowest in (("mean", -math.inf), ("std", 0.0)):
        if key in described and not (
            _are(described[key], (1, channels), int | float)
            and all(lowest < value < math.inf for value in described[key])
        ):
            numbers = "finite numbers" if key == "mean" else "finite numbers above 0"
            raise ValueError(
                f"{key} should be {channels} {numbers}, one for each channel of images in [0, 1], "
                f"got {described[key]!r}."
            )
    if described.get("fit", "whole") not in FITS:
        raise ValueError(f"fit should be one of {', '.join(FITS)}, got {described['fit']!r}.")
    if described.get("mode", MODES[0]) not in MODES:
        raise ValueError(f"mode should be one of {', '.join(MODES)}, got {described['mode']!r}.")
    classes = described.get("arguments", {}).get("classes")
    if classes is not None and described.get("mode") == ("binary" if classes > 1 else "multiclass"):
        raise ValueError(f"mode {described['mode']} does not go with a model of {classes} classes.")
    size = described.get("input_size", (1, 1))
    if not (_are(size, (2,), int) and min(size) > 0):
        raise ValueError(f"input_size should be (height, width) in pixels, got {size!r}.")
    for color in described.get("palette", ()):
        if not (_are(color, (3,), int) and min(color) >= 0 and max(color) <= 255):
            raise ValueError(f"palette should hold RGB colors of whole numbers from 0 to 255, got {color!r}.")


def _are(values: Any, lengths: Sequence[int], kind: Any) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) in lengths
        and all(isinstance(value, kind) and not isinstance(value, bool) for value in values)
    )


def _plain(value: Any) -> Any:
    """Turn arrays and tensors into the lists and numbers that JSON has."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tolist() if hasattr(value, "tolist") else value
