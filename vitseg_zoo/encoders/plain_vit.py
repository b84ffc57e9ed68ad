"""A plain ViT of timm as an encoder of one level: the tokens of its last block as a map at the patch's stride.

What the heads that read tokens (`vitseg` and its like) build on; the decoders of SMP, which want maps at strides
2 to 32, build on `vitseg_zoo.encoders.pyramid`.
"""

from typing import Any

import torch
from timm.models import adapt_input_conv, create_model
from torch import nn


class PlainViTEncoder(nn.Module):
    """A timm ViT whose last block's tokens are the one feature map.

    Args:
        name: Name of the timm model, with or without a tag.
        in_channels: Channels of the image.
        depth: How many of the model's blocks to keep, all of them by default.
        pretrained: Load the weights of the name's tag.
        kwargs: Passed to `timm.create_model` (`drop_path_rate`, `img_size`, ...).

    Raises:
        ValueError: If the model is no plain ViT, or has fewer blocks than `depth`.

    Example:
        >>> import torch
        >>> encoder = PlainViTEncoder("vitseg_tiny_patch16_128")
        >>> [tuple(feature.shape) for feature in encoder(torch.rand(1, 3, 128, 96))]
        [(1, 3, 128, 96), (1, 192, 8, 6)]
    """

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        depth: int | None = None,
        pretrained: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.model = create_model(name, pretrained=pretrained, in_chans=in_channels, num_classes=0, **kwargs)
        strides = {info["reduction"] for info in getattr(self.model, "feature_info", [])}
        if len(strides) != 1 or not hasattr(self.model, "forward_intermediates"):
            raise ValueError(f"{name} is not a plain ViT: its features have the strides {sorted(strides)}.")
        blocks = len(self.model.feature_info)
        if depth is not None and not 1 <= depth <= blocks:
            raise ValueError(
                f"{name} has {blocks} blocks, encoder_depth must lie in [1, {blocks}], got {depth}."
            )
        self.model.prune_intermediate_layers([(depth or blocks) - 1])
        self.output_stride: int = strides.pop()
        self.out_channels: list[int] = [in_channels, self.model.feature_info[0]["num_chs"]]

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps an image (B, C, H, W) to itself and to (B, D, ceil(H / p), ceil(W / p)) for patches of side p."""
        return [x, self.model.forward_intermediates(x, indices=1, norm=True, intermediates_only=True)[0]]


def adapt_in_channels(state_dict: dict[str, torch.Tensor], model: nn.Module) -> dict[str, torch.Tensor]:
    """Fits the weights of a timm model's input layers to the number of image channels that `model` takes.

    The first convolution is adapted as timm does it (weights summed for one channel, repeated and scaled for
    more); a norm on the image itself repeats its channels.
    """
    adapted = dict(state_dict)
    for key, target in model.state_dict().items():
        weight = state_dict.get(key)
        if weight is None or weight.shape == target.shape:
            continue
        if weight.ndim == 4 and weight.shape[0] == target.shape[0]:
            adapted[key] = adapt_input_conv(target.shape[1], weight)
        elif ".input_norm." in f".{key}":
            adapted[key] = weight.repeat(-(-target.shape[0] // weight.shape[0]))[: target.shape[0]]
    return adapted
