"""Mix-FFN, the feed-forward part of MiT's blocks, and its form for CPUs.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, equation 3.

Its hidden map has several times the channels of the rest. On a CPU it is made in strips that stay in the
cache, which is exact: a strip takes along as many rows above and below as the convolution reaches. In
training nothing of it is kept, and the backward pass makes each strip again: that takes no longer than to
write a map of this size to memory and to read it.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.encoders.mix_ops import (
    Layer,
    conv_nhwc,
    is_plain,
    onednn_dtype,
    pointwise,
    runs_eagerly_on_cpu,
)

# Elements of a strip of the hidden map. 4 MB in fp32 stay in the cache, and the allocator uses their memory
# again instead of asking the system for fresh pages.
_STRIP_ELEMENTS = 2**20


def mix_ffn(x: Tensor, fc1: Layer, dwconv: nn.Conv2d, act: Layer, drop: Layer, fc2: Layer) -> Tensor:
    """Mix-FFN: fc2(act(dwconv(fc1(x)))) on a map (B, H, W, C).

    Args:
        x: The map.
        fc1: Linear layer to the hidden channels.
        dwconv: 3 x 3 depthwise convolution.
        act: Activation, element by element.
        drop: Dropout, behind `act` and behind `fc2`.
        fc2: Linear layer back to C channels.

    Returns:
        (B, H, W, C).
    """
    if not runs_eagerly_on_cpu(x):
        return drop(fc2(drop(act(conv_nhwc(dwconv, fc1(x))))))
    if not torch.is_grad_enabled():
        output = None
        for images, start, stop, top, bottom in _strips(x, dwconv):
            hidden = _activated(dwconv, act, fc1(x[images, top:bottom]))[:, start - top : stop - top]
            strip = fc2(drop(hidden))
            if strip.shape[:3] == x.shape[:3]:
                return drop(strip)
            if output is None:
                output = strip.new_empty(*x.shape[:3], strip.shape[3])
            output[images, start:stop] = strip
        return drop(output)
    drops = getattr(drop, "training", False) and getattr(drop, "p", 1.0) > 0
    fits = _is_gelu(act) and not drops and is_plain((fc1, dwconv, fc2), around=(act,))
    if not fits or torch.is_autocast_enabled("cpu"):
        return drop(fc2(drop(act(conv_nhwc(dwconv, fc1(x))))))
    weights = [tensor for layer in (fc1, dwconv, fc2) for tensor in (layer.weight, layer.bias)]
    return _MixFFN.apply(x, dwconv, *weights)


_GELU = nn.GELU()


def _is_gelu(act: Layer) -> bool:
    return type(act) is nn.GELU and act.approximate == "none"


def _activated(dwconv: nn.Conv2d, act: Layer, x: Tensor) -> Tensor:
    """`act(conv_nhwc(dwconv, x))` without gradients: GELU by oneDNN while the convolution writes."""
    dtype = onednn_dtype(x, dwconv.weight)
    if dtype is None or not _is_gelu(act) or not is_plain((dwconv,), around=(act,)):
        return act(conv_nhwc(dwconv, x))
    return torch.ops.mkldnn._convolution_pointwise(
        x.to(dtype).permute(0, 3, 1, 2),
        dwconv.weight.to(dtype),
        None if dwconv.bias is None else dwconv.bias.to(dtype),
        dwconv.padding,
        dwconv.stride,
        dwconv.dilation,
        dwconv.groups,
        "gelu",
        [],
        "none",
    ).permute(0, 2, 3, 1)


def _strips(x: Tensor, dwconv: nn.Conv2d) -> Iterator[tuple[slice, int, int, int, int]]:
    """Parts of a map whose hidden map stays in the cache.

    Yields:
        Images; first and last row (exclusive); the same with the rows that the convolution reaches.
    """
    batch, height, width = x.shape[:3]
    row = width * dwconv.in_channels
    images = max(1, _STRIP_ELEMENTS // (height * row))
    # Two strips are not worth the rows that both make.
    rows = height if height * row <= 2 * _STRIP_ELEMENTS else max(16, _STRIP_ELEMENTS // row)
    halo = dwconv.padding[0]
    for image in range(0, batch, images):
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield slice(image, image + images), start, stop, max(start - halo, 0), min(stop + halo, height)


class _MixFFN(torch.autograd.Function):
    """Mix-FFN with GELU and without dropout, of which only the input is kept for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dwconv: nn.Conv2d, *weights: Tensor) -> Tensor:
        ctx.dwconv = dwconv
        ctx.save_for_backward(x, *weights)
        output = x.new_empty(*x.shape[:3], len(weights[4]))
        for images, start, stop, top, bottom in _strips(x, dwconv):
            hidden = pointwise(x[images, top:bottom], *weights[:2])
            hidden = _activated(dwconv, _GELU, hidden)[:, start - top : stop - top]
            output[images, start:stop] = pointwise(hidden, *weights[4:])
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: gradient checkpointing gives them out a single time
        x, w1, b1, _, _, w2, _ = saved
        dwconv = ctx.dwconv
        to_x = x.new_zeros(x.shape)  # contiguous, unlike zeros_like
        to_w1, to_b1, to_conv, to_conv_bias, to_w2, to_b2 = (
            None if t is None else torch.zeros_like(t) for t in saved[1:]
        )
        for images, start, stop, top, bottom in _strips(x, dwconv):
            part, inner = x[images, top:bottom], slice(start - top, stop - top)
            first = pointwise(part, w1, b1)  # (b, rows + halo, W, hidden)
            second = conv_nhwc(dwconv, first)[:, inner]
            of_output = gradient[images, start:stop].flatten(0, 2)
            to_w2.addmm_(of_output.T, F.gelu(second).flatten(0, 2))
            of_second = (of_output @ w2).view(second.shape)
            torch.ops.aten.gelu_backward.grad_input(of_second, second, grad_input=of_second)
            if of_second.shape != first.shape:
                # Rows of the halo belong to other strips: nothing comes back from them.
                of_second = F.pad(of_second, (0, 0, 0, 0, start - top, bottom - stop))
            of_first, of_conv, of_conv_bias = _depthwise_backward(of_second, first, dwconv)
            of_first = of_first.flatten(0, 2)
            to_w1.addmm_(of_first.T, part.flatten(0, 2))
            to_x[images, top:bottom].flatten(0, 2).addmm_(of_first, w1)
            to_conv += of_conv
            biases = ((to_b1, of_first.sum(0)), (to_conv_bias, of_conv_bias), (to_b2, of_output.sum(0)))
            for total, of_strip in biases:
                if total is not None:
                    total += of_strip
        return to_x, None, to_w1, to_b1, to_conv, to_conv_bias, to_w2, to_b2


def _depthwise_backward(gradient: Tensor, x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `x`, weight and bias of `conv_nhwc(conv, x)` from that of its output."""
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        conv.weight,
        None if conv.bias is None else conv.bias.shape,
        conv.stride,
        conv.padding,
        conv.dilation,
        False,
        [0, 0],
        conv.groups,
        [True, True, conv.bias is not None],
    )
    return of_x.permute(0, 2, 3, 1), of_weight, of_bias
