"""The parts of SMP's MiT encoders and of its Segformer decoder, as subclasses with the same parameters.

Written against the modules' structure as it shows at run time; see `ops.linear` for how maps are laid out.
"""

import copy
import functools

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders import mix_transformer as smp_mit
from timm.layers import DropPath
from torch import nn

from vitseg_zoo.architectures.fused_segformer import FusedSegformer
from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.ops.dense_conv import dense_conv
from vitseg_zoo.ops.dispatch import Layer, reason_to_call
from vitseg_zoo.ops.linear import linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import is_mix_conv, mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable


class FastLayerNorm(NotScriptable, smp_mit.LayerNorm):
    """A layer norm over the channels of maps (B, C, H, W) that are channels-last in memory."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim != 4:  # tokens, of a block's original code
            return super().forward(x)
        return nn.LayerNorm.forward(self, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    @property
    def of_positions(self) -> Layer:
        """The same norm, parameters and hooks included, for maps (B, H, W, C)."""
        if torch.compiler.is_compiling():  # which does not follow copies
            return functools.partial(nn.LayerNorm.forward, self)
        norm = copy.copy(self)
        norm.__class__ = nn.LayerNorm
        return norm


class FastBlock(NotScriptable, smp_mit.Block):
    """A block of SMP's MiT on channels-last maps (B, C, H, W); the original where a part changed."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.why_plain() is not None:
            return super().forward(x)
        attn, mlp = self.attn, self.mlp
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (B, H, W, C)
        reduces = attn.sr_ratio > 1
        x = mix_attention(
            x,
            norm=self.norm1.of_positions,
            q=attn.q,
            sr=attn.sr if reduces else None,
            sr_norm=attn.norm.of_positions if reduces else None,
            kv=lambda reduced: linear(attn.kv, reduced).split([attn.dim, attn.dim], dim=-1),
            proj=attn.proj,
            drop=attn.proj_drop,
            drop_path=self.drop_path,
            num_heads=attn.num_heads,
            dropout_p=attn.attn_drop.p if attn.attn_drop.training else 0.0,
        )
        return mix_ffn(
            x,
            norm=self.norm2.of_positions,
            fc1=mlp.fc1,
            dwconv=mlp.dwconv.dwconv,
            act=mlp.act,
            drop=mlp.drop,
            fc2=mlp.fc2,
            drop_path=self.drop_path,
        ).permute(0, 3, 1, 2)

    def why_plain(self) -> str | None:
        """Say why the block runs SMP's own code; None if it is fast."""
        attn, mlp = self.attn, self.mlp
        reason = reason_to_call(
            (self.norm1, FastLayerNorm),
            (attn, smp_mit.Attention),
            (self.drop_path, _DROP_PATHS),
            (self.norm2, FastLayerNorm),
            (mlp, smp_mit.Mlp),
        )
        reason = reason or reason_to_call(
            (attn.q, nn.Linear),
            (attn.kv, nn.Linear),
            (attn.attn_drop, nn.Dropout),
            (attn.proj, nn.Linear),
            (attn.proj_drop, nn.Dropout),
            *([(attn.sr, nn.Conv2d), (attn.norm, FastLayerNorm)] if attn.sr_ratio > 1 else []),
            (mlp.fc1, nn.Linear),
            (mlp.dwconv, smp_mit.DWConv),
            (mlp.act, nn.GELU),
            (mlp.drop, nn.Dropout),
            (mlp.fc2, nn.Linear),
        )
        reason = reason or reason_to_call((mlp.dwconv.dwconv, nn.Conv2d))
        if reason is None and attn.scale != (attn.q.out_features // attn.num_heads) ** -0.5:
            return f"an attention scale of {attn.scale}"
        if reason is None and not is_mix_conv(mlp.dwconv.dwconv):
            return "another convolution in Mix-FFN"
        return reason


_DROP_PATHS = (DropPath, nn.Identity)


class FastOverlapPatchEmbed(NotScriptable, smp_mit.OverlapPatchEmbed):
    """The patch embedding of SMP's MiT, (B, C, H, W) to (B, D, H / stride, W / stride)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.why_plain() is not None:
            return super().forward(x)
        return self.norm(dense_conv(self.proj, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def why_plain(self) -> str | None:
        """Say why the embedding runs SMP's own code; None if it is fast."""
        return reason_to_call((self.proj, nn.Conv2d), (self.norm, FastLayerNorm))


class FastMixVisionTransformerEncoder(NotScriptable, smp_mit.MixVisionTransformerEncoder):
    """SMP's MiT encoder, with its levels: the image, an empty one at stride 2, and the stages."""

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        batch, _, height, width = x.shape
        features = [x, x.new_empty((batch, 0, height // 2, width // 2))][: self._depth + 1]
        for i in range(1, self._depth):
            x = getattr(self, f"block{i}")(getattr(self, f"patch_embed{i}")(x))
            x = getattr(self, f"norm{i}")(x)
            features.append(x)
        return features


class FastSegformerDecoder(NotScriptable, FusedSegformerDecoder):
    """SMP's all-MLP decoder, fused; the original where a part changed."""


class Segformer(NotScriptable, smp.Segformer):
    """`smp.Segformer` with the forward pass of `FusedSegformer`.

    It has the name of SMP's, which `save_pretrained` and `save_model` write and loading looks up.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(self.decoder, FastSegformerDecoder):  # which the user exchanged
            return super().forward(x)
        return FusedSegformer.forward(self, x)


FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    smp_mit.LayerNorm: FastLayerNorm,
    smp_mit.Block: FastBlock,
    smp_mit.OverlapPatchEmbed: FastOverlapPatchEmbed,
    smp_mit.MixVisionTransformerEncoder: FastMixVisionTransformerEncoder,
    SegformerDecoder: FastSegformerDecoder,
    smp.Segformer: Segformer,
}
