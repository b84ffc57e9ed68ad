"""EoMT's queries: tokens among a ViT's own that each predict one mask and its class.

Paper: "Your ViT is Secretly an Image Segmentation Model" (Kerssies et al., CVPR 2025),
https://arxiv.org/abs/2503.19108, sections 3.2 and 3.3. Written from the paper.

Differences from the paper: semantic inference upsamples class scores instead of every query's mask, which
costs `classes / num_queries` of it, and gives their logarithm, so that the output is used like any model's
logits.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d, trunc_normal_
from torch import nn


class QueryPrediction(NamedTuple):
    """What the queries predict for a batch of images.

    Attributes:
        mask_logits: (B, Q, h, w), a mask for each query.
        class_logits: (B, Q, classes + 1), its class; the last one is "no object".
        padded_size: Height and width in pixels that the masks cover: the image's, padded to whole patches.
    """

    mask_logits: torch.Tensor
    class_logits: torch.Tensor
    padded_size: tuple[int, int]


class UpscaleBlock(nn.Sequential):
    """Doubles the resolution of a map: transposed convolution, GELU, depthwise 3 x 3 convolution, norm."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.ConvTranspose2d(channels, channels, kernel_size=2, stride=2),
            nn.GELU(),
            nn.Conv2d(channels, channels, kernel_size=3, padding=1, groups=channels, bias=False),
            LayerNorm2d(channels),
        )


class QueryDecoder(nn.Module):
    """The learned queries, and the heads that read masks and classes off them.

    Args:
        channels: Width of the ViT.
        patch_size: Side of its patches; masks are upscaled to a quarter of the image's resolution, or nearly
            so.
        classes: Number of classes, "no object" not counted.
        num_queries: Number of queries.

    Example:
        >>> decoder = QueryDecoder(channels=192, patch_size=16, classes=5, num_queries=10)
        >>> prediction = decoder(torch.rand(2, 10, 192), torch.rand(2, 192, 4, 6))
        >>> prediction.mask_logits.shape, prediction.class_logits.shape
        (torch.Size([2, 10, 16, 24]), torch.Size([2, 10, 6]))
    """

    def __init__(self, channels: int, patch_size: int, classes: int, num_queries: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.queries = nn.Parameter(torch.empty(1, num_queries, channels))
        self.class_head = nn.Linear(channels, classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, channels),
        )
        ups = max(1, round(math.log2(patch_size)) - 2)
        self.upscale = nn.Sequential(*(UpscaleBlock(channels) for _ in range(ups)))
        trunc_normal_(self.queries, std=0.02)

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that an optimizer should not decay, in timm's form."""
        return {"queries"}

    def forward(self, queries: torch.Tensor, patches: torch.Tensor) -> QueryPrediction:
        """Map queries (B, Q, D) and patches (B, D, h, w), both behind the last norm, to a prediction."""
        masks = torch.einsum("bqd,bdhw->bqhw", self.mask_head(queries), self.upscale(patches))
        padded_size = (patches.shape[2] * self.patch_size, patches.shape[3] * self.patch_size)
        return QueryPrediction(masks, self.class_head(queries), padded_size)


def query_attention_mask(
    mask_logits: torch.Tensor, grid: tuple[int, int], num_prefix_tokens: int
) -> torch.Tensor:
    """Say which token may attend to which, where queries look only at the patches of their own masks.

    Args:
        mask_logits: (B, Q, h, w); a query attends to the patches where its mask is positive, and to all where
            it is positive nowhere.
        grid: Rows and columns of patches.
        num_prefix_tokens: Class and register tokens in front of the patches.

    Returns:
        (B, 1, N, N), True for "attends", with tokens in the order prefix, patches, queries.
    """
    batch, num_queries = mask_logits.shape[:2]
    inside = F.interpolate(mask_logits, size=grid, mode="bilinear", align_corners=False).flatten(2) > 0
    inside = inside | ~inside.any(dim=2, keepdim=True)  # (B, Q, patches)
    length = num_prefix_tokens + inside.shape[2] + num_queries
    mask = torch.ones(batch, 1, length, length, dtype=torch.bool, device=mask_logits.device)
    mask[:, 0, -num_queries:, num_prefix_tokens:-num_queries] = inside
    return mask


class SemanticHead(nn.Module):
    """Turns a prediction of queries into logits of classes for each pixel.

    A pixel's score for a class is the sum over queries of class probability times mask probability; its
    logarithm serves as logit (the log-odds, where there is one class), so that softmax gives the normalized
    scores.
    """

    def forward(self, prediction: QueryPrediction) -> torch.Tensor:
        """Map a prediction to logits (B, classes, H, W) of the padded size."""
        classes = prediction.class_logits.softmax(dim=-1)[..., :-1]
        scores = torch.einsum("bqc,bqhw->bchw", classes, prediction.mask_logits.sigmoid())
        scores = F.interpolate(scores, size=prediction.padded_size, mode="bilinear", align_corners=False)
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))  # half has no 1 - 1e-6
        scores = scores.clamp_min(1e-6)
        # Several queries may claim a pixel: as a probability, the score ends at one.
        logits = scores.log() if scores.shape[1] > 1 else torch.logit(scores.clamp_max(1 - 1e-6))
        return logits.to(prediction.mask_logits.dtype)
