"""MiT, the Mix Transformer encoder of SegFormer, and PVTv2, which is the same network with other numbers.

Papers: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, and "PVT v2: Improved Baselines with Pyramid Vision Transformer",
https://arxiv.org/abs/2106.13797. Written from them and from timm's `pvt_v2.py` (Apache-2.0), whose names of
parameters are kept: `mit_b0` is its `pvt_v2_b0` with `mlp_ratios=(4, 4, 4, 4)`.

Differences from timm's PVTv2:
* maps stay channels-last, (B, H, W, C) in memory, between all layers; see `ops.linear`;
* `output_stride` 8 or 16 replaces the last strides by dilation, such that every output of the strided
  network is found unchanged among those of the dilated one;
* maps smaller than the spatial reduction are padded to it, so that images of any size are taken.

The code is Apache-2.0. The weights that NVIDIA trained (tag `nv_in1k`) are not: its license allows research
and evaluation only. Those of PVTv2 (`mit_pvt_*`, tag `in1k`) are Apache-2.0.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, calculate_drop_path_rates, get_device_dtype, trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

from vitseg_zoo.encoders.hierarchical import HierarchicalEncoder
from vitseg_zoo.encoders.mix_block import OverlapPatchEmbed, Stage
from vitseg_zoo.encoders.mix_checkpoints import checkpoint_filter_fn
from vitseg_zoo.encoders.pretrained import TimmWeights, with_checked_weights
from vitseg_zoo.ops.not_scriptable import NotScriptable

__all__ = ["MixTransformer"]  # timm's register_model adds the models' names


class MixTransformer(NotScriptable, nn.Module):
    """MiT / PVTv2: four stages of transformer blocks at strides 4, 8, 16 and 32.

    Takes images (B, in_chans, H, W) of any size; the maps have ceil(H / stride) x ceil(W / stride) positions.

    Args:
        in_chans: Channels of the image.
        num_classes: Outputs of the classifier; 0 for none.
        global_pool: `"avg"`, or `""` for no pooling.
        output_stride: Stride that no map exceeds: 32, 16 or 8.
        depths: Blocks of each stage.
        embed_dims: Channels of each stage.
        num_heads: Attention heads of each stage.
        sr_ratios: Spatial reduction of keys and values in each stage.
        mlp_ratios: Hidden channels of the Mix-FFN, as a multiple of the stage's channels.
        drop_rate: Dropout before the classifier.
        proj_drop_rate: Dropout in the blocks' linear layers.
        attn_drop_rate: Dropout of the attention weights.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0 in the first.
        norm_layer: Norm of blocks and stages. Hugging Face's SegFormer has eps 1e-5 there, the others 1e-6.
        device: Device of the parameters.
        dtype: Type of the parameters.

    Raises:
        ValueError: If an argument has none of the values that it can have.

    Example:
        >>> import timm, torch
        >>> model = timm.create_model("mit_b0", features_only=True)
        >>> [tuple(feature.shape[1:]) for feature in model(torch.rand(1, 3, 64, 96))]
        [(32, 16, 24), (64, 8, 12), (160, 4, 6), (256, 2, 3)]
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dims: Sequence[int] = (64, 128, 320, 512),
        num_heads: Sequence[int] = (1, 2, 5, 8),
        sr_ratios: Sequence[int] = (8, 4, 2, 1),
        mlp_ratios: Sequence[float] = (4.0, 4.0, 4.0, 4.0),
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        norm_layer: Callable[..., nn.Module] = LayerNorm,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.depths = depths
        self.patch_embed = OverlapPatchEmbed(in_chans, embed_dims[0], 7, 4, **dd)
        drop_paths = calculate_drop_path_rates(drop_path_rate, depths, stagewise=True)
        self.stages = nn.Sequential(
            *(
                Stage(
                    dim=embed_dims[i],
                    in_dim=embed_dims[i - 1] if i else None,
                    drop_path=drop_paths[i],
                    num_heads=num_heads[i],
                    mlp_ratio=mlp_ratios[i],
                    sr_ratio=sr_ratios[i],
                    proj_drop=proj_drop_rate,
                    attn_drop=attn_drop_rate,
                    norm_layer=norm_layer,
                    **dd,
                )
                for i in range(len(depths))
            )
        )
        self.feature_info = [
            dict(num_chs=dim, reduction=4 * 2**i, module=f"stages.{i}") for i, dim in enumerate(embed_dims)
        ]
        self.num_features = self.head_hidden_size = embed_dims[-1]
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.apply(_init_weights)
        if output_stride != 32:
            self.set_output_stride(output_stride)

    def set_output_stride(self, output_stride: int) -> None:
        """Limit the strides by dilation; what the network of stride 32 computes is kept at its positions.

        Args:
            output_stride: 8, 16, or 32 for no dilation.

        Raises:
            ValueError: If it is another number.
        """
        if output_stride not in (8, 16, 32):
            raise ValueError(f"Output stride should be 8, 16 or 32, got {output_stride}.")
        dilation = 1
        for i, stage in enumerate(self.stages):
            full_stride = 4 * 2**i
            self.feature_info[i]["reduction"] = min(full_stride, output_stride)
            first, dilation = dilation, max(full_stride // output_stride, 1)
            if i > 0:
                stage.set_dilation(first, dilation, stride=1 if dilation > first else 2)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name what needs no weight decay: none beyond norms and biases, which optimizers leave out."""
        return set()

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Group of parameters for layer-wise learning rates: the stem, then stages (coarse) or blocks."""
        return dict(
            stem=r"^patch_embed",
            blocks=r"^stages\.(\d+)"
            if coarse
            else [
                (r"^stages\.(\d+)\.downsample", (0,)),
                (r"^stages\.(\d+)\.blocks\.(\d+)", None),
                (r"^stages\.(\d+)\.norm", (99999,)),
            ],
        )

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: the blocks' activations are computed again in the backward pass."""
        for stage in self.stages:
            stage.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """Return the classification layer."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Make a new classifier; see the class for the arguments."""
        if global_pool not in (None, "avg", ""):
            raise ValueError(f"global_pool must be 'avg' or '' (no pooling), got {global_pool!r}.")
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        self.head = nn.Linear(self.num_features, num_classes, **dd) if num_classes > 0 else nn.Identity()
        self.head.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Compute the maps of the stages.

        Args:
            x: Images (B, in_chans, H, W).
            indices: Stages whose maps are returned: a list, the last n, or all by default.
            norm: There for timm's interface: maps always are behind their stage's norm.
            stop_early: Leave out stages after the last one of `indices`.
            output_fmt: `"NCHW"`, the only form.
            intermediates_only: Return the maps alone.

        Returns:
            The maps, or the last stage's map and the maps.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}.")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.patch_embed(x)
        for i, stage in enumerate(self.stages[: max_index + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the classifier and the stages after the last of `indices`; return the stages' indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        pruned = max_index < len(self.stages) - 1
        self.stages = self.stages[: max_index + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take_indices

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to the last stage's map (B, D, H / 32, W / 32)."""
        return self.stages(self.patch_embed(x))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Pool the last map and classify it."""
        if self.global_pool:
            x = x.mean(dim=(-2, -1))
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (B, in_chans, H, W) to class logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        nn.init.zeros_(module.bias)


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        "fixed_input_size": False,
        "license": "apache-2.0",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "mit_b0.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b0", license="other"),
        "mit_b1.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b1", license="other"),
        "mit_b2.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b2", license="other"),
        "mit_b3.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b3", license="other"),
        "mit_b4.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b4", license="other"),
        "mit_b5.nv_in1k": _cfg(hf_hub_id="nvidia/mit-b5", license="other"),
        "mit_pvt_b0.in1k": _cfg(hf_hub_id="timm/pvt_v2_b0.in1k"),
        "mit_pvt_b1.in1k": _cfg(hf_hub_id="timm/pvt_v2_b1.in1k"),
        "mit_pvt_b2.in1k": _cfg(hf_hub_id="timm/pvt_v2_b2.in1k"),
        "mit_pvt_b3.in1k": _cfg(hf_hub_id="timm/pvt_v2_b3.in1k"),
        "mit_pvt_b4.in1k": _cfg(hf_hub_id="timm/pvt_v2_b4.in1k"),
        "mit_pvt_b5.in1k": _cfg(hf_hub_id="timm/pvt_v2_b5.in1k"),
    }
)


def _create_mit(variant: str, pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    out_indices = kwargs.pop("out_indices", (0, 1, 2, 3))
    if pretrained:
        kwargs = with_checked_weights(variant, kwargs)
    return build_model_with_cfg(
        MixTransformer,
        variant,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg=dict(flatten_sequential=True, out_indices=out_indices),
        **kwargs,
    )


@register_model
def mit_b0(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B0, the encoder of SegFormer-B0: 8 blocks."""
    model_args = dict(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256))
    return _create_mit("mit_b0", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_b1(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B1, the encoder of SegFormer-B1: 8 blocks."""
    model_args = dict(depths=(2, 2, 2, 2), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_b1", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_b2(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B2, the encoder of SegFormer-B2: 16 blocks."""
    model_args = dict(depths=(3, 4, 6, 3), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_b2", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_b3(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B3, the encoder of SegFormer-B3: 28 blocks."""
    model_args = dict(depths=(3, 4, 18, 3), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_b3", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_b4(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B4, the encoder of SegFormer-B4: 41 blocks."""
    model_args = dict(depths=(3, 8, 27, 3), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_b4", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_b5(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build MiT-B5, the encoder of SegFormer-B5: 52 blocks."""
    model_args = dict(depths=(3, 6, 40, 3), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_b5", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b0(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B0 in MiT's form, 8 blocks."""
    model_args = dict(depths=(2, 2, 2, 2), embed_dims=(32, 64, 160, 256), mlp_ratios=(8, 8, 4, 4))
    return _create_mit("mit_pvt_b0", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b1(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B1 in MiT's form, 8 blocks."""
    model_args = dict(depths=(2, 2, 2, 2), embed_dims=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4))
    return _create_mit("mit_pvt_b1", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b2(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B2 in MiT's form, 16 blocks."""
    model_args = dict(depths=(3, 4, 6, 3), embed_dims=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4))
    return _create_mit("mit_pvt_b2", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b3(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B3 in MiT's form, 28 blocks."""
    model_args = dict(depths=(3, 4, 18, 3), embed_dims=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4))
    return _create_mit("mit_pvt_b3", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b4(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B4 in MiT's form, 41 blocks."""
    model_args = dict(depths=(3, 8, 27, 3), embed_dims=(64, 128, 320, 512), mlp_ratios=(8, 8, 4, 4))
    return _create_mit("mit_pvt_b4", pretrained, **dict(model_args, **kwargs))


@register_model
def mit_pvt_b5(pretrained: bool = False, **kwargs: Any) -> MixTransformer:
    """Build PVTv2-B5 in MiT's form, 52 blocks."""
    model_args = dict(depths=(3, 6, 40, 3), embed_dims=(64, 128, 320, 512))
    return _create_mit("mit_pvt_b5", pretrained, **dict(model_args, **kwargs))


def _smp_encoder(name: str, tags: dict[str, str]) -> dict[str, Any]:
    return {
        "encoder": HierarchicalEncoder,
        "params": {"name": name, "drop_path_rate": 0.1},  # the paper's, as in SMP's encoders
        "pretrained_settings": {tag: TimmWeights(weights) for tag, weights in tags.items()},
    }


smp_encoders = {
    f"vz-{name}": _smp_encoder(name, {"imagenet": f"{name}.imagenet", "nv_in1k": f"{name}.nv_in1k"})
    for name in (f"mit_b{size}" for size in range(6))
} | {
    f"vz-{name}": _smp_encoder(name, {"imagenet": f"{name}.in1k", "in1k": f"{name}.in1k"})
    for name in (f"mit_pvt_b{size}" for size in range(6))
}
