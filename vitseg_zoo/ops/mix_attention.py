"""Efficient attention, the first part of MiT's blocks, and its form for a single head on CPUs.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, equations 1 and 2.

With a single head, as MiT's first and largest map has, the query layer can be folded into the few keys: with
the normed map n and q = W n + b, q k = n (W' k) + b k. The projection can be folded into the few values. That
leaves out two of the map's three products, forwards and backwards. How the constant b k is added without
another map: before the norm's weight and bias, the channels of a position sum to 0. Adding 1 to each of the
C channels of the map changes no product with a key whose channels sum to 0, and c / C in every channel of
such a key adds exactly c.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitseg_zoo.ops.dense_conv import dense_conv, dense_conv_with
from vitseg_zoo.ops.dispatch import Layer, runs_eagerly_on_cpu
from vitseg_zoo.ops.drop_path import add_branch, with_drop_path
from vitseg_zoo.ops.linear import linear


def mix_attention(
    x: Tensor,
    *,
    norm: nn.LayerNorm,
    q: nn.Linear,
    sr: nn.Conv2d | None,
    sr_norm: Any,
    kv: Callable[[Tensor], tuple[Tensor, Tensor]],
    proj: nn.Linear,
    drop: Layer,
    drop_path: Layer,
    num_heads: int,
    dropout_p: float = 0.0,
) -> Tensor:
    """Compute x + drop_path(drop(proj(attention(q(n), kv(sr_norm(sr(n))))))), n = norm(x), on a map.

    The caller has asked `may_bypass` for the layers.

    Args:
        x: A map (B, H, W, C).
        norm: Norm of each position.
        q: Linear layer to the queries.
        sr: Convolution to the fewer positions of keys and values; None for all positions.
        sr_norm: Layer behind it, its norm; None where there is none.
        kv: Makes keys and values of a map (B, h, w, C).
        proj: Linear layer behind the attention.
        drop: Dropout behind it.
        drop_path: Dropout of whole images, or the identity.
        num_heads: Number of heads, a divisor of C.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H, W, C).
    """

    def half(x: Tensor, scale: Tensor | None) -> Tensor:
        if num_heads == 1 and sr is not None and not dropout_p and _can_fold(x, norm, q, sr):
            branch = _single_head(x, scale, norm=norm, q=q, sr=sr, sr_norm=sr_norm, kv=kv, proj=proj)
            scale = None  # which the few values have
        else:
            normed = norm(x)
            k, v = kv(normed if sr is None else sr_norm(dense_conv(sr, normed)))
            out = attention(linear(q, normed), k, v, num_heads, dropout_p)
            branch = linear(proj, out.view(x.shape))
        return add_branch(x, drop(branch), scale)

    return with_drop_path(x, drop_path, half)


def attention(q: Tensor, k: Tensor, v: Tensor, num_heads: int, dropout_p: float = 0.0) -> Tensor:
    """Let every position of a map attend, in several heads, to all positions of a smaller one.

    Args:
        q: Queries (B, H, W, C).
        k: Keys (B, h, w, C).
        v: Values (B, h, w, C).
        num_heads: Number of heads, a divisor of C.
        dropout_p: Probability of dropping an attention weight.

    Returns:
        (B, H * W, C).
    """
    # (B, H, W, C) -> (B, heads, H * W, C / heads)
    q, k, v = (t.flatten(1, 2).unflatten(-1, (num_heads, -1)).transpose(1, 2) for t in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p).transpose(1, 2).flatten(2)


def _can_fold(x: Tensor, norm: nn.LayerNorm, q: nn.Linear, sr: nn.Conv2d) -> bool:
    """Tell whether `_single_head` computes these layers."""
    return (
        runs_eagerly_on_cpu(x)
        and not torch.is_autocast_enabled("cpu")
        and all(t is not None for t in (norm.weight, norm.bias, q.bias, sr.bias))
        and x.dtype is norm.weight.dtype
        and x.dtype in (torch.float32, torch.float64)  # others round what is added
        and sr.padding == (0, 0)
    )


def _single_head(
    x: Tensor,
    scale: Tensor | None,
    *,
    norm: nn.LayerNorm,
    q: nn.Linear,
    sr: nn.Conv2d,
    sr_norm: Layer,
    kv: Callable[[Tensor], tuple[Tensor, Tensor]],
    proj: nn.Linear,
) -> Tensor:
    """Compute `scale * proj(attention(q(n), kv(sr_norm(sr(n)))))` with n = norm(x) and one head."""
    ones = torch.ones_like(norm.weight)
    # n = (shifted - 1) * weight + bias
    shifted = F.layer_norm(x, ones.shape, ones, ones, norm.eps)
    sr_bias = sr.bias + sr.weight.sum((2, 3)) @ (norm.bias - norm.weight)
    sr_weight = sr.weight * norm.weight[:, None, None]
    reduced = sr_norm(dense_conv_with(sr_weight, sr_bias, sr, shifted))
    k, v = (t.flatten(1, 2) for t in kv(reduced))  # (B, h * w, C)
    of_normed = k @ q.weight
    constant = of_normed @ norm.bias + k @ q.bias  # (B, h * w)
    k = of_normed * norm.weight
    k = k + (constant / len(ones) - k.mean(2))[..., None]
    v = F.linear(v, proj.weight, proj.bias)  # the weights of the values sum to 1
    if scale is not None:
        v = v * scale.flatten(2)  # (B, 1, 1)
    # (B, 1, H * W, C)
    out = F.scaled_dot_product_attention(shifted.flatten(1, 2)[:, None], k[:, None], v[:, None])
    return out.view(x.shape)
