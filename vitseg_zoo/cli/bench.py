"""`vitseg bench MODEL...`: models of the zoo, SMP, timm and Hugging Face that take turns on any device."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vitseg_zoo.benchmark import HEADER, PRECISIONS, Cost, describe_setup, measure, use_tf32
from vitseg_zoo.files import atomic_path
from vitseg_zoo.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add(
        "models",
        nargs="+",
        metavar="MODEL",
        help="a model of `vitseg list`, ARCHITECTURE or ARCHITECTURE:ENCODER of SMP (unet:resnet34), a model "
        "of timm, a folder or repository of Hugging Face (owner/name); or segformer alone: SegFormer here "
        "against SMP's and Hugging Face's on a CPU, the table of docs/how_to/speed.md",
    )
    add("--device", default="auto", help="cuda, mps or cpu [the first that there is]")
    add(
        "--size", type=int, nargs="+", default=[512], metavar="PIXELS", help="side, or height and width [512]"
    )
    add("--batch-size", type=int, nargs="+", default=[1], metavar="N", help="images in a run [1]")
    add("--classes", type=int, default=21, help="[%(default)s]")
    add(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="tf32 is fp32 with products in TF32; bf16 and fp16 are autocast [%(default)s, TF32 off]",
    )
    add(
        "--compile",
        nargs="?",
        const="default",
        metavar="MODE",
        help="torch.compile, in a mode such as reduce-overhead",
    )
    add("--channels-last", action="store_true", help="weights and images in this memory format")
    add("--train", action="store_true", help="a step: forward, cross-entropy, backward and AdamW")
    add("--rounds", type=int, help="runs of each model that count [10; 50 on a GPU; 7 for segformer]")
    add("--out", type=Path, metavar="DIR", help="write results.json and throughput.png there")
    add(
        "--variants",
        nargs="+",
        default=["b0", "b2"],
        metavar="B",
        help="of segformer: b0 to b5 [b0 b2]",
    )
    add("--quick", action="store_true", help="of segformer: 512 x 512 only, without training and memory")


def run(args: argparse.Namespace) -> int:
    """Measure, and print the table."""
    if args.models == ["segformer"]:
        from vitseg_zoo.cli import bench_segformer

        return bench_segformer.run(args.variants, args.rounds or 7, args.quick)
    if len(args.size) > 2 or min(*args.size, *args.batch_size, args.classes, args.rounds or 1) < 1:
        raise ValueError("--size takes one or two positive numbers; --batch-size, --classes, --rounds too.")
    device = args.device
    if device == "auto":
        mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here: measure with --device cpu.")
    size = (args.size[0], args.size[-1])
    rounds = args.rounds or (50 if torch.device(device).type == "cuda" else 10)
    models = {name: build_model(name, args.classes, size) for name in args.models}
    use_tf32(args.precision == "tf32")
    what = "training step" if args.train else "inference"
    options = [args.precision, f"torch.compile ({args.compile})" if args.compile else "eager"]
    options += ["channels-last"] if args.channels_last else []
    said = (
        f"{what}, {size[0]} x {size[1]}, {args.classes} classes, {', '.join(options)}, {rounds} runs in turn"
    )
    say(f"{describe_setup(device)}; {said}")
    say()
    costs = measure(
        models,
        size,
        args.batch_size,
        device,
        precision=args.precision,
        compile=args.compile,
        channels_last=args.channels_last,
        train=args.train,
        rounds=rounds,
    )
    for line in [*HEADER.splitlines(), *(cost.row() for cost in costs)]:
        say(line)
    if args.out is not None:
        results = {
            "device": describe_setup(device),
            "measured": said,
            "costs": [asdict(cost) for cost in costs],
        }
        with atomic_path(args.out / "results.json") as partial:
            partial.write_text(json.dumps(results, indent=2), encoding="utf-8")
        plot(costs, said, args.out / "throughput.png")
        say(f"{args.out}: results.json, throughput.png")
    return 0


def build_model(name: str, classes: int, size: Sequence[int]) -> nn.Module:
    """Build a model with random weights, whichever library's it is.

    Args:
        name: As `vitseg bench` takes it.
        classes: Classes of the output, where the name does not say them.
        size: Height and width for which timm's models are built.

    Raises:
        ValueError: If no library has such a model.
        OSError: If Hugging Face's configuration cannot be had.

    Example:
        >>> type(build_model("unet:resnet18", 3, (64, 64))).__name__
        'Unet'
    """
    import segmentation_models_pytorch as smp
    import timm

    from vitseg_zoo.models import create_model, list_models

    architecture, _, encoder = name.partition(":")
    if name in list_models(kind="model"):
        return create_model(name, classes=classes)
    if architecture.lower() in smp.MODEL_ARCHITECTURES_MAPPING:
        named = {"encoder_name": encoder} if encoder else {}
        return smp.MODEL_ARCHITECTURES_MAPPING[architecture.lower()](
            encoder_weights=None, classes=classes, **named
        )
    if "/" in name or Path(name).is_dir():
        from transformers import AutoConfig, AutoModelForSemanticSegmentation

        config = AutoConfig.from_pretrained(name, num_labels=classes)
        return AutoModelForSemanticSegmentation.from_config(config)
    if timm.is_model(name):
        sized: dict[str, Any] = {"img_size": tuple(size)}
        try:
            return timm.create_model(name, num_classes=classes, **sized)
        except TypeError:  # convolutions take any size, and no such argument
            return timm.create_model(name, num_classes=classes)
    raise ValueError(
        f"there is no model {name!r}: `vitseg list` shows the zoo's; SMP's architectures are "
        f"{', '.join(smp.MODEL_ARCHITECTURES_MAPPING)}, as in unet:resnet34."
    )


def plot(costs: Sequence[Cost], title: str, path: Path) -> None:
    """Draw the throughput of each model over batch sizes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for model in dict.fromkeys(cost.model for cost in costs):
        points = [(cost.batch, cost.images_per_second) for cost in costs if cost.model == model]
        points = [(batch, speed) for batch, speed in points if speed is not None]
        axes.plot(*zip(*points, strict=True), "o-", label=model) if points else None
    batches = sorted({cost.batch for cost in costs})
    axes.set(xlabel="batch size", ylabel="images per second", ylim=(0, None), xscale="log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.minorticks_off()
    axes.set_title(title, fontsize="small")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as partial:
        figure.savefig(partial, dpi=150)
