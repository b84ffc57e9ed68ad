"""`vitseg trace`: how a tensor's shape changes, step by step, on its way through a model."""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torch
from torch import nn

from vitseg_zoo.architectures import VitSeg
from vitseg_zoo.encoders.vit_seg import VitSegTransformer


@dataclass
class Step:
    """A step of a model: its name, the shapes before and after it, and how many parameters it has."""

    name: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    parameters: int


def trace(model: nn.Module, image: torch.Tensor) -> list[Step]:
    """Runs a model on an image and records its steps in the order in which they happen.

    Args:
        model: A model of the zoo, of SMP or of timm. ViT-seg's steps are those that its article follows by
            hand; other models are shown by their stages.
        image: (B, C, H, W).

    Returns:
        The steps. A step's parameters are those that no earlier step counts.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> steps = trace(smp.create_model("vitseg", classes=3), torch.rand(1, 3, 128, 128))
        >>> [step.shape_out for step in steps][-3:]
        [(1, 8, 8, 768), (1, 768, 8, 8), (1, 3, 128, 128)]
    """
    is_vit_seg = isinstance(model, VitSeg) and isinstance(model.encoder.model, VitSegTransformer)
    recorded: list[tuple[Step, set[nn.Parameter]]] = []

    def recorder(name: str, parameters: list[nn.Parameter]) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            shape_in, shape_out = _last_shape(inputs), _last_shape(output)
            if shape_in is not None and shape_out is not None:
                recorded.append((Step(name, shape_in, shape_out, 0), {*module.parameters(), *parameters}))

        return record

    hooks = [
        module.register_forward_hook(recorder(name, parameters))
        for name, module, parameters in (_vit_seg_steps(model) if is_vit_seg else _modules(model))
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(image)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()

    steps: list[Step] = []
    counted: set[nn.Parameter] = set()
    called = {step.name for step, _ in recorded}
    for step, parameters in recorded:
        parents = step.name.split(".")[:-1]
        if any(".".join(parents[:end]) in called for end in range(1, len(parents) + 1)):
            continue  # a part of a stage that is shown whole
        step.parameters = sum(p.numel() for p in parameters - counted)
        counted |= parameters
        if is_vit_seg and steps:  # a step without a module of its own starts where the one before it ended
            step.shape_in = steps[-1].shape_out
        steps.append(step)
    return steps


def _vit_seg_steps(model: VitSeg) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    vit, head = model.encoder.model, model.segmentation_head
    yield "batch norm", vit.patch_embed.input_norm, []
    yield "patches, channel first", vit.patch_embed.patchify, []
    yield "linear patch embedding", vit.patch_embed, []
    yield "position embedding", vit.pos_drop, [vit.pos_embed]
    yield f"{len(vit.blocks)} transformer blocks", vit.blocks[-1], list(vit.blocks.parameters())
    yield "linear projection", head[0], []
    yield "channels first", head[1], []
    yield "fold", head[2], []


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, list[nn.Parameter]]]:
    """All modules below a timm model, or below the encoder, the decoder and the heads of an SMP model."""
    whole = {"", "encoder", "decoder", "segmentation_head", "classification_head"}
    for name, module in model.named_modules():
        if name not in whole:
            yield name, module, []


def _last_shape(value: Any) -> tuple[int, ...] | None:
    """Shape of the last tensor in what a module takes or gives; None if there is none."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((shape for item in reversed(value) if (shape := _last_shape(item))), None)
    return None


def format_steps(steps: list[Step], total: int) -> str:
    """The steps as a text table that closes with the model's `total` of parameters."""
    rows = [("step", "shape in", "shape out", "parameters")]
    rows += [(s.name, str(s.shape_in), str(s.shape_out), f"{s.parameters:,}") for s in steps]
    rows.append(("whole model", "", "", f"{total:,}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vitseg trace`."""
    parser.add_argument("model", nargs="?", default="vitseg", help="SMP architecture or timm model [vitseg]")
    parser.add_argument("--encoder-name", help="encoder of the architecture [the architecture's own]")
    parser.add_argument("--image-size", nargs=2, type=int, default=(128, 128), metavar=("H", "W"))
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=3)


def run(args: argparse.Namespace) -> int:
    """Prints the table of `vitseg trace`."""
    if min(args.image_size) < 1:
        raise ValueError(f"--image-size takes two positive numbers, got {tuple(args.image_size)}.")
    if args.model.lower() in smp.MODEL_ARCHITECTURES_MAPPING:
        options = {"encoder_name": args.encoder_name, "encoder_weights": None} if args.encoder_name else {}
        if args.model.lower() != "vitseg":  # only ViT-seg reads SMP's default weights as none
            options["encoder_weights"] = None
        model = smp.create_model(args.model, in_channels=args.in_channels, classes=args.classes, **options)
    elif timm.is_model(args.model):
        model = timm.create_model(args.model, in_chans=args.in_channels, num_classes=args.classes)
    else:
        raise ValueError(
            f"There is no architecture or timm model {args.model!r}: `vitseg list` shows the zoo's, "
            f"SMP's architectures are {', '.join(smp.MODEL_ARCHITECTURES_MAPPING)}."
        )
    steps = trace(model, torch.rand(1, args.in_channels, *args.image_size))
    print(format_steps(steps, total=sum(p.numel() for p in model.parameters())))
    return 0
