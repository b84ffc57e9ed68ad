"""Any plain ViT of timm as an SMP encoder: the maps at strides 2 to 32 that SMP's decoders expect.

A plain ViT has one stride, that of its patches. The levels are taken from blocks spread evenly over the depth,
in the spirit of "Vision Transformers for Dense Prediction", https://arxiv.org/abs/2103.13413, and brought to
their strides without parameters: a finer level unfolds channels into space (pixel shuffle, so that stride 8 has
a quarter of the channels and twice the resolution of stride 16), a coarser one is averaged.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.models import create_model
from torch import nn

from vitseg_zoo.encoders.plain_vit import adapt_in_channels


class PyramidEncoder(nn.Module):
    """A timm ViT with one map at each of SMP's strides, in the form of SMP's encoders.

    Args:
        name: Name of the timm model.
        depth: Number of levels, 1 to 5; level i has stride 2 ** i.
        output_stride: Stride that no level exceeds: 8, 16 or 32.

    Raises:
        ValueError: If `depth` or `output_stride` is out of range.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-vitseg_tiny_patch16_128", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 64, 64))]
        [(3, 64, 64), (3, 32, 32), (12, 16, 16), (48, 8, 8), (192, 4, 4), (192, 2, 2)]
    """

    _is_torch_scriptable = False
    _is_torch_exportable = True
    _is_torch_compilable = True

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32) -> None:
        super().__init__()
        if not 1 <= depth <= 5:
            raise ValueError(f"{type(self).__name__} depth should be in range [1, 5], got {depth}.")
        self._name = name
        self._depth = depth
        self._output_stride = output_stride
        self._create(in_channels=3)

    def _create(self, in_channels: int) -> None:
        self.model = create_model(self._name, in_chans=in_channels, num_classes=0)
        blocks, stride = len(self.model.feature_info), self.model.feature_info[0]["reduction"]
        self._indices = [-(-blocks * level // self._depth) - 1 for level in range(1, self._depth + 1)]
        self.model.prune_intermediate_layers(self._indices)
        # How much finer than the patches each level is; the nearest power of two where the patch's side is none.
        self._shuffles = [max(1, round(stride / 2**level)) for level in range(1, self._depth + 1)]
        self._shuffles = [1 << (shuffle.bit_length() - 1) for shuffle in self._shuffles]
        channels = self.model.feature_info[0]["num_chs"]
        self._out_channels = [in_channels, *(channels // shuffle**2 for shuffle in self._shuffles)]

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of each level."""
        return self._out_channels

    @property
    def output_stride(self) -> int:
        """Stride of the last level."""
        return min(self._output_stride, 2**self._depth)

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Makes the encoder take `in_channels` image channels; `pretrained` keeps and adapts its weights."""
        if in_channels == self._out_channels[0]:
            return
        state_dict = self.model.state_dict()
        self._create(in_channels)
        if pretrained:
            self.model.load_state_dict(adapt_in_channels(state_dict, self.model))

    def make_dilated(self, output_stride: int) -> None:
        """Keeps every level at `output_stride` (8 or 16) or finer, as DeepLab and PAN ask of an encoder."""
        if output_stride not in (8, 16):
            raise ValueError(f"Output stride should be 16 or 8, got {output_stride}.")
        self._output_stride = output_stride

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps an image (B, C, H, W) to itself and to levels of (B, C_i, H / 2 ** i, W / 2 ** i)."""
        features = self.model.forward_intermediates(
            x, indices=self._indices, norm=False, intermediates_only=True
        )
        height, width = x.shape[2:]
        levels = [x]
        for level, (feature, shuffle) in enumerate(zip(features, self._shuffles, strict=True), start=1):
            stride = min(2**level, self._output_stride)
            size = (-(-height // stride), -(-width // stride))
            levels.append(_resize(F.pixel_shuffle(feature, shuffle), size))
        return levels

    def load_state_dict(self, state_dict: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        """Takes this encoder's weights, or those of the timm model itself, with or without its classifier."""
        if not any(key.startswith("model.") for key in state_dict):
            state_dict = {
                f"model.{key}": value for key, value in state_dict.items() if not key.startswith("head.")
            }
        return super().load_state_dict(state_dict, *args, **kwargs)


def _resize(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    if tuple(x.shape[2:]) == size:
        return x
    if size[0] <= x.shape[2] and size[1] <= x.shape[3]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
