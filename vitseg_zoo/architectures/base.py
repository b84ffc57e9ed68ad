"""What the architectures of the zoo share: the encoder that a name of SMP's stands for, and token models."""

from difflib import get_close_matches
from typing import Any, ClassVar

import torch
from segmentation_models_pytorch.base import ClassificationHead
from segmentation_models_pytorch.base.initialization import initialize_head
from segmentation_models_pytorch.base.modules import Activation
from segmentation_models_pytorch.encoders import encoders as smp_encoders
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from vitseg_zoo.architectures.hub import HubModel
from vitseg_zoo.decoders.refinement import LogitRefinement
from vitseg_zoo.encoders.detail import CHANNELS, DetailPath
from vitseg_zoo.encoders.plain_vit import PlainViTEncoder
from vitseg_zoo.encoders.pyramid import PyramidEncoder
from vitseg_zoo.encoders.timm_encoder import TimmEncoder
from vitseg_zoo.ops.not_scriptable import NotScriptable


class TokenModel(NotScriptable, HubModel):
    """An encoder with one map of tokens, a decoder and a head, for images of any size.

    A subclass sets `encoder`, `decoder` and `segmentation_head`, and ends its `__init__` with `finish`.
    """

    _is_torch_scriptable = False
    requires_divisible_input_shape = False

    # What stands for SMP's own default, "resnet34" with the weights "imagenet": these models are no CNNs, and
    # `smp.create_model` passes each of the two where nothing is chosen.
    default_encoder: ClassVar[tuple[str, str | None]]

    def choose_encoder(self, name: str, weights: str | None) -> tuple[str, str | None]:
        """Give the encoder and the weights that two arguments stand for, and note them for saved files."""
        if name == "resnet34" and weights in ("imagenet", None):
            name, default_weights = self.default_encoder
            weights = weights and default_weights
            self.config.update(encoder_name=name, encoder_weights=weights)
        return name, weights

    def finish(
        self,
        encoder_name: str,
        channels: int,
        aux_params: dict[str, Any] | None,
        refinement: LogitRefinement | None = None,
    ) -> None:
        """Add what all have: the refinement, the classification head over `channels`, the name, the start."""
        self.refinement = refinement
        if refinement is not None:  # takes logits, and ends with the activation
            refinement.activation, self.segmentation_head[-1] = self.segmentation_head[-1], Activation(None)
        self.classification_head = None if aux_params is None else ClassificationHead(channels, **aux_params)
        self.name = f"{type(self).__name__.lower()}-{encoder_name}"
        self.initialize()

    def initialize(self) -> None:
        """Initialize the classification head as SMP does; the rest has initialized itself."""
        if self.classification_head is not None:
            initialize_head(self.classification_head)

    def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Map images (B, in_channels, H, W) to logits (B, classes, H, W), with a second head to a pair."""
        height, width = x.shape[2:]
        features = self.encoder(x)
        masks = self.segmentation_head(self.decoder(features))[..., :height, :width]
        if self.refinement is not None:
            masks = self.refinement(x, masks)
        if self.classification_head is not None:
            return masks, self.classification_head(features[-1])
        return masks


def logit_refinement(in_channels: int, classes: int) -> LogitRefinement:
    """Build a refinement by the detail path's maps at strides 2 and 4."""
    return LogitRefinement(DetailPath(in_channels, depth=2), CHANNELS[:2], classes)


def token_encoder(
    name: str,
    weights: str | None,
    in_channels: int,
    *,
    encoder_depth: int | None = None,
    encoder_blocks: int | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build an encoder of the zoo: a plain ViT with one map at its patches' stride, or another as it is.

    Args:
        name: `vz-` and the name of a timm model.
        weights: A tag of the timm model's weights, `"imagenet"` for the default tag, or `None`.
        in_channels: Channels of the image.
        encoder_depth: Levels of an encoder that has levels, 5 by default; a plain ViT has none.
        encoder_blocks: Blocks of a plain ViT to use, all by default; other encoders take no such number.
        kwargs: Passed to `timm.create_model`.

    Raises:
        ValueError: If the name is not one of the zoo's, or the encoder has no levels or no such blocks.
        KeyError: If there is no such encoder or no such weights.
        TypeError: If the timm model has no such argument.
    """
    if not name.startswith("vz-"):
        raise ValueError(
            f"{name!r} is not an encoder of the zoo: choose one of the names that "
            "`vitseg_zoo.list_models('vz-*', kind='encoder')` gives, for example 'vz-vit_small_patch16_224'."
        )
    if name not in smp_encoders:
        near = get_close_matches(name, [key for key in smp_encoders if key.startswith("vz-")], n=5)
        raise KeyError(f"Wrong encoder name `{name}`, the nearest of the zoo's are: {near}")
    entry = smp_encoders[name]
    if weights is not None and weights not in entry["pretrained_settings"]:
        available = list(entry["pretrained_settings"])
        hint = (
            f"Available options are: {available}" if available else "It has none: pass encoder_weights=None"
        )
        raise KeyError(f"Wrong pretrained weights `{weights}` for encoder `{name}`. {hint}")
    if not issubclass(entry["encoder"], PyramidEncoder):
        if encoder_blocks is not None:
            raise ValueError(
                f"encoder_blocks is for plain ViTs; {name} has levels, and encoder_depth is how many."
            )
        depth = 5 if encoder_depth is None else encoder_depth
        return configured_encoder(name, in_channels, depth, weights, **kwargs)
    if encoder_depth is not None:
        raise ValueError(
            f"encoder_depth is a number of levels, and {name} has one: leave it out, got {encoder_depth}. "
            "How many of its transformer blocks are used is encoder_blocks."
        )
    timm_name = entry["params"]["name"]
    if weights not in (None, "imagenet"):
        timm_name = f"{timm_name}.{weights}"
    return PlainViTEncoder(timm_name, in_channels, encoder_blocks, pretrained=weights is not None, **kwargs)


def configured_encoder(
    name: str, in_channels: int, depth: int, weights: str | None, **kwargs: Any
) -> nn.Module:
    """Build an encoder as SMP's `get_encoder` does, with `kwargs` for the encoders of the zoo, too.

    Raises:
        KeyError: If there is no such encoder or no such weights.
        TypeError: If the timm model of an encoder of the zoo has no such argument.
    """
    encoder = get_encoder(name, in_channels=in_channels, depth=depth, weights=weights, **kwargs)
    if kwargs and isinstance(encoder, TimmEncoder):
        encoder.configure(**kwargs)
    return encoder


def plain_vit_encoder(name: str, weights: str | None, in_channels: int, **kwargs: Any) -> PlainViTEncoder:
    """Build the plain ViT that a name of the zoo stands for; arguments and errors are `token_encoder`'s.

    Raises:
        ValueError: Also if the encoder is no plain ViT.
    """
    encoder = token_encoder(name, weights, in_channels, **kwargs)
    if not isinstance(encoder, PlainViTEncoder):
        raise ValueError(
            f"{name!r} is not a plain ViT of the zoo: choose one of the names that "
            "`vitseg_zoo.list_models('vz-vit*')` gives, for example 'vz-vitseg_base_patch16_128'."
        )
    return encoder
