"""SegFormer's all-MLP head, computed at each level's own resolution.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.2. The parameters of `FusedSegformerDecoder` are those of SMP's
`SegformerDecoder` (MIT license), which it extends, so that state dicts fit in both directions.

Difference from the original, which projects each level to E channels (W_i, b_i), resamples all to a quarter
of the image, concatenates, and fuses them by a 1 x 1 convolution F, a batch norm and a ReLU: bilinear weights
sum to one, so resampling commutes with linear layers on channels and with their biases, and

    F cat_i(up(W_i x_i + b_i)) = sum_i up(F_i W_i x_i) + sum_i F_i b_i.

The products F_i W_i are small and made anew in each pass: parameters, gradients and batch statistics are
those of the original, and nothing can be out of date. In evaluation the batch norm is folded into them too.
On a CPU the output is computed in strips of rows; see `head_rows`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from torch import nn

from vitseg_zoo.ops.bilinear import resample
from vitseg_zoo.ops.dispatch import Layer, is_plain, runs_eagerly_on_cpu
from vitseg_zoo.ops.segformer_head import HeadRows, classified_head


def fuse_head(
    linears: Sequence[nn.Linear], fuse: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Multiply the projections of the levels with the fusion, and with the batch norm in evaluation.

    Args:
        linears: The projection of each level, C_i to E channels.
        fuse: 1 x 1 convolution of the concatenated levels to E channels; its columns are in the same order.
        norm: Its batch norm.

    Returns:
        The products, (E, C_i) each, and the bias (E,), in full precision under autocast too.
    """
    with torch.autocast(fuse.weight.device.type, enabled=False):
        parts = fuse.weight.flatten(1).chunk(len(linears), dim=1)  # (E, E) each
        bias = sum(part @ linear.bias for part, linear in zip(parts, linears, strict=True))
        if fuse.bias is not None:
            bias = bias + fuse.bias
        if not uses_batch_statistics(norm):
            scale = torch.rsqrt(norm.running_var + norm.eps)
            shift = -norm.running_mean * scale
            if norm.affine:
                scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
            parts = [scale[:, None] * part for part in parts]
            bias = scale * bias + shift
        return [part @ linear.weight for part, linear in zip(parts, linears, strict=True)], bias


def uses_batch_statistics(norm: nn.BatchNorm2d) -> bool:
    """Say whether a batch norm normalizes by the batch at hand, as in training: it cannot be folded then."""
    return norm.training or norm.running_mean is None


def fused_head(
    maps: Sequence[torch.Tensor],
    linears: Sequence[nn.Linear],
    fuse: nn.Conv2d,
    norm: nn.BatchNorm2d,
    size: Sequence[int],
    classify: Layer = nn.Identity(),  # noqa: B008
) -> torch.Tensor:
    """Project levels, resample them to one size, fuse, normalize and classify them.

    Args:
        maps: One (B, C_i, H_i, W_i) a level, coarse to fine.
        linears: See `fuse_head`; in the order of `maps`.
        fuse: See `fuse_head`.
        norm: See `fuse_head`.
        size: Height H and width W of the output.
        classify: What is applied to the output (B, E, H, W), pixel by pixel.

    Returns:
        (B, classes, H, W), or (B, E, H, W) behind the ReLU without `classify`.
    """
    weights, bias = fuse_head(linears, fuse, norm)
    if runs_eagerly_on_cpu(maps[0]):
        if not (uses_batch_statistics(norm) or torch.is_grad_enabled()):
            return HeadRows(maps, weights, bias, size).whole(classify)
        if _trains(norm, classify, size) and not torch.is_autocast_enabled("cpu"):
            return classified_head(HeadRows(maps, weights, bias, size), norm, classify)
    output = None
    for level, weight in zip(maps[::-1], weights[::-1], strict=True):
        # The finest level takes the bias, and the others are added to it in place.
        level = _project(level, weight, bias if output is None else None, size)
        output = level if output is None else output.add_(level)
    output = F.relu_(norm(output) if uses_batch_statistics(norm) else output)
    return classify(output)


def _trains(norm: nn.BatchNorm2d, classify: Layer, size: Sequence[int]) -> bool:
    """Say whether `classified_head` has the gradients: plain layers, more than one value for each channel."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.affine
        and uses_batch_statistics(norm)
        and isinstance(classify, nn.Conv2d)
        and classify.kernel_size == (1, 1)
        and is_plain([norm, classify])
        and min(size) > 1
    )


def _project(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, size: Sequence[int]
) -> torch.Tensor:
    """Return a linear layer on channels, and resampling: (B, C, h, w) to (B, E, *size)."""
    finer = x.shape[2] * x.shape[3] > size[0] * size[1]
    if finer:  # resampled first, which leaves less to project
        x = resample(x, size)
    x = F.conv2d(x, weight[:, :, None, None], bias)
    return x if finer else resample(x, size)


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
        """Map the image and its levels to (B, E, H / 4, W / 4), or to what `classify` makes of it."""
        if self.dropout and self.training:
            output = fused_head(*self._head(features))
            return classify(F.dropout2d(output, self.dropout))
        return fused_head(*self._head(features), classify)

    def rows(self, features: Sequence[torch.Tensor]) -> HeadRows | None:
        """Return the output in evaluation as rows, computed when asked for; None where it cannot be."""
        maps, linears, fuse, norm, size = self._head(features)
        if uses_batch_statistics(norm):
            return None
        return HeadRows(maps, *fuse_head(linears, fuse, norm), size)

    def _head(self, features: Sequence[torch.Tensor]) -> tuple:
        """Return the arguments of `fused_head`, coarse to fine as the weights are ordered."""
        maps = features[-len(self.mlp_stage) :][::-1]
        linears = [stage.linear for stage in self.mlp_stage]
        size = [side // 4 for side in features[0].shape[2:]]
        return maps, linears, self.fuse_stage[0], self.fuse_stage[1], size
