"""Linear layers on maps (B, H, W, C), by oneDNN's own operation on CPUs.

Maps stay channels-last from end to end, so that layer norms, linear layers, convolutions and attention work
on the same memory.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitseg_zoo.ops.dispatch import HAS_BF16, HAS_ONEDNN, Layer, may_bypass, runs_eagerly_on_cpu

# The largest matrix, in elements, for which oneDNN is faster: 0.6 to 0.9 of MKL's time.
_ONEDNN_UP_TO = 2**15


def linear(layer: Layer, x: Tensor) -> Tensor:
    """Apply a linear layer to a map (B, H, W, C): by `pointwise`, or as it is if it is more than that."""
    if isinstance(layer, nn.Linear) and runs_eagerly_on_cpu(x) and may_bypass((layer, nn.Linear)):
        return pointwise(x, layer.weight, layer.bias)
    return layer(x)


def pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Apply a linear layer to the channels of a map (B, H, W, C), by oneDNN instead of MKL on a CPU.

    The same sums: in fp32 up to a quarter faster where channels are few, in bf16 up to a third. Other shapes,
    devices and dtypes are left to `F.linear`.
    """
    dtype = onednn_dtype(x, weight)
    if dtype is None or x.ndim != 4 or x.shape[3] != weight.shape[1]:
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled():
        return _onednn_linear(x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))
    if torch.is_autocast_enabled("cpu") or dtype is not torch.float32:
        return F.linear(x, weight, bias)
    return _Pointwise.apply(x, weight, bias)


def onednn_dtype(x: Tensor, weight: Tensor) -> torch.dtype | None:
    """Give the type, autocast's included, in which oneDNN's own operations take `x` and `weight`; or None."""
    if not (HAS_ONEDNN and runs_eagerly_on_cpu(x) and type(weight) in (Tensor, nn.Parameter)):
        return None
    if torch.is_autocast_enabled("cpu") and x.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    else:
        dtype = x.dtype if x.dtype is weight.dtype else None
    return dtype if dtype is torch.float32 or (dtype is torch.bfloat16 and HAS_BF16) else None


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pointwise_backward(
    grad_output: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the gradients of `x`, `weight` and `bias` of `pointwise`; `grad_output` is (B, H, W, C_out)."""
    flat = grad_output.flatten(0, 2)
    grad_bias = None if bias is None else flat.sum(0)
    # A convolution's own backward pass takes a tenth longer than these, and sometimes half.
    return times(grad_output, weight), flat.T @ x.flatten(0, 2), grad_bias


def times(x: Tensor, matrix: Tensor) -> Tensor:
    """Multiply a map (B, H, W, C) by a matrix (C, D): by oneDNN or MKL, the faster one."""
    small = matrix.numel() <= _ONEDNN_UP_TO and not torch.is_grad_enabled()
    if small and onednn_dtype(x, matrix) is torch.float32:
        return _onednn_linear(x, matrix.T.contiguous(), None)
    return (x.flatten(0, 2) @ matrix).unflatten(0, x.shape[:3])


class _Pointwise(torch.autograd.Function):
    """oneDNN's linear layer forwards and MKL's matrix products backwards: the faster ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return pointwise_backward(grad_output, *ctx.saved_tensors)


def conv_nhwc(conv: Layer, x: Tensor) -> Tensor:
    """Apply a convolution to a map (B, H, W, C); its memory is what PyTorch calls channels-last."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
