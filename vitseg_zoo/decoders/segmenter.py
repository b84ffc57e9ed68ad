"""Segmenter's two decoders: a linear layer on each patch, and the mask transformer.

Paper: "Segmenter: Transformer for Semantic Segmentation" (Strudel et al., ICCV 2021),
https://arxiv.org/abs/2105.05633, section 3.2. Written from the paper, on timm's `Block` (Apache-2.0).

Differences from the paper: class scores of patches are left as logits, and the softmax to the loss, as SMP
does; the layer norm over the classes comes before the upsampling, where it costs less; a single class has a
learned scale in its place.
"""

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.vision_transformer import Block
from torch import nn


class LinearDecoder(nn.Conv2d):
    """Gives each patch a score for each class with one linear layer: the paper's baseline.

    Args:
        channels: Channels of the encoder's last map.
        classes: Number of classes.
    """

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__(channels, classes, kernel_size=1)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map features, the last of them (B, D, h, w), to scores (B, classes, h, w)."""
        return super().forward(features[-1])


class MaskTransformerDecoder(nn.Module):
    """Lets patches and one learned token for each class attend to each other; their cosines are the masks.

    Args:
        channels: Channels of the encoder's last map, also the width of the decoder.
        classes: Number of classes.
        depth: Transformer blocks, two in the paper.
        num_heads: Attention heads, a divisor of `channels`; by default of 64 channels each, as in the paper.
        dropout: Dropout in the blocks, 0.1 in the paper.

    Example:
        >>> decoder = MaskTransformerDecoder(channels=192, classes=5)
        >>> decoder([torch.rand(1, 192, 8, 6)]).shape
        torch.Size([1, 5, 8, 6])
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        depth: int = 2,
        num_heads: int | None = None,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        num_heads = num_heads or max(1, channels // 64)
        if channels % num_heads:
            raise ValueError(
                f"The decoder's {channels} channels cannot be divided among {num_heads} heads: "
                "choose decoder_num_heads among the divisors."
            )
        self.proj_in = nn.Linear(channels, channels)
        self.class_tokens = nn.Parameter(torch.empty(1, classes, channels))
        self.blocks = nn.Sequential(
            *(Block(channels, num_heads, qkv_bias=True, proj_drop=dropout) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(channels)
        # Linear maps without bias, scaled so that they keep a token's length on average.
        self.proj_patch = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        self.proj_class = nn.Parameter(channels**-0.5 * torch.randn(channels, channels))
        trunc_normal_(self.class_tokens, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.mask_norm: nn.Module = nn.LayerNorm(classes)
        if classes == 1:  # nothing to compare with: scaled to the unit variance that the norm would give
            self.mask_norm = nn.Linear(1, 1)
            nn.init.constant_(self.mask_norm.weight, channels**0.5)
            nn.init.zeros_(self.mask_norm.bias)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimizer should not decay, in timm's form."""
        return {"class_tokens"}

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map features, the last of them (B, D, h, w), to scores of the patches, (B, classes, h, w)."""
        batch, _, height, width = features[-1].shape
        patches = self.proj_in(features[-1].flatten(2).transpose(1, 2))  # (B, h*w, D)
        tokens = torch.cat([patches, self.class_tokens.expand(batch, -1, -1)], dim=1)  # (B, h*w + K, D)
        tokens = self.norm(self.blocks(tokens))
        patches, classes = tokens.split([height * width, self.class_tokens.shape[1]], dim=1)
        patches = F.normalize(patches @ self.proj_patch, dim=-1)
        classes = F.normalize(classes @ self.proj_class, dim=-1)
        masks = self.mask_norm(patches @ classes.transpose(1, 2))  # (B, h*w, K)
        return masks.transpose(1, 2).unflatten(2, (height, width))
