"""SegFormer's all-MLP head, computed at each level's own resolution.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.2. The parameters are those of SMP's `SegformerDecoder` (MIT
licence), which this class extends, so that state dicts fit in both directions.

Difference from the original, which projects each level to E channels (W_i, b_i), upsamples all to a quarter
of the image, concatenates, and fuses them by a 1 x 1 convolution F, a batch norm and a ReLU: bilinear weights
sum to one, so upsampling commutes with linear layers on channels and with their biases, and

    F cat_i(up(W_i x_i + b_i)) = sum_i up(F_i W_i x_i) + sum_i F_i b_i.

The products F_i W_i are small and made anew in each pass: parameters, gradients and batch statistics are
those of the original, and nothing can be out of date. In evaluation the batch norm is folded into them too.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder


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

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Maps the image and its levels to (B, E, H / 4, W / 4)."""
        size = (features[0].shape[2] // 4, features[0].shape[3] // 4)
        levels = features[-len(self.mlp_stage) :][::-1]  # coarse to fine, as the weights are ordered
        norm = self.fuse_stage[1]
        use_batch_statistics = norm.training or norm.running_mean is None
        weights, bias = self._weights(fold_norm=not use_batch_statistics)

        # The finest level is the largest map: it takes the bias, and the others are added to it in place.
        output = _project(levels[-1], weights[-1], bias, size)
        for level, weight in zip(levels[:-1], weights[:-1], strict=True):
            output.add_(_project(level, weight, None, size))
        output = F.relu_(norm(output) if use_batch_statistics else output)
        return F.dropout2d(output, self.dropout, self.training) if self.dropout else output

    def _weights(self, fold_norm: bool) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The products F_i W_i, (E, C_i) each, and the bias (E,), in full precision under autocast too."""
        fuse, norm = self.fuse_stage[0], self.fuse_stage[1]
        with torch.autocast(fuse.weight.device.type, enabled=False):
            parts = fuse.weight.flatten(1).chunk(len(self.mlp_stage), dim=1)  # (E, E) each
            linears = [stage.linear for stage in self.mlp_stage]
            bias = sum(part @ linear.bias for part, linear in zip(parts, linears, strict=True))
            if fuse.bias is not None:
                bias = bias + fuse.bias
            if fold_norm:
                scale = torch.rsqrt(norm.running_var + norm.eps)
                shift = -norm.running_mean * scale
                if norm.affine:
                    scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
                parts = [scale[:, None] * part for part in parts]
                bias = scale * bias + shift
            return [part @ linear.weight for part, linear in zip(parts, linears, strict=True)], bias


def _project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, size: tuple[int, int]
) -> torch.Tensor:
    """A linear layer on channels, then upsampling: (B, C, h, w) to (B, E, *size)."""
    x = F.conv2d(x, weight[:, :, None, None], bias)
    if tuple(x.shape[2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
