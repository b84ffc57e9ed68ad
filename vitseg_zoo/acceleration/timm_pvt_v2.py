"""timm's PVTv2 (`pvt_v2.py`, Apache-2.0): its parts as subclasses with the same parameters and interface."""

import torch
from timm.models import checkpoint, pvt_v2
from torch import nn

from vitseg_zoo.ops.dispatch import conv_nhwc, is_plain, linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable


class FastBlock(NotScriptable, pvt_v2.Block):
    """A block of timm's PVTv2 on tokens (B, H * W, C), also "linear"; with hooks the original."""

    def forward(self, x: torch.Tensor, feat_size: list[int]) -> torch.Tensor:
        attn, mlp = self.attn, self.mlp
        if not is_plain((), around=(attn, mlp)):
            return super().forward(x, feat_size)
        x = x.unflatten(1, tuple(feat_size))  # (B, H, W, C)
        x = mix_attention(
            x,
            self.norm1,
            attn.q,
            attn.sr if attn.pool is None else None,
            attn.norm,
            self._keys_values,
            attn.proj,
            attn.proj_drop,
            self.drop_path1,
            attn.num_heads,
            attn.attn_drop.p if self.training else 0.0,
        )
        return mix_ffn(
            x,
            self.norm2,
            lambda t: mlp.relu(linear(mlp.fc1, t)),
            mlp.dwconv,
            mlp.act,
            mlp.drop,
            mlp.fc2,
            self.drop_path2,
        ).flatten(1, 2)

    def _keys_values(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        attn = self.attn
        if attn.pool is not None:  # "linear" attention, to 7 x 7 positions
            x = attn.act(attn.norm(conv_nhwc(attn.sr, conv_nhwc(attn.pool, x))))
        return linear(attn.kv, x).chunk(2, dim=-1)


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
