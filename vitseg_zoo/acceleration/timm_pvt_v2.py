"""timm's PVTv2 (`pvt_v2.py`, Apache-2.0): its parts as subclasses with the same parameters and interface."""

from types import NoneType

import torch
from timm.layers import DropPath, LayerNorm
from timm.models import checkpoint, pvt_v2
from torch import nn

from vitseg_zoo.ops.dispatch import reason_to_call
from vitseg_zoo.ops.linear import conv_nhwc, linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import is_mix_conv, mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable

_DROP_PATHS = (DropPath, nn.Identity)
_LAYER_NORMS = (nn.LayerNorm, LayerNorm)  # timm's calls PyTorch's


class FastBlock(NotScriptable, pvt_v2.Block):
    """A block of timm's PVTv2 on tokens (B, H * W, C), also "linear"; the original where a part changed."""

    def forward(self, x: torch.Tensor, feat_size: list[int]) -> torch.Tensor:
        if self.why_plain() is not None:
            return super().forward(x, feat_size)
        attn, mlp = self.attn, self.mlp
        x = x.unflatten(1, tuple(feat_size))  # (B, H, W, C)
        x = mix_attention(
            x,
            norm=self.norm1,
            q=attn.q,
            sr=attn.sr if attn.pool is None else None,
            sr_norm=attn.norm,
            kv=self._keys_values,
            proj=attn.proj,
            drop=attn.proj_drop,
            drop_path=self.drop_path1,
            num_heads=attn.num_heads,
            dropout_p=attn.attn_drop.p if attn.training else 0.0,
        )
        return mix_ffn(
            x,
            norm=self.norm2,
            fc1=mlp.fc1 if type(mlp.relu) is nn.Identity else lambda t: mlp.relu(linear(mlp.fc1, t)),
            dwconv=mlp.dwconv,
            act=mlp.act,
            drop=mlp.drop,
            fc2=mlp.fc2,
            drop_path=self.drop_path2,
        ).flatten(1, 2)

    def why_plain(self) -> str | None:
        """Say why the block runs timm's own code; None if it is fast."""
        attn, mlp = self.attn, self.mlp
        reason = reason_to_call((attn, pvt_v2.Attention), (mlp, pvt_v2.MlpWithDepthwiseConv))
        reason = reason or reason_to_call(
            (self.norm1, _LAYER_NORMS),
            (attn.q, nn.Linear),
            (attn.kv, nn.Linear),
            (attn.attn_drop, nn.Dropout),
            (attn.proj, nn.Linear),
            (attn.proj_drop, nn.Dropout),
            (attn.pool, (nn.AdaptiveAvgPool2d, NoneType)),
            (attn.sr, (nn.Conv2d, NoneType)),
            (attn.norm, (*_LAYER_NORMS, NoneType)),
            (attn.act, (nn.GELU, NoneType)),
            (self.drop_path1, _DROP_PATHS),
            (self.norm2, _LAYER_NORMS),
            (mlp.fc1, nn.Linear),
            (mlp.relu, (nn.Identity, nn.ReLU)),
            (mlp.dwconv, nn.Conv2d),
            (mlp.act, nn.GELU),
            (mlp.drop, nn.Dropout),
            (mlp.fc2, nn.Linear),
            (self.drop_path2, _DROP_PATHS),
        )
        if reason is None and attn.scale != (attn.q.out_features // attn.num_heads) ** -0.5:
            return f"an attention scale of {attn.scale}"
        if reason is None and not is_mix_conv(mlp.dwconv):
            return "another convolution in Mix-FFN"
        return reason

    def _keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attn = self.attn
        if attn.pool is not None:  # "linear" attention, to 7 x 7 positions
            x = attn.act(attn.norm(conv_nhwc(attn.sr, conv_nhwc(attn.pool, x))))
        return linear(attn.kv, x).split([attn.dim, attn.dim], dim=-1)


class FastStage(NotScriptable, pvt_v2.PyramidVisionTransformerStage):
    """A stage of timm's PVTv2, whose map (B, C, H, W) is channels-last in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.downsample is not None:
            x = self.downsample(x)
        feat_size = x.shape[1:3]  # x is (B, H, W, C)
        x = x.flatten(1, 2)
        for block in self.blocks:
            x = checkpoint(block, x, feat_size) if self.grad_checkpointing else block(x, feat_size)
        return self.norm(x).unflatten(1, tuple(feat_size)).permute(0, 3, 1, 2)


FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    pvt_v2.Block: FastBlock,
    pvt_v2.PyramidVisionTransformerStage: FastStage,
}
