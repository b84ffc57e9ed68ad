"""Any plain ViT of timm as an SMP encoder: the maps at strides 2 to 32 that SMP's decoders expect.

A plain ViT has one stride, that of its patches. Level i of the pyramid reads a block of its own, blocks being
spread evenly over the depth as in "Vision Transformers for Dense Prediction",
https://arxiv.org/abs/2103.13413. Its tokens are first brought to a grid whose stride is a power of two
(patches of 14 pixels to stride 16, each value where it was in the image), then to stride 2 ** i, in one of
two ways:

* `PyramidEncoder`, without parameters: a finer level unfolds channels into space (pixel shuffle), a coarser
  one is averaged.
* `SimpleFeaturePyramidEncoder`: transposed convolutions and max pooling, then a 1 x 1 and a 3 x 3
  convolution, as in "Exploring Plain Vision Transformer Backbones for Object Detection" (ViTDet),
  https://arxiv.org/abs/2203.16527. It differs from the paper in that levels read different blocks instead of
  the last one, in that there is a level at stride 2, and in that the two finest levels are narrower.

Written from the papers.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import LayerNorm
from timm.layers.fast_norm import fast_layer_norm
from torch import nn

from vitseg_zoo.encoders.plain_vit import TimmViT
from vitseg_zoo.ops.autocast import autocast_dtype, without_autocast
from vitseg_zoo.ops.dispatch import may_bypass

_MIN_CHANNELS = 8  # of a level that unfolds channels: Linknet divides them by four


class PyramidEncoder(TimmViT):
    """A timm ViT with one map at each of SMP's strides, in the form of SMP's encoders.

    Args:
        name: Name of the timm model.
        depth: Number of levels, 1 to 5; level i has stride 2 ** i.
        output_stride: Stride that no level exceeds, 8, 16 or 32.
        kwargs: Passed to `timm.create_model` (`drop_path_rate`, `img_size`, ...).

    Raises:
        ValueError: If the model is no plain ViT, or `depth` or `output_stride` is out of range.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-shuffle-vitseg_tiny_patch16_128", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 64, 64))]
        [(3, 64, 64), (12, 32, 32), (12, 16, 16), (48, 8, 8), (192, 4, 4), (192, 2, 2)]
    """

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32, **kwargs: Any) -> None:
        if not 1 <= depth <= 5:
            raise ValueError(f"{type(self).__name__} depth should be in range [1, 5], got {depth}.")
        self._depth = depth
        self._output_stride = 32
        super().__init__(name, **kwargs)
        # Of the power of two that is nearest to the patch's side; torch 2.5 cannot compile the logarithm.
        self._grid_level = round(math.log2(self.patch_size))
        if output_stride != 32:
            self.make_dilated(output_stride)

    def _blocks(self, total: int) -> list[int]:
        return sorted(set(self._level_blocks(total)))

    def _level_blocks(self, total: int) -> list[int]:
        """Return the index of the block that each level reads; levels share blocks where there are few."""
        return [math.ceil(total * level / self._depth) - 1 for level in range(1, self._depth + 1)]

    @property
    def _grid_stride(self) -> int:
        return 2**self._grid_level

    @property
    def _level_channels(self) -> list[int]:
        shuffles = [self._shuffle(level) for level in range(1, self._depth + 1)]
        return [self.embed_dim // shuffle**2 for shuffle in shuffles]

    def _shuffle(self, level: int) -> int:
        """Say by how much a level unfolds channels into space; what is left to its stride is interpolated."""
        shuffle = max(1, self._grid_stride // 2**level)
        while shuffle > 1 and (self.embed_dim % shuffle**2 or self.embed_dim // shuffle**2 < _MIN_CHANNELS):
            shuffle //= 2
        return shuffle

    @property
    def out_channels(self) -> list[int]:
        """Channels of the image and of each level."""
        return [self._in_channels, *self._level_channels]

    @property
    def output_stride(self) -> int:
        """Stride of the last level."""
        return min(self._output_stride, 2**self._depth)

    def make_dilated(self, output_stride: int) -> None:
        """Resample levels coarser than `output_stride`, 8 or 16, to that stride, as DeepLab and PAN ask."""
        if output_stride not in (8, 16):
            raise ValueError(f"Output stride should be 16 or 8, got {output_stride}.")
        self._output_stride = output_stride

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Map an image (B, C, H, W) to itself and to levels (B, C_i, ceil(H / 2 ** i), ceil(W / 2 ** i))."""
        height, width = x.shape[2:]
        blocks = self._level_blocks(len(self.model.feature_info))
        grids = [self._resample_to_grid(tokens, height, width) for tokens in self.maps(x)]
        grid_of = dict(zip(sorted(set(blocks)), grids, strict=True))
        levels = [x]
        for level, block in enumerate(blocks, start=1):
            stride = min(2**level, self._output_stride)
            feature = self._to_level(grid_of[block], level, stride)
            levels.append(feature[..., : -(-height // stride), : -(-width // stride)])
        return levels

    def _resample_to_grid(self, tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Bring tokens (B, D, ceil(H / p), ceil(W / p)) to the grid's stride, (B, D, ceil(H / g), ...)."""
        patch, grid = self.patch_size, self._grid_stride
        if patch == grid:
            return tokens
        # The margin covers a last cell of the grid that reaches beyond the last patch.
        tokens = F.pad(tokens, (0, 2, 0, 2), mode="replicate")
        resampled = F.interpolate(
            tokens,
            scale_factor=patch / grid,
            mode="bilinear",
            align_corners=False,
            recompute_scale_factor=False,
        )
        return resampled[..., : -(-height // grid), : -(-width // grid)]

    def _to_level(self, grid: torch.Tensor, level: int, stride: int) -> torch.Tensor:
        """Bring a map (B, D, h, w) of the grid to a level's stride, (B, C_i, ...)."""
        shuffle = self._shuffle(level)
        cells = grid.permute(0, 2, 3, 1).unflatten(-1, (-1, shuffle, shuffle))  # (B, h, w, C_i, y, x)
        feature = _join_cells(cells.permute(0, 1, 2, 4, 5, 3))  # as `F.pixel_shuffle`, channels-last
        return change_stride(feature, self._grid_stride // shuffle, stride, F.avg_pool2d)


class SimpleFeaturePyramidEncoder(PyramidEncoder):
    """A timm ViT with ViTDet's learned pyramid; arguments, errors and interface are `PyramidEncoder`'s.

    Levels have 64, 128, 256, 256 and 256 channels.

    Example:
        >>> import segmentation_models_pytorch as smp, torch
        >>> encoder = smp.encoders.get_encoder("vz-vitseg_tiny_patch16_128", weights=None)
        >>> [tuple(feature.shape[1:]) for feature in encoder(torch.rand(1, 3, 64, 64))]
        [(3, 64, 64), (64, 32, 32), (128, 16, 16), (256, 8, 8), (256, 4, 4), (256, 2, 2)]
    """

    def __init__(self, name: str, depth: int = 5, output_stride: int = 32, **kwargs: Any) -> None:
        super().__init__(name, depth, output_stride, **kwargs)
        self.levels = nn.ModuleList(
            _LearnedLevel(self.embed_dim, channels, ups=self._ups(level))
            for level, channels in enumerate(self._level_channels, start=1)
        )

    @property
    def _level_channels(self) -> list[int]:
        return [64, 128, 256, 256, 256][: self._depth]

    def _ups(self, level: int) -> int:
        """Say how many times a level doubles the grid's resolution."""
        return max(0, self._grid_level - level)

    def _to_level(self, grid: torch.Tensor, level: int, stride: int) -> torch.Tensor:
        up = 2 ** self._ups(level)
        # Resampled where no transposed convolution does it: to coarser strides, or to the limit on strides.
        feature = change_stride(grid, self._grid_stride, stride * up, F.max_pool2d)
        return self.levels[level - 1](feature)


class _LearnedLevel(nn.Sequential):
    """ViTDet's path to one level: `ups` transposed convolutions, then the two that all levels have.

    All but the last convolution work on each cell of the grid by itself: what a cell becomes stays together
    in memory until then, so that the map is put together once, whatever the number of `ups`. The last of the
    transposed convolutions and the convolution behind it, with nothing between them, are one linear layer.
    """

    def __init__(self, channels_in: int, channels: int, ups: int) -> None:
        layers: list[nn.Module] = []
        for up in range(ups):
            channels_out = max(channels_in // 2, channels)
            layers.append(_CellsOfFour(channels_in, channels_out, kernel_size=2, stride=2))
            if up < ups - 1:
                layers += [_Norm(channels_out), nn.GELU()]
            channels_in = channels_out
        layers += [_Pointwise(channels_in, channels, kernel_size=1, bias=False), _Norm(channels)]
        layers += [nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False), _Norm(channels)]
        super().__init__(*layers)
        self.ups = ups

    def forward(self, grid: torch.Tensor) -> torch.Tensor:
        """Map (B, D, h, w) to (B, C, h * 2 ** ups, w * 2 ** ups)."""
        *layers, pointwise, cell_norm, conv, norm = self
        cells = grid.permute(0, 2, 3, 1).unsqueeze(3)
        up = (
            layers.pop()
            if layers and may_bypass((layers[-1], _CellsOfFour), (pointwise, _Pointwise))
            else None
        )
        for layer in layers:
            cells = layer(cells)  # (B, h, w, 4 ** ups, C)
        cells = cell_norm(pointwise(cells) if up is None else _in_one(up, pointwise, cells))
        # Not earlier: OpenVINO's norms and activations of eight axes are wrong.
        cells = cells.unflatten(3, (2, 2) * self.ups) if self.ups else cells.squeeze(3)
        return norm(conv(_join_cells(cells)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class _CellsOfFour(nn.ConvTranspose2d):
    """A transposed convolution from each cell to four, a linear layer: (..., n, C) to (..., 4 * n, D)."""

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        weight = self.weight.permute(2, 3, 1, 0).flatten(0, 2)
        return F.linear(cells, weight, self.bias.repeat(4)).unflatten(-1, (4, -1)).flatten(-3, -2)


class _Pointwise(nn.Conv2d):
    """A 1 x 1 convolution of (..., C)."""

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return F.linear(cells, self.weight.flatten(1), self.bias)


def _in_one(up: _CellsOfFour, pointwise: _Pointwise, cells: torch.Tensor) -> torch.Tensor:
    """Compute `pointwise(up(cells))` by the product of their weights."""
    matrix = pointwise.weight.flatten(1)  # (D, C)
    with without_autocast(cells):
        # (4, D, C_in); `@` would copy what it is made of
        weight = torch.bmm(matrix.expand(4, -1, -1), up.weight.flatten(2).permute(2, 1, 0))
        bias = matrix @ up.bias
    return F.linear(cells, weight.flatten(0, 1), bias.repeat(4)).unflatten(-1, (4, -1)).flatten(-3, -2)


class _Norm(LayerNorm):
    """Layer norm of (..., C), under autocast in its type: both neighbors are convolutions and have that."""

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        if autocast_dtype(cells) is None:
            return super().forward(cells)
        return fast_layer_norm(cells, self.normalized_shape, self.weight, self.bias, self.eps)


def _join_cells(cells: torch.Tensor) -> torch.Tensor:
    """Put cells that hold cells, (B, h, w, y, x, ..., C), together: (B, C, h * y * ..., w * x * ...)."""
    last = cells.ndim - 1
    rows, columns = range(1, last, 2), range(2, last, 2)
    cells = cells.permute(0, *rows, *columns, last)
    return cells.flatten(len(rows) + 1, last - 1).flatten(1, len(rows)).permute(0, 3, 1, 2)


def change_stride(x: torch.Tensor, stride: int, new_stride: int, pool: Any) -> torch.Tensor:
    """Resample a map: bilinearly to a finer stride, by pooling to a coarser one."""
    if new_stride < stride:
        return F.interpolate(x, scale_factor=stride // new_stride, mode="bilinear", align_corners=False)
    if new_stride > stride:
        return _pool_whole(x, new_stride // stride, pool)
    return x


def _pool_whole(x: torch.Tensor, size: int, pool: Any) -> torch.Tensor:
    """Pool windows of `size`; those that reach beyond the map repeat its last row and column."""
    height, width = x.shape[2:]
    if height % size or width % size:
        x = F.pad(x, (0, -width % size, 0, -height % size), mode="replicate")
    return pool(x, size)
