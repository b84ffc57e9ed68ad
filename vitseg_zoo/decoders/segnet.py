"""SegNet's two halves: convolutions with max pooling, and their mirror image with max unpooling.

Paper: "SegNet: A Deep Convolutional Encoder-Decoder Architecture for Image Segmentation",
https://arxiv.org/abs/1511.00561, section 3. Here in the size of the article series "Efficient Image
Segmentation Using PyTorch": four levels of up to 512 channels instead of VGG16's five, and a batch norm on
the image. Written from their descriptions. The depthwise-separable form is that of the series' second part,
after MobileNets, https://arxiv.org/abs/1704.04861.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

CHANNELS = (64, 128, 256, 512)  # of each level
CONVS = (2, 2, 3, 3)  # convolutions of each level


def conv_norm(in_channels: int, out_channels: int, separable: bool) -> list[nn.Module]:
    """Make a 3 x 3 convolution without bias and its batch norm, (B, in, H, W) to (B, out, H, W).

    Args:
        in_channels: Channels of the map.
        out_channels: Channels of the output.
        separable: Make the convolution of a depthwise one and a 1 x 1 one.
    """
    if separable:
        convs = [
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1, bias=False),
        ]
    else:
        convs = [nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)]
    return [*convs, nn.BatchNorm2d(out_channels)]


# PyTorch before 2.7 says only that it traces.
_is_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


class ConvBlock(nn.Sequential):
    """The convolutions of one level, each with a batch norm and a ReLU: (B, C_0, H, W) to (B, C_n, H, W).

    Args:
        channels: Channels of the map and of each convolution's output, C_0 ... C_n.
        separable: See `conv_norm`.
    """

    def __init__(self, channels: Sequence[int], separable: bool) -> None:
        super().__init__()
        for in_channels, out_channels in pairwise(channels):
            self.extend([*conv_norm(in_channels, out_channels, separable), nn.ReLU(inplace=True)])


class SegNetEncoder(nn.Module):
    """Halves the map at each level, and remembers where the maxima were.

    Args:
        in_channels: Channels of the image.
        separable: See `conv_norm`.
    """

    output_stride = 2 ** len(CHANNELS)

    def __init__(self, in_channels: int, separable: bool) -> None:
        super().__init__()
        self.out_channels = (in_channels, *CHANNELS)
        self.input_norm = nn.BatchNorm2d(in_channels)
        self.blocks = nn.ModuleList(
            ConvBlock([before, *[after] * convs], separable)
            for before, after, convs in zip((in_channels, *CHANNELS), CHANNELS, CONVS, strict=False)
        )

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map images (B, C, H, W) to each level's indices of maxima, fine to coarse, and the last map.

        Returns:
            Four tensors (B, C_i, H / 2^i, W / 2^i) of int64, and the map (B, 512, H / 16, W / 16).
        """
        x = self.input_norm(x)
        features = []
        for block in self.blocks:
            x, indices = F.max_pool2d(block(x), 2, return_indices=True)
            features.append(indices)
        features.append(x)
        return features


class SegNetDecoder(nn.Module):
    """Puts the values of each level back where the maxima were, and fills the rest by convolutions.

    The last convolution of all, which gives the classes, is the architecture's segmentation head.

    Args:
        separable: See `conv_norm`.
    """

    def __init__(self, separable: bool) -> None:
        super().__init__()
        channels = [
            [level] * convs + [finer]
            for level, finer, convs in zip(CHANNELS[:0:-1], CHANNELS[-2::-1], CONVS[:0:-1], strict=True)
        ]
        channels.append([CHANNELS[0]] * CONVS[0])
        self.blocks = nn.ModuleList(ConvBlock(numbers, separable) for numbers in channels)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        """Map what `SegNetEncoder` gives to (B, 64, H, W)."""
        x = features[-1]
        for i, block in enumerate(self.blocks):
            x = block(_unpool(x, features[-2 - i]))
        return x


def _unpool(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Put maxima (B, C, h, w) back to their places in (B, C, 2 * h, 2 * w), zeros elsewhere."""
    if torch.jit.is_scripting():  # which cannot ask what follows
        return F.max_unpool2d(x, places, 2)
    else:
        if not _is_exporting():
            return F.max_unpool2d(x, places, 2)
        # Slower on a CPU; of `max_unpool2d`, PyTorch's exporter to ONNX has no form for any size.
        batch, channels, height, width = x.shape
        zeros = x.new_zeros(batch, channels, 4 * height * width)
        return zeros.scatter(2, places.flatten(2), x.flatten(2)).unflatten(2, (2 * height, 2 * width))
