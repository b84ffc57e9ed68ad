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
from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.encoders.vit_seg import VitSegTransformer
from vitseg_zoo.terminal import say


@dataclass
class Step:
    """A step of a model: its name, the shapes before and after it, and how many parameters it has."""

    name: str
    shape_in: tuple[int, ...]
    shape_out: tuple[int, ...]
    parameters: int


def trace(model: nn.Module, image: torch.Tensor) -> tuple[list[Step], Step]:
    """Run a model on an image and record its steps in the order in which they happen.

    Args:
        model: A model of the zoo, of SMP or of timm. ViT-seg's steps are those that its article follows by
            hand, under the article's names; patches are a sequence (B, N, D) there, and not the grid of
            N = h * w that is computed with. Other models are shown by their stages.
        image: (B, C, H, W).

    Returns:
        The steps, and the whole model as one. A step's parameters are those that no earlier step counts.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> steps, _ = trace(smp.create_model("vitseg", classes=3), torch.rand(1, 3, 128, 128))
        >>> [(step.name, step.shape_out) for step in steps][-2:]
        [('linear output projection', (1, 64, 768)), ('patches to image', (1, 3, 128, 128))]
    """
    is_vit_seg = isinstance(model, VitSeg) and isinstance(model.encoder.model, VitSegTransformer)
    recorded: list[tuple[Step, set[nn.Parameter]]] = []

    def recorder(
        name: str, parameters: list[nn.Parameter], show: Callable[..., tuple[int, ...]]
    ) -> Callable[..., None]:
        def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            shape_in, shape_out = _last_shape(inputs), _last_shape(output)
            if shape_in is not None and shape_out is not None:
                step = Step(name, shape_in, show(*shape_out), 0)
                recorded.append((step, {*module.parameters(), *parameters}))

        return record

    hooks = [
        module.register_forward_hook(recorder(name, parameters, show))
        for name, module, parameters, show in (_vit_seg_steps(model) if is_vit_seg else _modules(model))
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            output = model.eval()(image)
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
            step.shape_in = (image.shape[0], *steps[-1].shape_out[1:])
        steps.append(step)
    parameters = sum(p.numel() for p in model.parameters())
    return steps, Step("whole model", tuple(image.shape), _last_shape(output) or (), parameters)


# A step's name, the module with which it ends, parameters besides the module's, and how to show its shape.
_Traced = tuple[str, nn.Module, list[nn.Parameter], Callable[..., tuple[int, ...]]]


def _as_it_is(*shape: int) -> tuple[int, ...]:
    return shape


def _vit_seg_steps(model: VitSeg) -> Iterator[_Traced]:
    vit, head = model.encoder.model, model.segmentation_head

    def sequence(batch: int, height: int, width: int, channels: int) -> tuple[int, ...]:
        return batch, height * width, channels

    yield "batch norm", vit.patch_embed.input_norm, [], _as_it_is
    yield "image to patches", vit.patch_embed.patchify, [], lambda b, c, h, w: (b, h * w, c)
    yield "patch embedding", vit.patch_embed, [], sequence
    yield "position embedding", vit.pos_drop, [vit.pos_embed], lambda b, n, d: (1, n, d)  # the same for all
    yield "addition", vit.pos_drop, [], _as_it_is
    yield "transformer encoder", vit.blocks[-1], list(vit.blocks.parameters()), _as_it_is
    if not isinstance(
        model.decoder.hidden, nn.Identity
    ):  # decoder_head="mlp", which the article only suggests
        yield "hidden layer", model.decoder.hidden, [], sequence
    yield "linear output projection", head[0], [], sequence
    yield "patches to image", head[2], [], _as_it_is


def _modules(model: nn.Module) -> Iterator[_Traced]:
    """Yield all modules below a timm model, or below an SMP model's encoder, decoder and heads."""
    whole = {"", "encoder", "decoder", "segmentation_head", "classification_head"}
    for name, module in model.named_modules():
        # The fused decoder computes from its layers' weights, without calling them.
        shown = name not in whole or isinstance(module, FusedSegformerDecoder)
        if shown and not isinstance(module, nn.Identity):
            yield name, module, [], _as_it_is


def _last_shape(value: Any) -> tuple[int, ...] | None:
    """Return the shape of the last tensor in what a module takes or gives; None if there is none."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape)
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return next((shape for item in reversed(value) if (shape := _last_shape(item))), None)
    return None


def format_steps(steps: list[Step], whole: Step) -> str:
    """Format the steps as a text table that closes with the whole model."""
    rows = [("step", "shape in", "shape out", "parameters")]
    rows += [(s.name, str(s.shape_in), str(s.shape_out), f"{s.parameters:,}") for s in [*steps, whole]]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("model", nargs="?", default="vitseg", help="SMP architecture or timm model [vitseg]")
    parser.add_argument("--encoder-name", help="encoder of the architecture [the architecture's own]")
    parser.add_argument("--image-size", nargs=2, type=int, default=(128, 128), metavar=("H", "W"))
    parser.add_argument("--in-channels", type=int, default=3)
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument(
        "--embed-dim", type=int, help="channels of a token of vitseg [768; the article's 512]"
    )


def run(args: argparse.Namespace) -> int:
    """Print the table of steps."""
    if min(*args.image_size, args.in_channels, args.classes, args.embed_dim or 1) < 1:
        raise ValueError("--image-size, --in-channels, --classes and --embed-dim take positive numbers.")
    if args.embed_dim is not None and args.model.lower() != "vitseg":
        raise ValueError(f"--embed-dim is for vitseg: channels of {args.model} are its own.")
    model = _build(args)
    try:
        steps, whole = trace(model, torch.rand(1, args.in_channels, *args.image_size))
    except AssertionError as error:  # how timm refuses a size
        raise ValueError(
            f"{args.model} does not take such an image, choose another --image-size: {error}"
        ) from error
    for line in format_steps(steps, whole).split("\n"):
        say(line)
    return 0


def _build(args: argparse.Namespace) -> nn.Module:
    architecture = smp.MODEL_ARCHITECTURES_MAPPING.get(args.model.lower())
    if architecture is not None:  # not by `smp.create_model`, which has default encoders of its own
        given = {"encoder_name": args.encoder_name, "embed_dim": args.embed_dim}
        options = {key: value for key, value in given.items() if value is not None}
        try:
            return architecture(
                encoder_weights=None, in_channels=args.in_channels, classes=args.classes, **options
            )
        except AssertionError as error:  # how timm refuses channels that its heads do not divide
            raise ValueError(
                f"There is no {args.model} with --embed-dim {args.embed_dim}: {error}."
            ) from error
    if timm.is_model(args.model):
        return timm.create_model(args.model, in_chans=args.in_channels, num_classes=args.classes)
    raise ValueError(
        f"There is no architecture or timm model {args.model!r}: `vitseg list` shows the zoo's, "
        f"SMP's architectures are {', '.join(smp.MODEL_ARCHITECTURES_MAPPING)}."
    )
