"""Hugging Face's SegFormer (transformers 5, Apache-2.0): its parts as subclasses with the same interface."""

from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation
from transformers.models.segformer.modeling_segformer import (
    SegformerDecodeHead,
    SegformerLayer,
    SegformerStage,
)

from vitseg_zoo.decoders.segformer import fused_head
from vitseg_zoo.ops.dispatch import is_plain, linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable


class FastSegformerLayer(NotScriptable, SegformerLayer):
    """A block on tokens (B, H * W, C); the original with hooks or where attention maps are asked for."""

    def forward(self, hidden_states: torch.Tensor, height: int, width: int, **kwargs: Any) -> torch.Tensor:
        attn, mlp = self.attention, self.mlp
        asked = kwargs.get("output_attentions", getattr(attn.config, "output_attentions", False))
        if asked or not is_plain((), around=(attn, mlp)):
            return super().forward(hidden_states, height, width, **kwargs)
        x = hidden_states.unflatten(1, (height, width))  # (B, H, W, C)
        reduction = attn.sequence_reduction if attn.sequence_reduction_ratio > 1 else None
        x = mix_attention(
            x,
            self.layernorm_before,
            attn.q_proj,
            None if reduction is None else reduction.sequence_reduction,
            None if reduction is None else reduction.layer_norm,
            lambda reduced: (linear(attn.k_proj, reduced), linear(attn.v_proj, reduced)),
            attn.o_proj,
            self.hidden_dropout,
            self.drop_path,
            attn.num_attention_heads,
            attn.attention_dropout if self.training else 0.0,
        )
        return mix_ffn(
            x,
            self.layernorm_after,
            mlp.fc1,
            mlp.dwconv.dwconv,
            _activation(mlp.activation_fn),
            mlp.dropout,
            mlp.fc2,
            self.drop_path,
        ).flatten(1, 2)


_GELU = nn.GELU()


def _activation(act: nn.Module) -> nn.Module:
    """Return PyTorch's GELU for transformers' module that calls it: Mix-FFN has a fast form for that."""
    is_gelu = type(act) is GELUActivation and act.act is nn.functional.gelu
    return _GELU if is_gelu and is_plain((), around=(act,)) else act


class FastSegformerStage(NotScriptable, SegformerStage):
    """A stage, whose map (B, C, H, W) is channels-last in memory."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        hidden_states, height, width = self.patch_embeddings(hidden_states)
        for block in self.blocks:
            hidden_states = block(hidden_states, height, width, **kwargs)
        hidden_states = self.layer_norm(hidden_states)
        if not self.reshape:
            return hidden_states
        return hidden_states.unflatten(1, (height, width)).permute(0, 3, 1, 2)


class FastSegformerDecodeHead(NotScriptable, SegformerDecodeHead):
    """The all-MLP head, fused; the original where a level comes as tokens (`reshape_last_stage=False`)."""

    def forward(self, encoder_hidden_states: tuple[torch.Tensor, ...], **kwargs: Any) -> torch.Tensor:
        projections = list(self.linear_projections)
        linears = [projection.proj for projection in projections]
        if any(level.ndim == 3 for level in encoder_hidden_states) or not is_plain(
            [self.linear_fuse, self.batch_norm, *linears], projections
        ):
            return super().forward(encoder_hidden_states, **kwargs)
        return fused_head(
            encoder_hidden_states[::-1],
            linears[::-1],
            self.linear_fuse,
            self.batch_norm,
            encoder_hidden_states[0].shape[2:],
            lambda x: self.classifier(self.dropout(x)),
        ).contiguous()


FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    SegformerLayer: FastSegformerLayer,
    SegformerStage: FastSegformerStage,
    SegformerDecodeHead: FastSegformerDecodeHead,
}
