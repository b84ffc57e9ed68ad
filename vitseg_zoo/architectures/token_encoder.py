"""How the architectures whose heads read tokens find the encoder that a name of SMP's stands for."""

from difflib import get_close_matches
from typing import Any

from segmentation_models_pytorch.encoders import encoders as smp_encoders
from segmentation_models_pytorch.encoders import get_encoder
from torch import nn

from vitseg_zoo.encoders.plain_vit import PlainViTEncoder
from vitseg_zoo.encoders.pyramid import PyramidEncoder
from vitseg_zoo.encoders.timm_encoder import TimmEncoder


def token_encoder(
    name: str, weights: str | None, in_channels: int, encoder_depth: int | None, **kwargs: Any
) -> nn.Module:
    """Builds an encoder of the zoo: a plain ViT with one map at its patches' stride, or another as it is.

    Args:
        name: `vz-` and the name of a timm model.
        weights: A tag of the timm model's weights, `"imagenet"` for the default tag, or `None`.
        in_channels: Channels of the image.
        encoder_depth: Blocks of a plain ViT to use, or levels of another encoder; all by default.
        kwargs: Passed to `timm.create_model`.

    Raises:
        ValueError: If the name is not one of the zoo's.
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
        depth = 5 if encoder_depth is None else encoder_depth
        return configured_encoder(name, in_channels, depth, weights, **kwargs)
    timm_name = entry["params"]["name"]
    if weights not in (None, "imagenet"):
        timm_name = f"{timm_name}.{weights}"
    return PlainViTEncoder(timm_name, in_channels, encoder_depth, pretrained=weights is not None, **kwargs)


def configured_encoder(
    name: str, in_channels: int, depth: int, weights: str | None, **kwargs: Any
) -> nn.Module:
    """SMP's `get_encoder`, with `kwargs` for the encoders of the zoo, too.

    Raises:
        KeyError: If there is no such encoder or no such weights.
        TypeError: If the timm model of an encoder of the zoo has no such argument.
    """
    encoder = get_encoder(name, in_channels=in_channels, depth=depth, weights=weights, **kwargs)
    if kwargs and isinstance(encoder, TimmEncoder):
        encoder.configure(**kwargs)
    return encoder


def plain_vit_encoder(
    name: str, weights: str | None, in_channels: int, encoder_depth: int | None, **kwargs: Any
) -> PlainViTEncoder:
    """Builds the plain ViT that a name of the zoo stands for; arguments and errors are `token_encoder`'s.

    Raises:
        ValueError: Also if the encoder is no plain ViT.
    """
    encoder = token_encoder(name, weights, in_channels, encoder_depth, **kwargs)
    if not isinstance(encoder, PlainViTEncoder):
        raise ValueError(
            f"{name!r} is not a plain ViT of the zoo: choose one of the names that "
            "`vitseg_zoo.list_models('vz-vit*')` gives, for example 'vz-vitseg_base_patch16_128'."
        )
    return encoder
