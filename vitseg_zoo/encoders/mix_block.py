"""The parts of MiT: efficient attention, Mix-FFN, their block, the overlapping patch embedding and the stage.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.1. Follows timm's `pvt_v2.py` (Apache-2.0), whose names of
parameters are kept; see `mix_transformer` for what differs.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerNorm
from timm.models import checkpoint
from torch import nn

from vitseg_zoo.ops.autocast import autocast_dtype
from vitseg_zoo.ops.dense_conv import dense_conv
from vitseg_zoo.ops.dispatch import may_bypass, runs_eagerly_on_cpu
from vitseg_zoo.ops.linear import conv_nhwc, linear
from vitseg_zoo.ops.mix_attention import attention, mix_attention
from vitseg_zoo.ops.mix_ffn import is_mix_conv, mix_ffn

_DROP_PATHS = (DropPath, nn.Identity)
_LAYER_NORMS = (nn.LayerNorm, LayerNorm)  # timm's calls PyTorch's


@torch.fx.wrap  # whose graphs have no branches: there it is one step
def pad_to_window(x: torch.Tensor, window: int) -> torch.Tensor:
    """Pad a map (B, H, W, C) with zeros, at the bottom and right, to at least `window` rows and columns."""
    rows, columns = max(window - x.shape[1], 0), max(window - x.shape[2], 0)
    return F.pad(x, (0, 0, 0, columns, 0, rows)) if rows or columns else x


class EfficientAttention(nn.Module):
    """Self-attention whose keys and values come from a map reduced by `sr_ratio` in height and width.

    Args:
        dim: Channels of the map.
        num_heads: Attention heads, a divisor of `dim`.
        sr_ratio: Spatial reduction of keys and values; 1 for none.
        attn_drop: Dropout of the attention weights.
        proj_drop: Dropout of the output.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        sr_ratio: int = 1,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **dd: Any,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide the {dim} channels of the stage, got {num_heads}.")
        self.dim = dim
        self.num_heads = num_heads
        self.sr_ratio = sr_ratio
        self.dilation = 1
        self.q = nn.Linear(dim, dim, **dd)
        self.kv = nn.Linear(dim, 2 * dim, **dd)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim, **dd)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio, **dd)
            self.norm = nn.LayerNorm(dim, **dd)

    def set_dilation(self, dilation: int) -> None:
        """Take keys and values from every `dilation`-th position, those that the strided network has."""
        self.dilation = dilation
        if self.sr_ratio > 1:
            self.sr.stride, self.sr.dilation = (self.sr_ratio * dilation,) * 2, (dilation,) * 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        if x.dtype is torch.float32 and (dtype := autocast_dtype(x)) is not None:  # not asked while fx traces
            x = x.to(dtype)  # once for both layers that read it
        q = self.q(x)  # (B, H, W, C)
        # (B, h, w, C) each; sizes are given, as ONNX's converter to opset 17 has no way of writing `chunk`
        k, v = self.kv(self.reduce(x)).split([self.dim, self.dim], dim=-1)
        out = attention(q, k, v, self.num_heads, self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(out.view(x.shape)))

    def reduce(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to the positions of keys and values, (B, h, w, C)."""
        if self.sr_ratio == 1:
            return x[:, :: self.dilation, :: self.dilation] if self.dilation > 1 else x
        return self.norm(conv_nhwc(self.sr, pad_to_window(x, self.window)))

    @property
    def window(self) -> int:
        """Rows and columns that the reduction takes at least."""
        return self.dilation * (self.sr_ratio - 1) + 1


class MixFFN(nn.Module):
    """Two linear layers with a 3 x 3 depthwise convolution between them, which tells positions apart.

    Args:
        dim: Channels of the map.
        hidden_dim: Channels between the linear layers.
        proj_drop: Dropout after the activation and of the output.
    """

    def __init__(self, dim: int, hidden_dim: int, proj_drop: float = 0.0, **dd: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim, **dd)
        self.dwconv = nn.Conv2d(hidden_dim, hidden_dim, 3, padding=1, groups=hidden_dim, **dd)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden_dim, dim, **dd)
        self.drop = nn.Dropout(proj_drop)

    def set_dilation(self, dilation: int) -> None:
        """Spread the convolution over every `dilation`-th position."""
        self.dwconv.dilation = self.dwconv.padding = (dilation, dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        x = self.drop(self.act(conv_nhwc(self.dwconv, self.fc1(x))))  # (B, H, W, hidden)
        return self.drop(self.fc2(x))


class Block(nn.Module):
    """A block on maps (B, H, W, C): attention, then Mix-FFN, each behind a norm and with a shortcut."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        sr_ratio: int,
        proj_drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        **dd: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim, **dd)
        self.attn = EfficientAttention(dim, num_heads, sr_ratio, attn_drop, proj_drop, **dd)
        self.drop_path1 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()
        self.norm2 = norm_layer(dim, **dd)
        self.mlp = MixFFN(dim, int(dim * mlp_ratio), proj_drop, **dd)
        self.drop_path2 = DropPath(drop_path) if drop_path > 0.0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, H, W, C) to (B, H, W, C)."""
        fast = self._attends_fast(x)
        x = self._attend_fast(x) if fast else x + self.drop_path1(self.attn(self.norm1(x)))
        fast = self._feeds_fast(x)
        return self._feed_fast(x) if fast else x + self.drop_path2(self.mlp(self.norm2(x)))

    def _attends_fast(self, x: torch.Tensor) -> bool:
        """Tell whether `mix_attention` is the first half of the block."""
        attn = self.attn
        return (
            runs_eagerly_on_cpu(x)
            and type(attn) is EfficientAttention
            and may_bypass(
                (self.norm1, _LAYER_NORMS),
                (attn, EfficientAttention),
                (attn.q, nn.Linear),
                (attn.kv, nn.Linear),
                (attn.attn_drop, nn.Dropout),
                (attn.proj, nn.Linear),
                (attn.proj_drop, nn.Dropout),
                (self.drop_path1, _DROP_PATHS),
            )
            and (
                attn.dilation == 1
                if attn.sr_ratio == 1
                else may_bypass((attn.sr, nn.Conv2d), (attn.norm, _LAYER_NORMS))
                and min(x.shape[1:3]) >= attn.window
            )
        )

    def _attend_fast(self, x: torch.Tensor) -> torch.Tensor:
        attn = self.attn
        reduces = attn.sr_ratio > 1
        return mix_attention(
            x,
            norm=self.norm1,
            q=attn.q,
            sr=attn.sr if reduces else None,
            sr_norm=attn.norm if reduces else None,
            kv=lambda reduced: linear(attn.kv, reduced).split([attn.dim, attn.dim], dim=-1),
            proj=attn.proj,
            drop=attn.proj_drop,
            drop_path=self.drop_path1,
            num_heads=attn.num_heads,
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
        )

    def _feeds_fast(self, x: torch.Tensor) -> bool:
        """Tell whether `mix_ffn` is the second half of the block."""
        mlp = self.mlp
        return (
            runs_eagerly_on_cpu(x)
            and type(mlp) is MixFFN
            and may_bypass(
                (self.norm2, _LAYER_NORMS),
                (mlp, MixFFN),
                (mlp.fc1, nn.Linear),
                (mlp.dwconv, nn.Conv2d),
                (mlp.act, nn.GELU),
                (mlp.drop, nn.Dropout),
                (mlp.fc2, nn.Linear),
                (self.drop_path2, _DROP_PATHS),
            )
            and is_mix_conv(mlp.dwconv)
        )

    def _feed_fast(self, x: torch.Tensor) -> torch.Tensor:
        mlp = self.mlp
        return mix_ffn(
            x,
            norm=self.norm2,
            fc1=mlp.fc1,
            dwconv=mlp.dwconv,
            act=mlp.act,
            drop=mlp.drop,
            fc2=mlp.fc2,
            drop_path=self.drop_path2,
        )


class OverlapPatchEmbed(nn.Module):
    """A convolution with overlapping windows, and a norm: (B, C, H, W) to (B, D, H / stride, W / stride)."""

    def __init__(self, in_chans: int, embed_dim: int, patch_size: int, stride: int, **dd: Any) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, patch_size, stride, patch_size // 2, **dd)
        self.norm = nn.LayerNorm(embed_dim, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = dense_conv(self.proj, x.permute(0, 2, 3, 1))  # (B, h, w, D)
        return self.norm(x).permute(0, 3, 1, 2)


class Stage(nn.Module):
    """The blocks of one resolution, between a patch embedding and a norm: (B, C, H, W) to (B, D, h, w).

    Args:
        dim: Channels of the blocks.
        in_dim: Channels of the input; `None` for the first stage, which takes the stem's patches.
        drop_path: Stochastic depth of each block; as many blocks as numbers.
        norm_layer: Norm of the blocks and the stage.
        device: Device of the parameters.
        dtype: Type of the parameters.
        kwargs: Further arguments of `Block`.
    """

    def __init__(
        self,
        dim: int,
        in_dim: int | None,
        drop_path: list[float],
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.grad_checkpointing = False
        self.downsample = None if in_dim is None else OverlapPatchEmbed(in_dim, dim, 3, 2, **dd)
        self.blocks = nn.ModuleList(
            Block(dim, drop_path=rate, norm_layer=norm_layer, **kwargs, **dd) for rate in drop_path
        )
        self.norm = norm_layer(dim, **dd)

    def set_dilation(self, first: int, dilation: int, stride: int) -> None:
        """Set the dilation of the patch embedding (`first`) and of the blocks, and the stride between."""
        assert self.downsample is not None  # the stem is not dilated
        proj = self.downsample.proj
        proj.stride, proj.dilation, proj.padding = (stride, stride), (first, first), (first, first)
        for block in self.blocks:
            block.attn.set_dilation(dilation)
            block.mlp.set_dilation(dilation)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        x = x.permute(0, 2, 3, 1).contiguous()  # (B, H, W, D); a copy only of maps that are not channels-last
        for block in self.blocks:
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
        return self.norm(x).permute(0, 3, 1, 2)
