"""`vitseg list [FILTER]`: the zoo's models, architectures and encoders as a table."""

import argparse
from typing import Any

from vitseg_zoo.terminal import say

# Building a model only to count its parameters takes up to a second: not for hundreds of encoders.
_MOST_COUNTED = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "filter", nargs="?", default="", help="wildcard that names have to match, as '*mit_b*'"
    )
    parser.add_argument(
        "--kind",
        choices=["model", "architecture", "encoder"],
        help="only complete models with weights, SMP architectures, or SMP encoders",
    )


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from vitseg_zoo.models import list_models

    names = {kind: list_models(args.filter, kind) for kind in ("model", "architecture", "encoder")}
    rows: list[tuple[str, ...]] = []
    if args.kind in (None, "model"):
        rows += [_model_row(name) for name in names["model"]]
    if args.kind in (None, "architecture"):
        rows += [(name, "architecture", "", "", "", "") for name in names["architecture"]]
    counted = len(names["encoder"]) <= _MOST_COUNTED
    if args.kind in (None, "encoder"):
        rows += _encoder_rows(names["encoder"], counted)
    if not rows:
        raise ValueError(f"No name matches {args.filter!r}; wildcards stand for a part, as in '*mit*'.")
    _print_table([("name", "kind", "parameters", "stride", "license of the weights", "weights"), *rows])
    if not counted and args.kind in (None, "encoder"):
        say(f"Parameters of encoders are counted where at most {_MOST_COUNTED} match: vitseg list 'vz-mit*'")
    return 0


def _model_row(name: str) -> tuple[str, ...]:
    from vitseg_zoo.weights.catalog import get_entry

    entry = get_entry(name)
    size = f"{entry.parameters:.1f} M" if entry.parameters else ""
    stride = "4" if "segformer" in entry.architecture else ""  # of its logits
    return name, "model", size, stride, _license(entry), name.partition(".")[2]


def _encoder_rows(names: list[str], counted: bool) -> list[tuple[str, ...]]:
    from vitseg_zoo.registry import timm_name
    from vitseg_zoo.weights.catalog import list_entries

    entries: dict[str, list[Any]] = {}
    for entry in list_entries(kind="encoder"):
        entries.setdefault(entry.architecture, []).append(entry)
    rows: list[tuple[str, ...]] = []
    for name in names:
        weights = entries.get(timm_name(name), [])
        tags = ", ".join(entry.name.partition(".")[2] for entry in weights) or "none"
        licenses = ", ".join(dict.fromkeys(_license(entry) for entry in weights))
        size, stride = _measure(name) if counted else ("", "")
        rows.append((name, "encoder", size, stride, licenses, tags))
    return rows


def _measure(name: str) -> tuple[str, str]:
    """Count an encoder's parameters, and give its coarsest stride, without memory for its weights."""
    import torch
    from segmentation_models_pytorch.encoders import get_encoder

    with torch.device("meta"):
        encoder = get_encoder(name, weights=None)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    # A plain ViT's is that of its patches: the pyramid around it has strides 2 to 32 in any case.
    return f"{parameters / 1e6:.1f} M", str(getattr(encoder, "patch_size", encoder.output_stride))


def _license(entry: Any) -> str:
    return entry.license.partition(" (")[0] + (" (not commercial)" if entry.commercial_use is False else "")


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
