"""The operations of MiT on maps (B, H, W, C), as functions over layers, and the forms that are fast on a CPU.

Papers: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, and "PVT v2: Improved Baselines with Pyramid Vision Transformer",
https://arxiv.org/abs/2106.13797. Follows timm's `pvt_v2.py` (Apache-2.0).

Differences from it: maps stay channels-last from end to end, so that layer norms, linear layers,
convolutions and attention work on the same memory. Functions take layers, not weights: the same code runs
in the zoo's encoders and in the models that `vitseg_zoo.accelerate` finds, hooks and adapters on the layers
included.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Layer = Callable[[torch.Tensor], torch.Tensor]

# Largest hidden map of a Mix-FFN, in elements, that inference on a CPU makes at once: 4 MB in fp32, so that
# it stays in the cache, and that the allocator reuses memory instead of asking the system for fresh pages.
_STRIP_ELEMENTS = 2**20


def runs_eagerly_on_cpu(x: torch.Tensor) -> bool:
    """Whether the forms of an operation that only pay on a CPU may be used: not while a graph is recorded."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or torch.jit.is_tracing())


class PointwiseLinear(nn.Linear):
    """An `nn.Linear` on maps (B, H, W, C) that a CPU computes in fp32 as a 1 x 1 convolution.

    The same sums, but by oneDNN instead of MKL, which is a quarter faster for the narrow matrices of MiT,
    most of all on AMD processors. Everything else is `nn.Linear`: parameters, state dict, other devices and
    dtypes.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return pointwise(x, self.weight, self.bias)


def pointwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """A linear layer on the channels of a map (B, H, W, C), as `PointwiseLinear` computes it."""
    if x.ndim == 4 and x.dtype is torch.float32 and runs_eagerly_on_cpu(x):
        x = F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias)
        return x.permute(0, 2, 3, 1)
    return F.linear(x, weight, bias)


def conv_nhwc(conv: Layer, x: torch.Tensor) -> torch.Tensor:
    """Applies a convolution to a map (B, H, W, C); its memory is what PyTorch calls channels-last."""
    return conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, dropout_p: float = 0.0
) -> torch.Tensor:
    """Multi-head attention of every position of a map to all positions of a smaller one.

    Args:
        q: Queries (B, H, W, C).
        k: Keys (B, h, w, C).
        v: Values (B, h, w, C).
        num_heads: Number of heads, a divisor of C.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, C).
    """
    # (B, H, W, C) -> (B, heads, H * W, C / heads)
    q, k, v = (t.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2).flatten(2)


def mix_ffn(
    x: torch.Tensor, fc1: Layer, dwconv: nn.Conv2d, act: Layer, drop: Layer, fc2: Layer
) -> torch.Tensor:
    """Mix-FFN (SegFormer, equation 3): fc2(act(dwconv(fc1(x)))) on a map (B, H, W, C).

    Without gradients on a CPU the hidden map is made in strips of rows, which is exact: a strip takes along
    as many rows above and below as the convolution reaches.
    """
    if torch.is_grad_enabled() or not runs_eagerly_on_cpu(x):
        return drop(fc2(drop(act(conv_nhwc(dwconv, fc1(x))))))
    height, width = x.shape[1:3]
    rows = max(16, _STRIP_ELEMENTS // (width * dwconv.in_channels * x.shape[0]))
    halo = dwconv.padding[0]
    strips = []
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        top, bottom = max(start - halo, 0), min(stop + halo, height)
        hidden = conv_nhwc(dwconv, fc1(x[:, top:bottom]))[:, start - top : stop - top]
        strips.append(fc2(drop(act(hidden))))
    return drop(strips[0] if len(strips) == 1 else torch.cat(strips, dim=1))
