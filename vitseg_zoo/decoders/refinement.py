"""A refinement of logits by what the image itself shows at strides 4 and 2, for heads that read tokens.

Tokens of 16 x 16 pixels know where things are, not where they end. Two small convolutional steps correct the
logits, first at stride 4, then at stride 2. Prior art: the residual corrections of "Laplacian Pyramid
Reconstruction and Refinement for Semantic Segmentation", https://arxiv.org/abs/1605.02264. Written from the
paper; differences: the maps of the image are of a path of its own, not a pretrained CNN's; nothing is masked.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

_HIDDEN = 64  # channels of a correction


class LogitRefinement(nn.Module):
    """Correct logits at strides 4 and 2 by maps of the image; at the start of a training nothing changes.

    Args:
        details: Maps an image (B, C, H, W) to its maps at strides 2 and 4.
        channels: Channels of the two.
        classes: Number of classes.

    Example:
        >>> class Pixels(nn.Module):
        ...     def forward(self, x):
        ...         return [x[..., ::2, ::2], x[..., ::4, ::4]]
        >>> refinement = LogitRefinement(Pixels(), channels=[3, 3], classes=5)
        >>> refinement(torch.rand(1, 3, 50, 64), torch.rand(1, 5, 50, 64)).shape
        torch.Size([1, 5, 50, 64])
    """

    def __init__(self, details: nn.Module, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.details = details
        self.corrections = nn.ModuleList(Correction(width, classes) for width in reversed(channels))
        self.activation: nn.Module = nn.Identity()

    def forward(self, x: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) and their logits (B, classes, H, W) to refined ones of the same shape."""
        logits = F.avg_pool2d(logits, 4, ceil_mode=True)
        for detail, correction in zip(reversed(self.details(x)), self.corrections, strict=True):
            logits = _resize(logits, detail)
            logits = logits + correction(torch.cat([logits, detail], dim=1))
        return self.activation(_resize(logits, x))


class Correction(nn.Sequential):
    """A 3 x 3 convolution, batch norm, ReLU, and a 1 x 1 convolution to the classes that starts at zero."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(classes + channels, _HIDDEN, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(_HIDDEN),
            nn.ReLU(inplace=True),
            nn.Conv2d(_HIDDEN, classes, kernel_size=1),
        )
        nn.init.zeros_(self[-1].weight)
        nn.init.zeros_(self[-1].bias)


def _resize(logits: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits, size=like.shape[2:], mode="bilinear", align_corners=False)
