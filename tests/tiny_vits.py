"""A tiny timm ViT of each family, and a tiny MiT, registered in timm and SMP as a user registers models."""

import os
import tempfile
from typing import Any

import segmentation_models_pytorch as smp
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.beit import Beit
from timm.models.beit import checkpoint_filter_fn as beit_filter
from timm.models.eva import Eva
from timm.models.eva import checkpoint_filter_fn as eva_filter
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from timm.models.vision_transformer_relpos import VisionTransformerRelPos
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from vitseg_zoo.encoders.hierarchical import HierarchicalEncoder
from vitseg_zoo.encoders.mix_transformer import MixTransformer
from vitseg_zoo.encoders.smp_entry import smp_entry

# Where the tag `tiny_vit.local` expects its weights; tests write them.
WEIGHTS_FILE = os.path.join(tempfile.mkdtemp(), "tiny_vit.pth")

_cfg = dict(first_conv="patch_embed.proj", classifier="head", num_classes=10, input_size=(3, 64, 64))
default_cfgs = generate_default_cfgs(
    {
        "tiny_vit.local": dict(_cfg, file=WEIGHTS_FILE, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)),
        "tiny_eva": _cfg,
        "tiny_dinov3": _cfg,
        "tiny_beit": _cfg,
        "tiny_relpos": _cfg,
        "tiny_sam": _cfg,
        "tiny_mit": _cfg,
    }
)
SIZES = dict(img_size=64, patch_size=16, embed_dim=64, depth=5, num_heads=2, num_classes=10)


@register_model
def tiny_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A class token and two registers, as DINOv2 has them."""
    args = dict(SIZES, reg_tokens=2, no_embed_class=True, **kwargs)
    return build_model_with_cfg(
        VisionTransformer, "tiny_vit", pretrained, pretrained_filter_fn=checkpoint_filter_fn, **args
    )


@register_model
def tiny_eva(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Patches of 14 pixels, absolute and rotary position embeddings, as EVA-02."""
    args = dict(SIZES, use_rot_pos_emb=True, ref_feat_shape=4, swiglu_mlp=True)
    args = dict(dict(args, img_size=56, patch_size=14), **kwargs)
    return build_model_with_cfg(Eva, "tiny_eva", pretrained, pretrained_filter_fn=eva_filter, **args)


@register_model
def tiny_dinov3(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Rotary embeddings alone, four registers, as DINOv3."""
    args = dict(SIZES, use_rot_pos_emb=True, use_abs_pos_emb=False, rope_type="dinov3", num_reg_tokens=4)
    args = dict(args, rope_rotate_half=True, init_values=1e-2, use_fc_norm=False, **kwargs)
    return build_model_with_cfg(Eva, "tiny_dinov3", pretrained, pretrained_filter_fn=eva_filter, **args)


@register_model
def tiny_beit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Tables of relative positions in each block."""
    args = dict(SIZES, use_abs_pos_emb=False, use_rel_pos_bias=True, **kwargs)
    return build_model_with_cfg(Beit, "tiny_beit", pretrained, pretrained_filter_fn=beit_filter, **args)


@register_model
def tiny_relpos(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Relative positions through an MLP."""
    return build_model_with_cfg(VisionTransformerRelPos, "tiny_relpos", pretrained, **dict(SIZES, **kwargs))


@register_model
def tiny_sam(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Windows, decomposed relative positions, no class token, a neck behind the blocks."""
    args = dict(SIZES, use_rel_pos=True, window_size=2, global_attn_indexes=(4,), neck_chans=32, **kwargs)
    return build_model_with_cfg(VisionTransformerSAM, "tiny_sam", pretrained, **args)


@register_model
def tiny_mit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MiT-B0 of half its channels and blocks."""
    args = dict(depths=(1, 1, 1, 1), embed_dims=(16, 32, 80, 128), num_classes=10)
    stages = dict(flatten_sequential=True, out_indices=kwargs.pop("out_indices", (0, 1, 2, 3)))
    return build_model_with_cfg(
        MixTransformer, "tiny_mit", pretrained, feature_cfg=stages, **dict(args, **kwargs)
    )


FAMILIES = ["tiny_vit", "tiny_eva", "tiny_dinov3", "tiny_beit", "tiny_relpos", "tiny_sam"]

for _name in FAMILIES:
    smp.encoders.encoders.update(smp_entry(_name, ["local"] if _name == "tiny_vit" else []))
smp.encoders.encoders["vz-tiny_mit"] = {
    "encoder": HierarchicalEncoder,
    "params": {"name": "tiny_mit", "drop_path_rate": 0.1},
    "pretrained_settings": {},
}
