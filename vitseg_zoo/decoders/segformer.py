"""SegFormer's all-MLP head: SMP's, and computed in another order where that is the same.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.2. The plain form is that of SMP's `SegformerDecoder` (MIT
license), which `FusedSegformerDecoder` extends, so that state dicts fit in both directions:

    fuse(concatenate(resample(mlp_i(x_i)) for each level i)).

The fast one, `ops.segformer_head`, multiplies each level once, at its own resolution.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base.modules import Conv2dReLU
from segmentation_models_pytorch.decoders.segformer.decoder import MLP, SegformerDecoder
from torch import nn

from vitseg_zoo.ops.dispatch import Layer, reason_to_call
from vitseg_zoo.ops.segformer_head import (
    HeadRows,
    fuse_head,
    fused_head,
    reason_not_to_fuse,
    uses_batch_statistics,
)


class FusedSegformerDecoder(SegformerDecoder):
    """The all-MLP head, several times faster than the original at equal outputs.

    Args:
        encoder_channels: Channels of the image and of each level; a level of 0 channels is left out.
        encoder_depth: Number of levels, at least 3.
        segmentation_channels: Channels E of the head.
        dropout: Probability of dropping a channel of the output, 0.1 in the paper; SMP has none.

    Raises:
        ValueError: If `encoder_depth` is less than 3.

    Example:
        >>> head = FusedSegformerDecoder([3, 0, 32, 64, 160, 256], segmentation_channels=64)
        >>> features = [torch.rand(1, c, 64 // s, 64 // s) for c, s in [(3, 1), (0, 2), (32, 4), (64, 8)]]
        >>> features += [torch.rand(1, 160, 4, 4), torch.rand(1, 256, 2, 2)]
        >>> head(features).shape
        torch.Size([1, 64, 16, 16])
    """

    dropout = 0.0  # of heads that were made as SMP's and became this class

    def __init__(
        self,
        encoder_channels: list[int],
        encoder_depth: int = 5,
        segmentation_channels: int = 256,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(encoder_channels, encoder_depth, segmentation_channels)
        self.dropout = dropout

    def forward(
        self,
        features: Sequence[torch.Tensor],
        classify: Layer = nn.Identity(),  # noqa: B008
    ) -> torch.Tensor:
        """Map the image and its levels to (B, E, H / 4, W / 4), or to what `classify` makes of each pixel."""
        if self.why_plain() is not None:
            return classify(self._drop(super().forward(features)))
        if self.dropout and self.training:
            return classify(self._drop(fused_head(**self._parts(features))))
        return fused_head(**self._parts(features), classify=classify)

    def rows(self, features: Sequence[torch.Tensor]) -> HeadRows | None:
        """Return the output in evaluation as rows that are computed when asked for; None if it cannot be."""
        if self.why_plain() is not None:
            return None
        parts = self._parts(features)
        if uses_batch_statistics(parts["norm"]) or parts["maps"][0].dtype is torch.float16:
            return None
        return HeadRows(
            parts["maps"], *fuse_head(parts["linears"], parts["fuse"], parts["norm"]), parts["size"]
        )

    def why_plain(self) -> str | None:
        """Say why the head computes as SMP's does, layer by layer; None if it is fused."""
        stages, fuse_stage = self.mlp_stage, self.fuse_stage
        reason = reason_to_call(
            (stages, nn.ModuleList), (fuse_stage, Conv2dReLU), *((stage, MLP) for stage in stages)
        )
        if reason is not None:
            return reason
        if len(fuse_stage) != 3:
            return f"{len(fuse_stage)} layers in the fusion in place of 3"
        return reason_not_to_fuse([stage.linear for stage in stages], *fuse_stage)

    def _drop(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout2d(x, self.dropout, self.training) if self.dropout else x

    def _parts(self, features: Sequence[torch.Tensor]) -> dict[str, Any]:
        """Give the arguments of `fused_head`, coarse to fine as the weights are ordered."""
        return {
            "maps": features[-len(self.mlp_stage) :][::-1],
            "linears": [stage.linear for stage in self.mlp_stage],
            "fuse": self.fuse_stage[0],
            "norm": self.fuse_stage[1],
            "size": [side // 4 for side in features[0].shape[2:]],
        }
