"""ViT-seg's encoder as timm models: a plain Vision Transformer without class token and without final norm.

Paper: "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", https://arxiv.org/abs/2010.11929,
in the form that the article series "Efficient Image Segmentation Using PyTorch" gives it. Built on timm's
`VisionTransformer` (Apache-2.0).

Differences from timm's ViT, all of them the article's:
* the images, values in [0, 1], are normalized by a `BatchNorm2d` and by nothing else;
* position embeddings are drawn from N(0, 1), linear layers start as PyTorch makes them, query, key and value
  as `nn.MultiheadAttention` does, LayerNorm has PyTorch's eps 1e-5;
* dropout 0.2 on the attention weights and on the output of each MLP, nowhere else;
* no class token, and no norm after the last block.

Images of any size are taken: they are padded at the right and bottom to whole patches, and the position
embeddings are resampled to the grid.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model, vision_transformer
from torch import nn

from vitseg_zoo.encoders.smp_entry import smp_entry
from vitseg_zoo.ops.dispatch import may_bypass

__all__ = ["VitSegTransformer"]  # timm's register_model adds the models' names


class NormalizedPatchEmbed(PatchEmbed):
    """timm's patch embedding behind a batch norm, computed as one matrix product over flattened patches.

    The weight keeps the shape of a convolution, (embed_dim, C, patch, patch), which flattens to the
    channel-first order (c, y, x) of the article's linear layer; timm's tools for changing it go on working.
    """

    def __init__(self, *args: Any, in_chans: int = 3, device=None, dtype=None, **kwargs: Any) -> None:
        super().__init__(*args, in_chans=in_chans, device=device, dtype=dtype, **kwargs)
        self.input_norm = nn.BatchNorm2d(in_chans, device=device, dtype=dtype)
        self.patchify = _patchify(self.patch_size)

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        super().set_input_size(img_size, patch_size)
        self.patchify = _patchify(self.patch_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_norm(x)
        height, width = x.shape[2:]
        patch_h, patch_w = self.patch_size
        # No branch on a size, and timm's assertion: torch.fx traces through both.
        if self.strict_img_size:
            torch._assert(
                height == self.img_size[0], f"Input height ({height}) should be {self.img_size[0]}."
            )
            torch._assert(width == self.img_size[1], f"Input width ({width}) should be {self.img_size[1]}.")
        if self.dynamic_img_pad:
            x = F.pad(x, (0, -width % patch_w, 0, -height % patch_h))
        if torch.jit.is_scripting():
            x = self.proj(x).permute(0, 2, 3, 1)
        elif self._is_linear():
            x = self.patchify(x).permute(0, 2, 3, 1)  # (B, H/p, W/p, C*p*p)
            x = F.linear(x, self.proj.weight.flatten(1), self.proj.bias)  # (B, H/p, W/p, D)
        else:
            x = self.proj(x).permute(0, 2, 3, 1)
        return x.flatten(1, 2) if self.flatten else x

    def _is_linear(self) -> bool:
        """Tell whether the projection multiplies each patch by a matrix, and by nothing else."""
        proj = self.proj
        return (
            may_bypass((proj, nn.Conv2d))
            and proj.kernel_size == proj.stride == tuple(self.patch_size)
            and proj.padding == (0, 0)
            and proj.groups == 1
        )


def _patchify(patch_size: tuple[int, int]) -> nn.PixelUnshuffle:
    """Cut an image (B, C, H, W) into patches (B, C * p * p, H / p, W / p), channels ordered (c, y, x)."""
    if patch_size[0] != patch_size[1]:
        raise ValueError(f"patch_size should be a square, got {patch_size}.")
    return nn.PixelUnshuffle(patch_size[0])


class VitSegTransformer(vision_transformer.VisionTransformer):
    """The plain ViT of ViT-seg, with the interface of timm's `VisionTransformer`.

    Args:
        img_size: Height and width that the position embeddings are made for; other sizes resample them.
        patch_size: Side of a patch in pixels.
        in_chans: Channels of the input image, (B, in_chans, H, W) with values in [0, 1].
        embed_dim: Channels of a token.
        depth: Number of blocks.
        num_heads: Attention heads, a divisor of `embed_dim`.
        global_pool: Pooling before the classifier, `"avg"` as there is no class token.
        attn_drop_rate: Dropout of the attention weights.
        proj_drop_rate: Dropout after each MLP.
        embed_layer: Makes tokens (B, h, w, D) of images.
        dynamic_img_size: Take images of other sizes than `img_size`.
        dynamic_img_pad: Take images that are not made of whole patches.
        kwargs: What else timm's `VisionTransformer` takes: `num_classes`, `drop_path_rate`, `mlp_ratio`, ...

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("vitseg_tiny_patch16_128", num_classes=10)
        >>> model(torch.rand(1, 3, 128, 128)).shape
        torch.Size([1, 10])
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 128,
        patch_size: int = 16,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 8,
        global_pool: str = "avg",
        attn_drop_rate: float = 0.2,
        proj_drop_rate: float = 0.2,
        embed_layer: type[PatchEmbed] = NormalizedPatchEmbed,
        dynamic_img_size: bool = True,
        dynamic_img_pad: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            img_size=img_size,
            patch_size=patch_size,
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            global_pool=global_pool,
            attn_drop_rate=attn_drop_rate,
            class_token=False,
            final_norm=False,
            dynamic_img_size=dynamic_img_size,
            dynamic_img_pad=dynamic_img_pad,
            embed_layer=embed_layer,
            norm_layer=nn.LayerNorm,
            weight_init="skip",
            **kwargs,
        )
        for block in self.blocks:
            # timm's `proj_drop_rate` would also drop the attention's output and the MLP's hidden layer.
            block.mlp.drop2 = nn.Dropout(proj_drop_rate)
        self.init_weights(needs_reset=False)

    def init_weights(self, mode: str = "", needs_reset: bool = True) -> None:
        """Initialize weights as the article does; `mode` is there for timm's interface and has no effect."""
        if needs_reset:
            for module in self.modules():
                if module is not self and hasattr(module, "reset_parameters"):
                    module.reset_parameters()
        nn.init.normal_(self.pos_embed)
        for block in self.blocks:
            nn.init.xavier_uniform_(block.attn.qkv.weight)
            nn.init.zeros_(block.attn.qkv.bias)
            nn.init.zeros_(block.attn.proj.bias)


