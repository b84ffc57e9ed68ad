"""Plain ViTs of timm as encoders: how they are found, built, and run on images of any size.

A plain ViT turns an image into one grid of tokens and keeps it through all of its blocks. timm has several
families of them (VisionTransformer, DeiT, EVA and DINOv3, BEiT, relative positions, SAM); which models belong
is read from what their classes offer, see `is_plain_vit_class`.
"""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import create_model, list_models, list_modules
from timm.models.vision_transformer_sam import VisionTransformerSAM
from torch import nn

from vitseg_zoo.encoders.fixed_grid import FixedGridRunner
from vitseg_zoo.encoders.pretrained import convert_while_loading, with_checked_weights
from vitseg_zoo.encoders.timm_encoder import TimmEncoder
from vitseg_zoo.ops.autocast import autocast_dtype


def is_plain_vit_class(cls: type) -> bool:
    """Say whether a timm model class makes plain ViTs that can be run on images of any size.

    That is: intermediate features; one patch size, width and depth for the whole model; and a grid of tokens
    that can change, by the model's own method or because its patch embedding takes any size.
    """
    if not hasattr(cls, "forward_intermediates"):
        return False
    parameters = _init_parameters(cls)
    if not all(
        key in parameters and isinstance(parameters[key].default, int)
        for key in ("patch_size", "embed_dim", "depth")
    ):
        return False
    embed_layer = parameters["embed_layer"].default if "embed_layer" in parameters else None
    takes_any_size = getattr(embed_layer, "keywords", {}).get("strict_img_size") is False
    return takes_any_size or hasattr(cls, "set_input_size")


def plain_vit_names() -> list[str]:
    """List timm's own plain ViTs, without building any: all of modules that define such a class."""
    names: list[str] = []
    for module_name in list_modules():
        module = sys.modules.get(f"timm.models.{module_name}")
        if module is not None and any(
            cls.__module__ == module.__name__ for cls in _plain_vit_classes(module)
        ):
            names.extend(list_models(module=module_name))
    return names


def create_plain_vit(name: str, in_channels: int = 3, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a timm ViT without classifier that takes images of any size, where its class can do that.

    Raises:
        ValueError: If the model is no plain ViT.
    """
    args = dict(pretrained=pretrained, in_chans=in_channels, num_classes=0, **kwargs)
    if pretrained:
        args = with_checked_weights(name, args)
    try:
        model = create_model(name, **{"dynamic_img_size": True, "dynamic_img_pad": True, **args})
    except TypeError as error:
        if "dynamic_img" not in str(error):
            raise
        model = create_model(name, **args)  # a class that has its own way of taking any size
    strides = {_side(info["reduction"]) for info in getattr(model, "feature_info", [])}
    if len(strides) != 1 or not is_plain_vit_class(type(model)):
        raise ValueError(
            f"{name} is not a plain ViT, with one grid of tokens from the first block to the last: "
            "choose one of `vitseg_zoo.list_models('vz-vit*')`."
        )
    return model


def _plain_vit_classes(module: ModuleType) -> Iterator[type]:
    return (value for value in vars(module).values() if inspect.isclass(value) and is_plain_vit_class(value))


def _init_parameters(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters of a class, and of those that it builds on where it passes others to them."""
    parameters: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            own = inspect.signature(vars(base)["__init__"]).parameters
            parameters = {**own, **parameters}
            if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own.values()):
                break
    return parameters


def _has_norm(model: nn.Module) -> bool:
    """Say whether the width behind the blocks stays: SAM has no norm there, but a neck that changes it."""
    info = model.feature_info[-1]
    return info.get("num_chs_norm", info["num_chs"]) == info["num_chs"]


def _side(size: int | tuple[int, int]) -> int:
    """Return the side of a square that timm gives as a number or a pair."""
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ValueError(f"patch_size should be a square, got {size}.")
    return sides.pop()


