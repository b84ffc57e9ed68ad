"""Operations of MiT on maps (B, H, W, C), as functions over layers, and the forms that are fast on a CPU.

Papers: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, and "PVT v2: Improved Baselines with Pyramid Vision Transformer",
https://arxiv.org/abs/2106.13797. Follows timm's `pvt_v2.py` (Apache-2.0).

Differences from it: maps stay channels-last from end to end, so that layer norms, linear layers,
convolutions and attention work on the same memory. Functions take layers, not weights: the same code runs
in the zoo's encoders and in the models that `vitseg_zoo.accelerate` finds, hooks and adapters on the layers
included.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from torch import nn
from torch.autograd import forward_ad

Layer = Callable[[torch.Tensor], torch.Tensor]


def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Whether the forms of an operation that only pay on a CPU may be used.

    Not while a graph is recorded, under the transforms of `torch.func`, in forward-mode differentiation, nor
    where dispatch modes such as `FlopCounterMode` look on: those see the plain forms.
    """
    return x.device.type == "cpu" and not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._len_torch_dispatch_stack()
    )


def linear(layer: Layer, x: torch.Tensor) -> torch.Tensor:
    """Applies a linear layer to a map (B, H, W, C): by `pointwise`, or as it is if it is more than that."""
    if runs_eagerly_on_cpu(x) and type(layer) is nn.Linear and is_plain((layer,)):
        return pointwise(x, layer.weight, layer.bias)
    return layer(x)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer on the channels of a map (B, H, W, C), by oneDNN instead of MKL on a CPU.

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


def onednn_dtype(x: torch.Tensor, weight: torch.Tensor) -> torch.dtype | None:
    """The type, autocast's included, in which oneDNN's own operations take `x` and `weight`; or None."""
    if not (_HAS_ONEDNN and runs_eagerly_on_cpu(x) and type(weight) in (torch.Tensor, nn.Parameter)):
        return None
    if torch.is_autocast_enabled("cpu") and x.dtype is not torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
    else:
        dtype = x.dtype if x.dtype is weight.dtype else None
    return dtype if dtype is torch.float32 or (dtype is torch.bfloat16 and HAS_BF16) else None


# Operations that PyTorch's compiler also calls; F.linear and F.conv2d have no way to them.
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
# The largest matrix, in elements, for which oneDNN is faster: 0.6 to 0.9 of MKL's time.
_ONEDNN_UP_TO = 2**15
# Whether the CPU multiplies bf16 itself; emulated, a step of a training can take minutes.
HAS_BF16 = _HAS_ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _onednn_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def pointwise_backward(
    gradient: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Gradients of `x`, `weight` and `bias` of `pointwise` from that of its output, (B, H, W, C_out)."""
    flat = gradient.flatten(0, 2)
    of_bias = None if bias is None else flat.sum(0)
    # A convolution's own backward pass takes a tenth longer than these, and sometimes half.
    return times(gradient, weight), flat.T @ x.flatten(0, 2), of_bias


def times(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """A map (B, H, W, C) times a matrix (C, D): by oneDNN or MKL, the faster one."""
    small = matrix.numel() <= _ONEDNN_UP_TO and not torch.is_grad_enabled()
    if small and onednn_dtype(x, matrix) is torch.float32:
        return _onednn_linear(x, matrix.T.contiguous(), None)
    return (x.flatten(0, 2) @ matrix).unflatten(0, x.shape[:3])


class _Pointwise(torch.autograd.Function):
    """oneDNN's linear layer forwards and MKL's matrix products backwards: the faster ones."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.save_for_backward(x, weight, bias)
        return _onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return pointwise_backward(gradient, *ctx.saved_tensors)


def conv_nhwc(conv: Layer, x: torch.Tensor) -> torch.Tensor:
    """Applies a convolution to a map (B, H, W, C); its memory is what PyTorch calls channels-last."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def with_drop_path(
    x: torch.Tensor, drop_path: Layer, half: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]
) -> torch.Tensor:
    """Half of a block; on a CPU not computed for the images whose branch stochastic depth drops.

    Args:
        x: A map (B, H, W, C).
        drop_path: Dropout of whole images, or the identity.
        half: Makes the output of a map and its `image_scale`.

    Returns:
        (B, H, W, C).
    """
    scale = image_scale(x, drop_path)
    if scale is None or not runs_eagerly_on_cpu(x):
        return half(x, scale)
    kept = scale.flatten().nonzero().flatten()
    if len(kept) in (0, len(x)):  # where none is kept, weights have gradients still: zeros
        return half(x, scale)
    output = half(x[kept], scale[kept])
    return x.to(output.dtype).index_copy(0, kept, output)


def image_scale(x: torch.Tensor, drop_path: Layer) -> torch.Tensor | None:
    """What stochastic depth multiplies each image's branch by, (B, 1, 1, 1); None where it drops nothing."""
    drops = getattr(drop_path, "training", True) and not isinstance(drop_path, nn.Identity)
    return drop_path(x.new_ones(x.shape[0], 1, 1, 1)) if drops else None


def add_branch(
    x: torch.Tensor, branch: torch.Tensor, scale: torch.Tensor | None, out: torch.Tensor | None = None
) -> torch.Tensor:
    """A shortcut and its branch with the `image_scale` of that, in one pass."""
    if scale is None:
        return torch.add(x, branch, out=out)
    return torch.addcmul(x, scale, branch, out=out)


def is_plain(layers: Iterable[nn.Module], around: Iterable[nn.Module] = ()) -> bool:
    """Whether `layers` can be computed from their weights: known ones, without hooks on them or `around`."""
    layers = list(layers)
    return all(type(layer) in _PLAIN_TYPES for layer in layers) and not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        for module in (*layers, *around)
    )


_PLAIN_TYPES = (
    nn.Linear,
    nn.Conv2d,
    nn.BatchNorm2d,
    nn.SyncBatchNorm,
    nn.LayerNorm,
    LayerNorm,
)
