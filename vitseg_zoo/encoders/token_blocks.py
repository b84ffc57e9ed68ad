"""A timm ViT taken apart into embedding and blocks, for heads that put tokens of their own among the ViT's.

timm runs all blocks in one go, and its families differ in two points: how the image becomes tokens, and what
else a block is given. Both are answered here for each family once.
"""

from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import nn

# Tokens (B, N, D) of an image, prefix tokens first, and the further arguments of each block.
TokensAndArguments = tuple[torch.Tensor, list[dict[str, Any]]]


def takes_tokens(model: nn.Module) -> bool:
    """Say whether further tokens can be put among those of a timm ViT."""
    return isinstance(model, VisionTransformer | Eva)


def embed_tokens(model: nn.Module, image: torch.Tensor, extra_tokens: int) -> TokensAndArguments:
    """Turn an image into what the first block of a timm ViT is given.

    Args:
        model: A `VisionTransformer` or `Eva` of timm, or a subclass.
        image: (B, C, H, W).
        extra_tokens: How many tokens without a place in the image will be appended.

    Returns:
        The tokens (B, prefix + patches, D), and a dict of arguments for each block.

    Raises:
        NotImplementedError: If it is another kind of model; `takes_tokens` says so beforehand.
    """
    if isinstance(model, Eva):
        return _embed_eva(model, image, extra_tokens)
    if isinstance(model, VisionTransformer):
        tokens = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(image))))
        return tokens, [{} for _ in model.blocks]
    raise NotImplementedError(f"{type(model).__name__} has no place for further tokens.")


def _embed_eva(model: Eva, image: torch.Tensor, extra_tokens: int) -> TokensAndArguments:
    tokens, rope = model._pos_embed(model.patch_embed(image))
    tokens = model.norm_pre(tokens)
    if rope is None:
        return tokens, [{} for _ in model.blocks]
    # A rotation is the sines, then the cosines; tokens without a place are not rotated.
    sines, cosines = (
        half[..., :1, :].expand(*half.shape[:-2], extra_tokens, -1) for half in rope.chunk(2, dim=-1)
    )
    still = torch.cat([torch.zeros_like(sines), torch.ones_like(cosines)], dim=-1)
    rope = torch.cat([rope, still], dim=-2)
    per_block = rope if model.rope_mixed else [rope] * len(model.blocks)
    return tokens, [{"rope": rotation} for rotation in per_block]
