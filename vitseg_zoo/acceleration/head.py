"""The all-MLP head of SegFormer, its projections multiplied with its fusion before they are applied.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, equation 4. `vitseg_zoo.decoders.all_mlp` says why the result is the same.
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn

from vitseg_zoo.encoders.mix_ops import PointwiseLinear

_PLAIN_TYPES = (nn.Linear, PointwiseLinear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def is_plain(layers: Iterable[nn.Module], around: Iterable[nn.Module]) -> bool:
    """Whether `layers` can be multiplied: torch's own, without hooks on them or on the modules `around`."""
    layers = list(layers)
    return all(type(layer) in _PLAIN_TYPES for layer in layers) and not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in (*layers, *around)
    )


def fused_head(
    maps: Sequence[torch.Tensor],
    linears: Sequence[nn.Linear],
    fuse: nn.Conv2d,
    norm: nn.BatchNorm2d,
    size: Sequence[int],
) -> torch.Tensor:
    """Projects maps, upsamples them to one size, fuses and normalises them.

    Args:
        maps: One (B, C_i, H_i, W_i) a level, coarse to fine, as the columns of the fusion are.
        linears: The projection of each level, C_i to E channels.
        fuse: 1 x 1 convolution without bias of the concatenated levels to E channels.
        norm: Its batch norm.
        size: Height and width of the output.

    Returns:
        (B, E, *size), before the activation.
    """
    folded = not norm.training and norm.running_mean is not None
    with torch.autocast(fuse.weight.device.type, enabled=False):  # products of weights in full precision
        columns = fuse.weight.flatten(1).chunk(len(linears), dim=1)  # (E, E) each
        bias = sum(column @ linear.bias for column, linear in zip(columns, linears, strict=True))
        if folded:
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            columns = [scale[:, None] * column for column in columns]
            bias = scale * (bias - norm.running_mean) + norm.bias
        weights = [column @ linear.weight for column, linear in zip(columns, linears, strict=True)]
    # The finest level takes the bias, and the others are added to it in place.
    output = _project(maps[-1], weights[-1], bias, size)
    for x, weight in zip(maps[:-1], weights[:-1], strict=True):
        output.add_(_project(x, weight, None, size))
    return output if folded else norm(output)


def _project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, size: Sequence[int]
) -> torch.Tensor:
    x = F.conv2d(x, weight[:, :, None, None], bias)
    return x if x.shape[2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=False)