def vit_seg_cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 128, 128),
        "pool_size": None,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "fixed_input_size": False,
        # The model normalizes its input itself.
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "vitseg_tiny_patch16_128.untrained": vit_seg_cfg(),
        "vitseg_tiny_patch8_128.untrained": vit_seg_cfg(),
        "vitseg_small_patch16_128.untrained": vit_seg_cfg(),
        "vitseg_small_patch8_128.untrained": vit_seg_cfg(),
        "vitseg_base_patch16_128.untrained": vit_seg_cfg(),
        "vitseg_base_patch8_128.untrained": vit_seg_cfg(),
    }
)


def checkpoint_filter_fn(
    state_dict: dict[str, torch.Tensor], model: nn.Module, **kwargs: Any
) -> dict[str, torch.Tensor]:
    """Fit weights to a model: patches and positions as timm does, the input's norm to its channels.

    timm adapts the first convolution to the number of channels; the norm in front of it repeats its own.
    """
    channels = model.patch_embed.input_norm.num_features
    return {
        key: value.repeat(-(-channels // len(value)))[:channels]
        if key.startswith("patch_embed.input_norm.") and value.ndim
        else value
        for key, value in vision_transformer.checkpoint_filter_fn(state_dict, model, **kwargs).items()
    }


def _create_vit_seg(variant: str, pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    out_indices = kwargs.pop("out_indices", 3)
    return build_model_with_cfg(
        VitSegTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(out_indices=out_indices, feature_cls="getter"),
        **kwargs,
    )


@register_model
def vitseg_tiny_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg, tiny: 12 blocks of 192 channels, 16 x 16 patches."""
    model_args = dict(patch_size=16, embed_dim=192, depth=12, num_heads=3)
    return _create_vit_seg("vitseg_tiny_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_tiny_patch8_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg, tiny: 12 blocks of 192 channels, 8 x 8 patches."""
    model_args = dict(patch_size=8, embed_dim=192, depth=12, num_heads=3)
    return _create_vit_seg("vitseg_tiny_patch8_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_small_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg, small: 12 blocks of 384 channels, 16 x 16 patches."""
    model_args = dict(patch_size=16, embed_dim=384, depth=12, num_heads=6)
    return _create_vit_seg("vitseg_small_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_small_patch8_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg, small: 12 blocks of 384 channels, 8 x 8 patches."""
    model_args = dict(patch_size=8, embed_dim=384, depth=12, num_heads=6)
    return _create_vit_seg("vitseg_small_patch8_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_base_patch16_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg as the article has it: 12 blocks of 768 channels, 8 heads, 16 x 16 patches."""
    model_args = dict(patch_size=16, embed_dim=768, depth=12, num_heads=8)
    return _create_vit_seg("vitseg_base_patch16_128", pretrained, **dict(model_args, **kwargs))


@register_model
def vitseg_base_patch8_128(pretrained: bool = False, **kwargs: Any) -> VitSegTransformer:
    """Build ViT-seg, base: 12 blocks of 768 channels, 8 heads, 8 x 8 patches."""
    model_args = dict(patch_size=8, embed_dim=768, depth=12, num_heads=8)
    return _create_vit_seg("vitseg_base_patch8_128", pretrained, **dict(model_args, **kwargs))


# The tag without weights is `"imagenet"` too: what SMP's own training examples ask for, and normalize by.
smp_encoders = {
    key: entry for name in default_cfgs for key, entry in smp_entry(name, tags=["untrained"]).items()
}
