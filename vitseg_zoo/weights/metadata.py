"""What a file says of its model: the SMP architecture and its arguments, and what `METADATA` lists."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from segmentation_models_pytorch.base import SegmentationModel

from vitseg_zoo import __version__
from vitseg_zoo.weights.entry import WeightsEntry

# What may be said of a model; the meaning is that of the catalog's fields.
METADATA = (
    *("class_names", "palette", "mean", "std", "input_size", "fit"),
    *("license", "commercial_use", "training_data", "metric", "metric_source", "source", "recipe", "limits"),
)

# How an image may come to a model; `vitseg_zoo.Predictor` says what each means.
FITS = ("squeeze", "shorter_side", "tiles", "whole")


def metadata_of(entry: WeightsEntry) -> dict[str, Any]:
    """Return a catalog entry's part that is said of a model."""
    described = {key: getattr(entry, key) for key in METADATA if hasattr(entry, key)}
    return described | {"source": entry.origin or entry.source}


def describe_model(model: SegmentationModel, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Say what a file says of a model: its SMP architecture, that one's arguments, and metadata."""
    metadata = {key: _plain(value) for key, value in metadata.items()}
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
    classes = arguments.get("classes")
    for key in ("class_names", "palette"):
        if key in described and not isinstance(described[key], list | tuple):
            raise ValueError(f"{key} should be a list, one entry for each class, got {described[key]!r}.")
        if key in described and len(described[key]) != classes:
            raise ValueError(f"{key} has {len(described[key])} values, but the model has {classes} classes.")
    _check_numbers(described, arguments.get("in_channels", 3))
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
    size = described.get("input_size", (1, 1))
    if not (_are(size, (2,), int) and min(size) > 0):
        raise ValueError(f"input_size should be (height, width) in pixels, got {size!r}.")
    for color in described.get("palette", ()):
        if not (_are(color, (3,), int) and min(color) >= 0 and max(color) <= 255):
            raise ValueError(f"palette should hold RGB colors of whole numbers from 0 to 255, got {color!r}.")


def _are(values: Any, lengths: Sequence[int], kind: type) -> bool:
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
