"""Any plain ViT of timm with eyes for detail: a short convolutional path over the image beside it.

A plain ViT sees the image as patches of 14 or 16 pixels, and every level of its pyramid is made of tokens
that have lost what is smaller. Here the levels at strides 2, 4 and 8 come from convolutions over the image,
to which the tokens are added. The path trains also where the ViT is frozen. Prior art: the spatial prior
module of "Vision Transformer Adapter for Dense Predictions", https://arxiv.org/abs/2205.08534, section 3.3,
without its deformable attention; and U-Net's own habit of keeping early maps. Written from the paper.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from vitseg_zoo.encoders.pretrained import adapt_in_channels
from vitseg_zoo.encoders.pyramid import PyramidEncoder, change_stride

CHANNELS = (32, 64, 128)  # of the levels at strides 2, 4 and 8


class DetailPath(nn.Module):
    """Two 3 x 3 convolutions with batch norm and ReLU at each of strides 2, 4 and 8.

    Args:
        in_channels: Channels of the image.
        depth: How many of the strides, 1 to 3.
    """

    def __init__(self, in_channels: int, depth: int = len(CHANNELS)) -> None:
        super().__init__()
        widths = (in_channels, *CHANNELS[:depth])
        self.levels = nn.ModuleList(
            nn.Sequential(*conv_norm_relu(widths[i], widths[i + 1], stride=2), *conv_norm_relu(widths[i + 1]))
            for i in range(depth)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to (B, C_i, ceil(H / 2 ** i), ceil(W / 2 ** i)) for i = 1, 2, 3."""
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        return features


def conv_norm_relu(in_channels: int, out_channels: int | None = None, stride: int = 1) -> list[nn.Module]:
    """Make a 3 x 3 convolution without bias, its batch norm and a ReLU; channels stay by default."""
    out_channels = out_channels or in_channels
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    ]


class DetailPyramidEncoder(PyramidEncoder):
    """A timm ViT whose fine levels see the image itself; arguments and interface are `PyramidEncoder`'s.

    Levels 1 to 3 are the path's maps plus the tokens, brought to their channels by a 1 x 1 convolution and
    upsampled. Levels 4 and 5 are `PyramidEncoder`'s, made of tokens alone.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-detail-vitseg_tiny_patch16_128", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 64, 64))]
        [(3, 64, 64), (32, 32, 32), (64, 16, 16), (128, 8, 8), (192, 4, 4), (192, 2, 2)]
    """

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32, **kwargs: Any) -> None:
        super().__init__(name, depth, output_stride, **kwargs)
        self.path = DetailPath(self._in_channels, min(depth, len(CHANNELS)))
        self.laterals = nn.ModuleList(
            nn.Conv2d(self.embed_dim, channels, kernel_size=1)
            for channels in self._level_channels[: len(CHANNELS)]
        )

    @property
    def _level_channels(self) -> list[int]:
        return [*CHANNELS, *super()._level_channels[len(CHANNELS) :]][: self._depth]

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Take `in_channels` image channels; `pretrained` keeps and adapts the weights."""
        super().set_in_channels(in_channels, pretrained)
        old, path = self.path, DetailPath(in_channels, len(self.path.levels))
        weights = old.state_dict() if pretrained else path.state_dict()
        path.load_state_dict(adapt_in_channels(weights, path))
        self.path = path.to(next(old.parameters())).train(old.training)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, C, H, W) to itself and to levels (B, C_i, ceil(H / 2 ** i), ceil(W / 2 ** i))."""
        levels = super().forward(x)
        for level, detail in enumerate(self.path(x), start=1):
            levels[level] = levels[level] + detail
        return levels

    def _to_level(self, grid: torch.Tensor, level: int, stride: int) -> torch.Tensor:
        if level <= len(CHANNELS):
            grid = self.laterals[level - 1](grid)  # before it is upsampled, where it costs least
            return change_stride(grid, self._grid_stride, stride, F.avg_pool2d)
        return super()._to_level(grid, level, stride)
