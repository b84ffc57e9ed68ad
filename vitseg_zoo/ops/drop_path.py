"""Stochastic depth of a block's branches, which a CPU need not compute where they are dropped.

Paper: "Deep Networks with Stochastic Depth", https://arxiv.org/abs/1603.09382.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vitseg_zoo.ops.dispatch import Layer, runs_eagerly_on_cpu


def with_drop_path(x: Tensor, drop_path: Layer, half: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
    """Run half of a block; on a CPU, leave out the images whose branch stochastic depth drops.

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


def image_scale(x: Tensor, drop_path: Layer) -> Tensor | None:
    """Draw what stochastic depth multiplies each image by, (B, 1, 1, 1); None where it drops nothing."""
    drops = getattr(drop_path, "training", True) and not isinstance(drop_path, nn.Identity)
    return drop_path(x.new_ones(x.shape[0], 1, 1, 1)) if drops else None


def add_branch(x: Tensor, branch: Tensor, scale: Tensor | None, out: Tensor | None = None) -> Tensor:
    """Add a branch, times its `image_scale`, to its shortcut in one pass."""
    if scale is None:
        return torch.add(x, branch, out=out)
    return torch.addcmul(x, scale, branch, out=out)
