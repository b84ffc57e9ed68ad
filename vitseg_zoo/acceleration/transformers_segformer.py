"""Hugging Face's SegFormer (transformers 5, Apache-2.0): its parts as subclasses with the same interface."""

from typing import Any

import torch
from torch import nn
from transformers.activations import GELUActivation
from transformers.models.segformer.modeling_segformer import (
    SegformerAttention,
    SegformerDecodeHead,
    SegformerDepthWiseConv,
    SegformerDropPath,
    SegformerLayer,
    SegformerMixMLP,
    SegformerMLP,
    SegformerSequenceReduction,
    SegformerStage,
)

from vitseg_zoo.ops.dispatch import may_bypass, reason_to_call
from vitseg_zoo.ops.linear import linear
from vitseg_zoo.ops.mix_attention import mix_attention
from vitseg_zoo.ops.mix_ffn import is_mix_conv, mix_ffn
from vitseg_zoo.ops.not_scriptable import NotScriptable
from vitseg_zoo.ops.segformer_head import fused_head, is_pixelwise, reason_not_to_fuse


class FastSegformerLayer(NotScriptable, SegformerLayer):
    """A block on tokens (B, H * W, C); the original where a part changed or attention maps are asked for."""

    def forward(self, hidden_states: torch.Tensor, height: int, width: int, **kwargs: Any) -> torch.Tensor:
        attn, mlp = self.attention, self.mlp
        asked = kwargs.get("output_attentions", getattr(attn.config, "output_attentions", False))
        if asked or kwargs.get("attention_mask") is not None or self.why_plain() is not None:
            return super().forward(hidden_states, height, width, **kwargs)
        x = hidden_states.unflatten(1, (height, width))  # (B, H, W, C)
        reduction = attn.sequence_reduction if attn.sequence_reduction_ratio > 1 else None
        x = mix_attention(
            x,
            norm=self.layernorm_before,
            q=attn.q_proj,
            sr=None if reduction is None else reduction.sequence_reduction,
            sr_norm=None if reduction is None else reduction.layer_norm,
            kv=lambda reduced: (linear(attn.k_proj, reduced), linear(attn.v_proj, reduced)),
            proj=attn.o_proj,
            drop=self.hidden_dropout,
            drop_path=self.drop_path,
            num_heads=attn.num_attention_heads,
            dropout_p=attn.attention_dropout if attn.training else 0.0,
        )
        return mix_ffn(
            x,
            norm=self.layernorm_after,
            fc1=mlp.fc1,
            dwconv=mlp.dwconv.dwconv,
            act=_GELU,
            drop=mlp.dropout,
            fc2=mlp.fc2,
            drop_path=self.drop_path,
        ).flatten(1, 2)

    def why_plain(self) -> str | None:
        """Say why the block runs transformers' own code; None if it is fast."""
        attn, mlp = self.attention, self.mlp
        reason = reason_to_call(
            (self.layernorm_before, nn.LayerNorm),
            (attn, SegformerAttention),
            (self.hidden_dropout, nn.Dropout),
            (self.drop_path, (SegformerDropPath, nn.Identity)),
            (self.layernorm_after, nn.LayerNorm),
            (mlp, SegformerMixMLP),
        )
        reason = reason or reason_to_call(
            (attn.q_proj, nn.Linear),
            (attn.k_proj, nn.Linear),
            (attn.v_proj, nn.Linear),
            (attn.o_proj, nn.Linear),
            (mlp.fc1, nn.Linear),
            (mlp.dwconv, SegformerDepthWiseConv),
            (mlp.activation_fn, (GELUActivation, nn.GELU)),
            (mlp.dropout, nn.Dropout),
            (mlp.fc2, nn.Linear),
        )
        reason = reason or reason_to_call((mlp.dwconv.dwconv, nn.Conv2d))
        if reason is None and attn.sequence_reduction_ratio > 1:
            reduction = attn.sequence_reduction
            reason = reason_to_call((reduction, SegformerSequenceReduction))
            reason = reason or reason_to_call(
                (reduction.sequence_reduction, nn.Conv2d), (reduction.layer_norm, nn.LayerNorm)
            )
        if reason is not None:
            return reason
        if getattr(mlp.activation_fn, "approximate", "none") != "none" or (
            type(mlp.activation_fn) is GELUActivation and mlp.activation_fn.act is not nn.functional.gelu
        ):
            return "another activation"
        if attn.config._attn_implementation not in (None, "eager", "sdpa"):
            return f"the attention of {attn.config._attn_implementation!r}"
        if attn.scaling != (attn.q_proj.out_features // attn.num_attention_heads) ** -0.5:
            return f"an attention scale of {attn.scaling}"
        return None if is_mix_conv(mlp.dwconv.dwconv) else "another convolution in Mix-FFN"


# PyTorch's own in place of transformers' module that calls it: Mix-FFN has a fast form for that.
_GELU = nn.GELU()


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
    """The all-MLP head, fused; the original where a part changed, or a level comes as tokens."""

    def forward(self, encoder_hidden_states: tuple[torch.Tensor, ...], **kwargs: Any) -> torch.Tensor:
        if any(level.ndim == 3 for level in encoder_hidden_states) or self.why_plain() is not None:
            return super().forward(encoder_hidden_states, **kwargs)
        head = (self.dropout, self.classifier)
        parts = dict(
            linears=[projection.proj for projection in self.linear_projections][::-1],
            fuse=self.linear_fuse,
            norm=self.batch_norm,
            size=encoder_hidden_states[0].shape[2:],
        )
        if is_pixelwise(head[1]) and may_bypass((head[0], nn.Dropout), (head[1], nn.Conv2d)):
            # A part of the map at a time.
            output = fused_head(encoder_hidden_states[::-1], classify=nn.Sequential(*head), **parts)
        else:
            output = head[1](head[0](fused_head(encoder_hidden_states[::-1], **parts)))
        return output.contiguous()

    def why_plain(self) -> str | None:
        """Say why the head runs transformers' own code; None if it is fused."""
        projections = list(self.linear_projections)
        reason = reason_to_call(
            (self.linear_projections, nn.ModuleList),
            *((projection, SegformerMLP) for projection in projections),
        )
        return reason or reason_not_to_fuse(
            [projection.proj for projection in projections],
            self.linear_fuse,
            self.batch_norm,
            self.activation,
        )


FAST_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    SegformerLayer: FastSegformerLayer,
    SegformerStage: FastSegformerStage,
    SegformerDecodeHead: FastSegformerDecodeHead,
}