class TimmViT(TimmEncoder):
    """A timm ViT that gives the tokens of chosen blocks as maps; what the zoo's ViT encoders have in common.

    Args:
        name: Name of the timm model, with or without a tag.
        in_channels: Channels of the image.
        pretrained: Load the weights of the name's tag.
        kwargs: Passed to `timm.create_model` (`drop_path_rate`, `img_size`, ...).
    """

    def __init__(self, name: str, in_channels: int = 3, pretrained: bool = False, **kwargs: Any) -> None:
        self._name = name
        super().__init__(in_channels, pretrained, **kwargs)
        self.register_load_state_dict_pre_hook(convert_while_loading)

    def _build(self, in_channels: int, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = create_plain_vit(self._name, in_channels, pretrained, **kwargs)
        blocks = self._blocks(len(model.feature_info))
        model.prune_intermediate_layers(blocks, prune_norm=not _has_norm(model))
        return model

    def _use(self, model: nn.Module, in_channels: int) -> None:
        super()._use(model, in_channels)
        self.patch_size = _side(model.feature_info[-1]["reduction"])
        self._norm = _has_norm(model)
        self._runner = FixedGridRunner()
        # A model with tables for one grid of tokens compiles and exports at a size that it was run at.
        self._is_torch_compilable = self._is_torch_exportable = not model.patch_embed.strict_img_size

    def _blocks(self, total: int) -> list[int]:
        """Return the indices, ascending, of the blocks whose tokens are read."""
        raise NotImplementedError

    @property
    def embed_dim(self) -> int:
        """Channels of a token."""
        return self.model.feature_info[0]["num_chs"]

    def maps(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map an image (B, C, H, W) to maps (B, D, ceil(H / p), ceil(W / p)) of the chosen blocks.

        They lie in memory as the tokens do, channels-last, and under autocast have its type, as a CNN's.
        Images are padded with zeros at the right and bottom to whole patches. Class and register tokens are
        left out. `model.norm` is applied to every block's tokens; where timm norms the pooled tokens instead
        (`fc_norm`, as in BEiT), that is nothing.
        """
        if not self.model.patch_embed.dynamic_img_pad:
            height, width = x.shape[2:]
            if height % self.patch_size or width % self.patch_size:
                x = F.pad(x, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.model(x, run=self._intermediates)

    def _intermediates(self, model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        indices = self._blocks(len(model.feature_info))
        gives_maps = isinstance(model, VisionTransformerSAM)  # all others of timm's can give tokens
        output_fmt = "NCHW" if gives_maps else "NLC"
        features = self._runner(model, x, indices=indices, norm=self._norm, output_fmt=output_fmt)
        if not gives_maps:
            # Not -(-side // patch): ONNX rounds towards zero.
            height, width = ((side + self.patch_size - 1) // self.patch_size for side in x.shape[2:])
            features = [f.unflatten(1, (height, width)).permute(0, 3, 1, 2) for f in features]
        dtype = autocast_dtype(x)
        if dtype is not None:  # a norm's output is wide, what reads it narrow again
            features = [f.to(dtype) for f in features]
        # A tuple, as backward hooks ask for.
        return tuple(f.contiguous(memory_format=torch.channels_last) for f in features)


class PlainViTEncoder(TimmViT):
    """A timm ViT whose last block's tokens are the one feature map: what heads that read tokens build on.

    Args:
        name: Name of the timm model, with or without a tag.
        in_channels: Channels of the image.
        blocks: How many of the model's blocks to keep, all of them by default.
        pretrained: Load the weights of the name's tag.
        kwargs: Passed to `timm.create_model` (`drop_path_rate`, `img_size`, ...).

    Raises:
        ValueError: If the model is no plain ViT, or has fewer than `blocks`.

    Example:
        >>> import torch
        >>> encoder = PlainViTEncoder("vitseg_tiny_patch16_128")
        >>> [tuple(feature.shape) for feature in encoder(torch.rand(1, 3, 128, 96))]
        [(1, 3, 128, 96), (1, 192, 8, 6)]
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        blocks: int | None = None,
        pretrained: bool = False,
        **kwargs: Any,
    ) -> None:
        self._kept_blocks = blocks
        super().__init__(name, in_channels, pretrained, **kwargs)
        self.configured = kwargs  # unlike the other encoders' they are the user's, from no table of SMP's

    def _blocks(self, total: int) -> list[int]:
        kept = total if self._kept_blocks is None else self._kept_blocks
        if not 1 <= kept <= total:
            raise ValueError(f"encoder_blocks of {self._name} should be in range [1, {total}], got {kept}.")
        return [kept - 1]

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of the map."""
        return [self._in_channels, self.embed_dim]

    @property
    def output_stride(self) -> int:
        """Stride of the map: the side of a patch."""
        return self.patch_size

    def forward(
        self, x: torch.Tensor, run: Callable[[nn.Module, torch.Tensor], Any] | None = None
    ) -> list[torch.Tensor] | Any:
        """Map an image (B, C, H, W) to itself and to (B, D, ceil(H / p), ceil(W / p)), p a patch's side.

        Args:
            x: The image.
            run: What is called with the timm model and the image instead, and whose result is returned: for
                heads that put tokens of their own among the ViT's. Hooks and FSDP see this call.
        """
        return [x, *self.maps(x)] if run is None else self.model(x, run=run)
