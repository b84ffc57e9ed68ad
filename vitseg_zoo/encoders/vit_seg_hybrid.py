"""ViT-seg's encoder behind a convolutional stem, as timm models: tokens made of what convolutions have seen.

Papers: "Early Convolutions Help Transformers See Better", https://arxiv.org/abs/2106.14881, for the stem in
place of patches; "An Image is Worth 16x16 Words", https://arxiv.org/abs/2010.11929, section 3.1, for the word
hybrid. Differences from the first paper: the stem is the zoo's `DetailPath`, with two convolutions at each
stride, as decoders read its maps, too; and all blocks stay. The rest is `vit_seg`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import (
    FeatureInfo,
    build_model_with_cfg,
    checkpoint,
    generate_default_cfgs,
    register_model,
)
from torch import nn

from vitseg_zoo.encoders.detail import CHANNELS, DetailPath, conv_norm_relu
from vitseg_zoo.encoders.pyramid import PyramidEncoder
from vitseg_zoo.encoders.vit_seg import VitSegTransformer, checkpoint_filter_fn, vit_seg_cfg

__all__ = ["VitSegHybrid"]  # timm's register_model adds the models' names

_STEM_CHANNELS = 256  # of the stem's last map, at stride 16


class ConvStemEmbed(PatchEmbed):
    """timm's patch embedding by convolutions: batch norm, `DetailPath`, one stride more, 1 x 1 to tokens.

    Args:
        img_size: Height and width that the position embeddings are made for.
        patch_size: 16, the stem's stride.
        in_chans: Channels of the image, with values in [0, 1].
        embed_dim: Channels of a token.
        kwargs: What else timm's `PatchEmbed` takes.

    Raises:
        ValueError: If `patch_size` is another.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] | None = 128,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        device: Any = None,
        dtype: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(img_size, patch_size, in_chans, embed_dim, device=device, dtype=dtype, **kwargs)
        if self.patch_size != (16, 16):
            raise ValueError(f"patch_size should be 16, the stride of the stem, got {patch_size}.")
        self.input_norm = nn.BatchNorm2d(in_chans)
        self.path = DetailPath(in_chans)
        self.down = nn.Sequential(*conv_norm_relu(CHANNELS[-1], _STEM_CHANNELS, stride=2))
        self.proj = nn.Conv2d(_STEM_CHANNELS, embed_dim, kernel_size=1)
        self.to(device=device, dtype=dtype)

    def details(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to the stem's maps at strides 2, 4 and 8, whole patches at the edges."""
        x = self.input_norm(x)
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -x.shape[3] % 16, 0, -x.shape[2] % 16))
        return self.path(x)

    def tokens(self, detail: torch.Tensor) -> torch.Tensor:
        """Map the stem's map at stride 8 to tokens (B, h, w, D), or (B, h * w, D) where `flatten` is set."""
        x = self.proj(self.down(detail)).permute(0, 2, 3, 1)
        return x.flatten(1, 2) if self.flatten else x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, C, H, W) to tokens."""
        return self.tokens(self.details(x)[-1])


class VitSegHybrid(VitSegTransformer):
    """ViT-seg's transformer over a convolutional stem; arguments are `VitSegTransformer`'s.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vitseg_hybrid_tiny_patch16_128", features_only=True)
        >>> [tuple(feature.shape[1:]) for feature in model(torch.rand(1, 3, 64, 64))]
        [(32, 32, 32), (64, 16, 16), (128, 8, 8), (192, 4, 4), (192, 2, 2)]
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(embed_layer=ConvStemEmbed, **kwargs)

    def forward_levels(
        self, x: torch.Tensor, indices: list[int]
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Compute the stem's maps and the tokens of chosen blocks in one pass.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Blocks whose tokens are returned, ascending.

        Returns:
            Maps at strides 2, 4 and 8, and a map (B, D, ceil(H / 16), ceil(W / 16)) for each of the blocks.
        """
        details = self.patch_embed.details(x)
        x = self.patch_embed.tokens(details[-1])
        grid = x.shape[1:3]
        x = self.norm_pre(self.patch_drop(self._pos_embed(x)))
        maps = []
        for i, block in enumerate(self.blocks):
            x = checkpoint(block, x) if self.grad_checkpointing else block(x)
            if i in indices:
                maps.append(x.unflatten(1, grid).permute(0, 3, 1, 2))
        return details, maps


class HybridFeatures(nn.Module):
    """What `timm.create_model(..., features_only=True)` makes: maps at strides 2, 4, 8, 16 and 32.

    Args:
        model: The model.
        out_indices: Which of the five are returned, all by default.
    """

    def __init__(self, model: VitSegHybrid, out_indices: tuple[int, ...] = (0, 1, 2, 3, 4)) -> None:
        super().__init__()
        channels = [*CHANNELS, model.embed_dim, model.embed_dim]
        self.feature_info = FeatureInfo(
            [
                dict(num_chs=dim, reduction=2 ** (i + 1), module=f"level.{i}")
                for i, dim in enumerate(channels)
            ],
            out_indices,
        )
        self.out_indices = self.feature_info.out_indices
        self.model = model
        model.reset_classifier(0, "")

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, in_chans, H, W) to the chosen maps."""
        details, (tokens,) = self.model.forward_levels(x, [len(self.model.blocks) - 1])
        levels = [*details, tokens, F.avg_pool2d(tokens, 2, ceil_mode=True)]
        return [levels[i] for i in self.out_indices]


class HybridEncoder(PyramidEncoder):
    """A hybrid in the form of SMP's encoders; arguments are `PyramidEncoder`'s.

    Levels 1 to 3 are the stem's own maps, levels 4 and 5 are made of tokens, as `PyramidEncoder` does it.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-vitseg_hybrid_tiny_patch16_128", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 50, 64))]
        [(3, 50, 64), (32, 25, 32), (64, 13, 16), (128, 7, 8), (192, 4, 4), (192, 2, 2)]
    """

    @property
    def _level_channels(self) -> list[int]:
        return [*CHANNELS, *super()._level_channels[len(CHANNELS) :]][: self._depth]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, C, H, W) to itself and to levels (B, C_i, ceil(H / 2 ** i), ceil(W / 2 ** i))."""
        blocks = self._level_blocks(len(self.model.blocks))
        indices = sorted(set(blocks))
        details, maps = self.model.forward_levels(x, indices)
        map_of = dict(zip(indices, maps, strict=True))
        levels = [x]
        for level, block in enumerate(blocks, start=1):
            stride = min(2**level, self._output_stride)
            if level <= len(CHANNELS):
                feature = details[level - 1]
            else:
                feature = self._to_level(map_of[block], level, stride)
            levels.append(feature[..., : -(-x.shape[2] // stride), : -(-x.shape[3] // stride)])
        return levels


default_cfgs = generate_default_cfgs(
    {
        f"vitseg_hybrid_{size}_patch16_{side}.untrained": vit_seg_cfg(
            input_size=(3, side, side), first_conv="patch_embed.path.levels.0.0"
        )
        for size in ("tiny", "small", "base")
        for side in (128, 224)
    }
)


def _create_hybrid(variant: str, pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    return build_model_with_cfg(
        VitSegHybrid,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(feature_cls=HybridFeatures),
        **kwargs,
    )


@register_model
def vitseg_hybrid_tiny_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, tiny, for images of 128 pixels: a convolutional stem, 12 blocks of 192 channels."""
    model_args = dict(img_size=128, embed_dim=192, depth=12, num_heads=3)
    return _create_hybrid("vitseg_hybrid_tiny_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_hybrid_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, tiny, for images of 224 pixels: a convolutional stem, 12 blocks of 192 channels."""
    model_args = dict(img_size=224, embed_dim=192, depth=12, num_heads=3)
    return _create_hybrid("vitseg_hybrid_tiny_patch16_224", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_hybrid_small_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, small, for images of 128 pixels: a convolutional stem, 12 blocks of 384 channels."""
    model_args = dict(img_size=128, embed_dim=384, depth=12, num_heads=6)
    return _create_hybrid("vitseg_hybrid_small_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_hybrid_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, small, for images of 224 pixels: a convolutional stem, 12 blocks of 384 channels."""
    model_args = dict(img_size=224, embed_dim=384, depth=12, num_heads=6)
    return _create_hybrid("vitseg_hybrid_small_patch16_224", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_hybrid_base_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, base, for images of 128 pixels: a convolutional stem, 12 blocks of 768 channels."""
    model_args = dict(img_size=128, embed_dim=768, depth=12, num_heads=8)
    return _create_hybrid("vitseg_hybrid_base_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_hybrid_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> VitSegHybrid:
    """Hybrid ViT-seg, base, for images of 224 pixels: a convolutional stem, 12 blocks of 768 channels."""
    model_args = dict(img_size=224, embed_dim=768, depth=12, num_heads=8)
    return _create_hybrid("vitseg_hybrid_base_patch16_224", pretrained, **dict(model_args, **kwargs))


smp_encoders = {
    f"vz-{name}": {"encoder": HybridEncoder, "params": {"name": name}, "pretrained_settings": {}}
    for name in default_cfgs
}
