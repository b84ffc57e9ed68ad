"""The dense convolutions of MiT, and the form of their gradients that is fast on a CPU.

Those are the patch embeddings, whose windows overlap, and the reduction to the positions of keys and values,
whose windows lie side by side. In training the gradient of their weight is a matrix product for each row of
the window, up to twice as fast as oneDNN's own.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.ops.dispatch import has_operations, may_bypass, runs_eagerly_on_cpu
from vitseg_zoo.ops.linear import conv_nhwc

_HAS_OPERATIONS = has_operations(
    {
        "aten.convolution_backward.default": (
            "grad_output input weight bias_sizes stride padding dilation transposed output_padding groups "
            "output_mask"
        )
    }
)

# Channels from which on the products are wide enough.
_PRODUCTS_FROM = 64
# From this C_in * C_out on, a weight is copied faster one position of the window at a time.
_COPY_BY_POSITION_FROM = 2**15


def dense_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C), as `conv_nhwc` does."""
    if not runs_eagerly_on_cpu(x) or not may_bypass((conv, nn.Conv2d)) or conv.padding_mode != "zeros":
        return conv_nhwc(conv, x)
    return dense_conv_with(conv.weight, conv.bias, conv, x)


def dense_conv_with(weight: Tensor, bias: Tensor | None, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`dense_conv` with other weights than those of `conv`, which pads with zeros."""
    products = (
        _HAS_OPERATIONS
        and torch.is_grad_enabled()
        and weight.requires_grad
        and conv.in_channels >= _PRODUCTS_FROM
        and (conv.groups, conv.dilation) == (1, (1, 1))
        and not isinstance(conv.padding, str)
        and runs_eagerly_on_cpu(x)
        and not torch.is_autocast_enabled("cpu")
    )
    if runs_eagerly_on_cpu(x):
        x = x.contiguous()  # an image that is not would make an output that is not, and larger
    if products:
        return _DenseConv.apply(x, weight, bias, conv.stride, conv.padding)
    x = F.conv2d(x.permute(0, 3, 1, 2), weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return x.permute(0, 2, 3, 1)


class _DenseConv(torch.autograd.Function):
    """A convolution of a map (B, H, W, C) whose weight has matrix products as gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return F.conv2d(x.permute(0, 3, 1, 2), weight, bias, stride, padding).permute(0, 2, 3, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad_output.permute(0, 3, 1, 2),
                x.permute(0, 3, 1, 2),
                weight,
                None,
                ctx.stride,
                ctx.padding,
                [1, 1],
                False,
                [0, 0],
                1,
                [True, False, False],
            )
            grad_x = grad_x.permute(0, 2, 3, 1)
        flat = grad_output.flatten(0, 2)  # (B * h * w, C_out)
        grad_weight = _weight_gradient(
            flat, x, weight.shape[2:], grad_output.shape[1], ctx.stride, ctx.padding
        )
        return grad_x, grad_weight, flat.sum(0) if ctx.has_bias else None, None, None


def _weight_gradient(
    grad_output: Tensor,
    x: Tensor,
    window: tuple[int, int],
    rows: int,
    stride: tuple[int, int],
    padding: tuple[int, int],
) -> Tensor:
    """Give the gradient (C_out, C, *window) of a convolution's weight, from that of its output.

    Args:
        grad_output: Gradient of the output, (B * rows * w, C_out).
        x: Input of the convolution, (B, H, W, C).
        window: Height and width of the window.
        rows: Rows of the output.
        stride: Of the convolution.
        padding: Of the convolution.
    """
    if any(padding):
        x = F.pad(x, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    height, width = window
    # For a row of the window what lies under it is one piece of memory at each position.
    by_row = x.new_empty(height, grad_output.shape[1], width * x.shape[3])
    for i, grad_row in enumerate(by_row):
        under = x[:, i : i + stride[0] * rows : stride[0]].unfold(2, width, stride[1])
        torch.mm(grad_output.T, under.movedim(4, 3).reshape(len(grad_output), -1), out=grad_row)
    grad_weight = by_row.unflatten(2, (width, -1)).permute(1, 3, 0, 2)
    if grad_weight[..., 0, 0].numel() < _COPY_BY_POSITION_FROM:
        return grad_weight  # PyTorch copies it window by window
    ordered = grad_weight.new_empty(grad_weight.shape)
    for i in range(height):
        for j in range(width):
            ordered[..., i, j] = grad_weight[..., i, j]
    return ordered
