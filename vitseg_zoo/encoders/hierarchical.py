"""A timm model with maps at strides 4 to 32 as an SMP encoder with all of the five levels that SMP expects.

SMP's own encoders of this kind have an empty level at stride 2, which Unet++ and Linknet reject. Here that
level is the image itself, each 2 x 2 square of pixels unfolded into channels: no parameters, no pixel lost.
An architecture that has no use for it can have the empty one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import create_model
from torch import nn

from vitseg_zoo.encoders.mix_checkpoints import checkpoint_filter_fn
from vitseg_zoo.encoders.pretrained import note_left_out, resolve_pointer
from vitseg_zoo.encoders.timm_encoder import TimmEncoder


class HierarchicalEncoder(TimmEncoder):
    """A timm model with strides 4 to 32 in the form of SMP's encoders.

    State dicts are converted while loading: the timm model's own, and for MiT those of NVIDIA, SMP and
    Hugging Face.

    Args:
        name: Name of the timm model.
        depth: Number of levels, 2 to 5; level i has stride 2 ** i.
        output_stride: Stride that no level exceeds, by dilation: 8, 16 or 32.
        kwargs: Passed to `timm.create_model` (`drop_path_rate`, ...).

    Raises:
        ValueError: If `depth` or `output_stride` is out of range, or the model has other strides.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-mit_b0", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 64, 64))]
        [(3, 64, 64), (12, 32, 32), (32, 16, 16), (64, 8, 8), (160, 4, 4), (256, 2, 2)]
    """

    # Whether the level at stride 2 is the unfolded image; else it has 0 channels, as SMP marks an empty one.
    unfolds_image = True

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32, **kwargs: Any) -> None:
        if not 2 <= depth <= 5:
            raise ValueError(f"{type(self).__name__} depth should be in range [2, 5], got {depth}.")
        self._name = name
        self._depth = depth
        self._output_stride = 32
        super().__init__(in_channels=3, **kwargs)
        self.register_load_state_dict_pre_hook(_convert_while_loading)
        if output_stride != 32:
            self.make_dilated(output_stride)

    def _build(self, in_channels: int, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = create_model(self._name, pretrained, in_chans=in_channels, num_classes=0, **kwargs)
        strides = [info["reduction"] for info in model.feature_info]
        if strides != [4, 8, 16, 32]:
            raise ValueError(f"{self._name} has maps at strides {strides}, not at 4, 8, 16 and 32.")
        model.prune_intermediate_layers(list(range(self._depth - 1)))
        if self._output_stride != 32:
            model.set_output_stride(self._output_stride)
        return model

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of each level."""
        channels = [info["num_chs"] for info in self.model.feature_info[: self._depth - 1]]
        return [self._in_channels, 4 * self._in_channels if self.unfolds_image else 0, *channels]

    @property
    def output_stride(self) -> int:
        """Stride of the last level."""
        return self.model.feature_info[self._depth - 2]["reduction"]

    def make_dilated(self, output_stride: int) -> None:
        """Replace the strides of levels coarser than `output_stride`, 8 or 16, by dilation."""
        if output_stride not in (8, 16):
            raise ValueError(f"Output stride should be 16 or 8, got {output_stride}.")
        self.model.set_output_stride(output_stride)
        self._output_stride = output_stride

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, C, H, W) to itself and the levels, (B, C_i, ceil(H / 2**i), ceil(W / 2**i))."""
        return [x, self.stride_2(x), *self.model(x, run=_stages)]

    def stride_2(self, x: torch.Tensor) -> torch.Tensor:
        """Unfold 2 x 2 pixels into channels: (B, C, H, W) to (B, 4 C or 0, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[2:]
        if not self.unfolds_image:
            return x.new_empty(x.shape[0], 0, -(-height // 2), -(-width // 2))
        return F.pixel_unshuffle(F.pad(x, (0, width % 2, 0, height % 2)), 2)


def _stages(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return tuple(model.forward_intermediates(x, intermediates_only=True))  # backward hooks take no list


def _convert_while_loading(
    module: HierarchicalEncoder,
    state_dict: dict[str, torch.Tensor],
    prefix: str,
    metadata: dict[str, Any],
    *args: Any,
) -> None:
    own = {
        key.removeprefix(prefix): state_dict.pop(key) for key in list(state_dict) if key.startswith(prefix)
    }
    weights = {key.removeprefix("model."): value for key, value in resolve_pointer(own).items()}
    converted = checkpoint_filter_fn(weights, module.model)
    note_left_out(weights, converted, prefix, metadata)
    for key, value in converted.items():
        state_dict[f"{prefix}model.{key}"] = value
