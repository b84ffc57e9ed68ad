"""Models by name: lists what there is, and builds complete ones."""

import fnmatch
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import segmentation_models_pytorch as smp
from segmentation_models_pytorch.base import SegmentationModel

from vitseg_zoo.registry import load_architectures, load_encoders
from vitseg_zoo.weights.catalog import get_entry, list_entries
from vitseg_zoo.weights.checkpoint import read_checkpoint
from vitseg_zoo.weights.download import fetch
from vitseg_zoo.weights.license import say_license
from vitseg_zoo.weights.loading import load_checkpoint
from vitseg_zoo.weights.metadata import metadata_of


def list_models(
    filter: str | Sequence[str] = "",
    kind: Literal["encoder", "architecture", "model"] | None = None,
) -> list[str]:
    """List what the zoo has, sorted by name.

    Args:
        filter: Wildcard or wildcards that a name has to match, as in `timm.list_models`; all by default.
        kind: `"encoder"` for SMP encoders (`vz-` and the name of the timm model), `"architecture"` for names
            that `smp.create_model` takes, `"model"` for complete models with weights, names that
            `vitseg_zoo.create_model` takes; all by default.

    Returns:
        The names.

    Raises:
        ValueError: If there is no such kind.

    Example:
        >>> import vitseg_zoo
        >>> vitseg_zoo.list_models("vz-vitseg_tiny*")
        ['vz-vitseg_tiny_patch16_128', 'vz-vitseg_tiny_patch8_128']
    """
    listings = {
        "encoder": lambda: [name for table in load_encoders() for name in table],
        "architecture": lambda: [cls.__name__.lower() for cls in load_architectures()],
        "model": lambda: [entry.name for entry in list_entries(kind="model")],
    }
    if kind is not None and kind not in listings:
        raise ValueError(f"Unknown kind {kind!r} of model, choose one of {list(listings)}.")
    names = [name for key, listing in listings.items() if kind in (None, key) for name in listing()]
    patterns = [filter] if isinstance(filter, str) else filter
    return sorted(
        name for name in names if any(fnmatch.fnmatch(name, pattern or "*") for pattern in patterns)
    )


def create_model(
    name: str, pretrained: bool = False, classes: int | None = None, in_channels: int = 3, **kwargs: Any
) -> SegmentationModel:
    """Build a complete segmentation model of the catalog.

    Args:
        name: Name of the model, such as `"segformer_b2.nv_ade20k_512"`;
            `vitseg_zoo.list_models(kind="model")` lists all. Without a tag, the first one of that model.
        pretrained: Download and load its weights; otherwise they are random.
        classes: Number of output channels; by default as trained. For another number the last layer is new,
            and one line says so.
        in_channels: Channels of the image; for another number than 3 the first layer's weights are adapted.
        kwargs: Passed to `smp.create_model`, such as `activation`.

    Returns:
        An SMP model in training mode. With `pretrained`, its attribute `pretrained_cfg` says what the weights
        come with: `class_names`, `mean`, `std`, `license` and so on.

    Raises:
        ValueError: If there is no model of that name.
        OSError: If the weights cannot be had; see `vitseg_zoo.weights.download.fetch`.

    Example:
        >>> import vitseg_zoo
        >>> model = vitseg_zoo.create_model("segformer_b0.nv_ade20k_512", classes=5)
        >>> sum(p.numel() for p in model.parameters())
        3715429
    """
    entry = get_entry(name)
    if entry.kind != "model":
        tag = entry.name.partition(".")[2]
        raise ValueError(
            f"{name} is an encoder: use it in a model, "
            f"smp.create_model(..., encoder_name='vz-{entry.architecture}', encoder_weights={tag!r})."
        )
    arguments = {"classes": len(entry.class_names), **entry.arguments, **kwargs, "encoder_weights": None}
    trained_classes, trained_channels = arguments["classes"], arguments.pop("in_channels", 3)
    arguments["classes"] = trained_classes if classes is None else classes
    model = smp.create_model(
        entry.architecture, in_channels=trained_channels if pretrained else in_channels, **arguments
    )
    if not pretrained:
        return model
    say_license(entry.name, entry.commercial_use, entry.license)
    as_trained = arguments["classes"] == trained_classes
    report = load_checkpoint(model, read_checkpoint(fetch(entry)), as_trained, entry.name)
    others = [key for key in report.mismatched if not key.startswith("segmentation_head.")]
    if report.missing or report.unexpected or others:  # more than the last layer
        raise RuntimeError(f"{entry.name} does not fit its own model, which should not be: {report}.")
    if in_channels != trained_channels:
        model.encoder.set_in_channels(in_channels, pretrained=True)
        model.config["in_channels"] = in_channels
    model.pretrained_cfg = metadata_of(entry)
    for key in ("mean", "std"):
        model.pretrained_cfg[key] = _for_channels(model.pretrained_cfg[key], in_channels)
    if not as_trained:
        model.pretrained_cfg |= {"class_names": (), "palette": (), "metric": "", "metric_source": ""}
    return model


def _for_channels(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Fit means or deviations to other channels as weights are: averaged for one, else repeated."""
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(itertools.islice(itertools.cycle(values), channels))
