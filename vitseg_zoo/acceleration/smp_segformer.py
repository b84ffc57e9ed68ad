"""The parts of SMP's MiT encoders and of its Segformer decoder, as subclasses with the same parameters.

Written against the modules' structure as it shows at run time; see `mix_ops` for how maps are laid out.
"""

import copy
import functools

import segmentation_models_pytorch as smp
import torch
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.encoders import mix_transformer as smp_mit
from torch import nn

from vitseg_zoo.architectures.fused_segformer import FusedSegformer
from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.ops.dense_conv import dense_conv
from vitseg_zoo.ops.dispatch import Layer, is_plain, linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable
from vitseg_zoo.ops.segformer_head import HeadRows


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
    """A block of SMP's MiT on maps (B, C, H, W), channels-last in memory; with hooks the original."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        attn, mlp = self.attn, self.mlp
        if not is_plain((), around=(attn, mlp)):
            return super().forward(x)
        x = x.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1)  # (B, H, W, C)
        reduces = attn.sr_ratio > 1
        x = mix_attention(
            x,
            self.norm1.of_positions,
            attn.q,
            attn.sr if reduces else None,
            attn.norm.of_positions if reduces else None,
            lambda reduced: linear(attn.kv, reduced).chunk(2, dim=-1),
            attn.proj,
            attn.proj_drop,
            self.drop_path,
            attn.num_heads,
            attn.attn_drop.p if self.training else 0.0,
        )
        return mix_ffn(
            x, self.norm2.of_positions, mlp.fc1, mlp.dwconv.dwconv, mlp.act, mlp.drop, mlp.fc2, self.drop_path
        ).permute(0, 3, 1, 2)


class FastOverlapPatchEmbed(NotScriptable, smp_mit.OverlapPatchEmbed):
    """The patch embedding of SMP's MiT, (B, C, H, W) to (B, D, H / stride, W / stride)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(dense_conv(self.proj, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


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
    """SMP's all-MLP decoder, fused; the original where its layers have hooks or adapters."""

    def forward(
        self,
        features: list[torch.Tensor],
        classify: Layer = nn.Identity(),  # noqa: B008
    ) -> torch.Tensor:
        if self._is_plain():
            return super().forward(features, classify)
        return classify(SegformerDecoder.forward(self, features))

    def rows(self, features: list[torch.Tensor]) -> HeadRows | None:
        return super().rows(features) if self._is_plain() else None

    def _is_plain(self) -> bool:
        linears = [stage.linear for stage in self.mlp_stage]
        return is_plain(
            [self.fuse_stage[0], self.fuse_stage[1], *linears], [self.fuse_stage, *self.mlp_stage]
        )


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
