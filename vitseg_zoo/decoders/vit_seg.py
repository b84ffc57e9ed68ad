"""The patch head of ViT-seg: every token becomes the logits of its own patch of pixels.

Source: the article series "Efficient Image Segmentation Using PyTorch", whose head is the linear one. The
head with a hidden layer is the first improvement that the article suggests.
"""

from collections.abc import Callable
from typing import Any

import torch
from segmentation_models_pytorch.base.modules import Activation
from torch import nn


class TokenMLP(nn.Sequential):
    """A hidden layer for each token of a map (B, H, W, C): linear, then GELU, as wide as the tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__(nn.Linear(channels, channels), nn.GELU())


class PatchDecoder(nn.Module):
    """Picks the last feature map of an encoder as tokens, and passes them through a hidden layer if asked.

    Args:
        channels: Channels of the encoder's last map.
        head: `"linear"` leaves tokens as they are, `"mlp"` adds a linear layer of the same width and a GELU.

    Raises:
        ValueError: If `head` is neither.
    """

    def __init__(self, channels: int, head: str = "linear") -> None:
        super().__init__()
        if head not in ("linear", "mlp"):
            raise ValueError(f"decoder_head should be 'linear' or 'mlp', got {head!r}.")
        self.hidden = TokenMLP(channels) if head == "mlp" else nn.Identity()

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map features, the last of them (B, D, h, w), to tokens (B, h, w, D)."""
        return self.hidden(features[-1].permute(0, 2, 3, 1))


class PatchHead(nn.Sequential):
    """One linear layer from a token to the logits of its patch, folded back as (class, y, x).

    Args:
        channels: Channels of a token.
        classes: Number of classes.
        patch_size: Side of a patch in pixels.
        activation: Name of an SMP activation, a callable, or None.
    """

    def __init__(
        self, channels: int, classes: int, patch_size: int, activation: str | Callable[..., Any] | None = None
    ) -> None:
        super().__init__(
            nn.Linear(channels, classes * patch_size**2),
            ChannelsFirst(),
            JoinPatches(patch_size),
            Activation(activation),
        )


class ChannelsFirst(nn.Module):
    """(B, h, w, C) to (B, C, h, w), without copying."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.permute(0, 3, 1, 2)


class JoinPatches(nn.PixelShuffle):
    """(B, C p p, h, w) to (B, C, h p, w p): what `nn.Fold` computes for patches that do not overlap."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        # The gradient of this is one copy; that of a pixel shuffle of a map that is channels-last is two.
        side = self.upscale_factor
        x = x.permute(0, 2, 3, 1).unflatten(3, (-1, side, side)).permute(0, 3, 1, 4, 2, 5)
        return x.flatten(4, 5).flatten(2, 3)
