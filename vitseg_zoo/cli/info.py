"""`vitseg info NAME`: all that is known of a model, an encoder, an architecture or a file."""

import argparse
from dataclasses import asdict
from typing import Any

from vitseg_zoo.terminal import say

_LABELS = {
    "name": "name",
    "kind": "kind",
    "architecture": "architecture",
    "arguments": "arguments",
    "parameters": "parameters (millions)",
    "source": "weights",
    "origin": "made from",
    "filenames": "file",
    "file_format": "format",
    "megabytes": "size (MB, about)",
    "sha256": "SHA-256",
    "class_names": "classes",
    "palette": "colors",
    "mean": "mean",
    "std": "std",
    "input_size": "trained at",
    "mode": "mode",
    "license": "license",
    "commercial_use": "commercial use",
    "training_data": "trained on",
    "recipe": "recipe",
    "metric": "result",
    "metric_source": "result from",
    "limits": "limits",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", help="name of a model, an encoder or an architecture, or a .safetensors file")


def run(args: argparse.Namespace) -> int:
    """Print what is known, one fact a line."""
    from pathlib import Path

    from vitseg_zoo.models import list_models
    from vitseg_zoo.registry import timm_name
    from vitseg_zoo.weights.catalog import entry_of_file, get_entry, list_entries

    if Path(args.name).is_file():
        return _print_entry(entry_of_file(Path(args.name)))
    if args.name in list_models(kind="architecture"):
        return _print_architecture(args.name)
    model, dot, tag = args.name.partition(".")
    weights = timm_name(model) + dot + tag
    if args.name in list_models(kind="encoder") or "." not in args.name:
        entries = list_entries(f"{weights}.*")
        if not entries and args.name in list_models(kind="encoder"):
            say(f"{args.name}: an encoder without weights; encoder_weights=None starts it from random ones.")
            return 0
        for entry in entries or [get_entry(args.name)]:
            _print_entry(entry)
            say()
        return 0
    return _print_entry(get_entry(weights))


def _print_entry(entry: Any) -> int:
    from pathlib import Path
    from urllib.parse import urlsplit
    from urllib.request import url2pathname

    from vitseg_zoo.weights.check import sha256_of

    facts = asdict(entry) | {"source": entry.source, "file_format": entry.file_format}
    own_file = entry.url and entry.url.startswith("file:") and Path(url2pathname(urlsplit(entry.url).path))
    if own_file and facts["sha256"] is None:
        facts["sha256"] = sha256_of(own_file)
    elif facts["sha256"] is None:
        facts["sha256"] = "not known beforehand: compared with the one that the Hub states, at download"
    if entry.url:
        facts.pop("filenames")
    for key, label in _LABELS.items():
        value = facts.get(key)
        if value not in (None, "", (), {}) or key == "commercial_use":
            say(f"{label + ':':23}{_text(key, value)}")
    if entry.kind == "model" and facts["source"] == entry.url:  # a file of the user's own
        say(f"{'use:':23}vitseg_zoo.load_model({str(own_file)!r})")
    elif entry.kind == "model":
        say(f"{'use:':23}vitseg_zoo.create_model({entry.name!r}, pretrained=True)")
    else:
        tag = entry.name.partition(".")[2]
        say(f"{'use:':23}smp.create_model('unet', 'vz-{entry.architecture}', {tag!r})")
        if tag != "imagenet":  # SMP's name, which timm does not know
            say(f"{'':23}timm.create_model({entry.name!r}, pretrained=True)")
    return 0


def _text(key: str, value: Any) -> str:
    if key == "palette":
        return " ".join("#{:02x}{:02x}{:02x}".format(*color) for color in value)
    if key == "commercial_use":
        return {True: "yes", False: "NOT ALLOWED", None: "read the license"}[value]
    if key == "filenames":
        return " or ".join(value)
    if key == "arguments":
        return ", ".join(f"{name}={argument!r}" for name, argument in value.items())
    if isinstance(value, float):
        return f"{value:.1f}"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _print_architecture(name: str) -> int:
    import inspect

    import segmentation_models_pytorch as smp

    cls = smp.MODEL_ARCHITECTURES_MAPPING[name]
    for line in (
        f"smp.{cls.__name__}, smp.create_model({name!r}, ...)",
        "",
        *(inspect.getdoc(cls) or "").split("\n"),
    ):
        say(line)
    return 0
