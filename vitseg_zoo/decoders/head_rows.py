"""The fused all-MLP head a strip of rows at a time, for CPUs: the map of E channels stays in the cache.

See `all_mlp` for the mathematics. In evaluation the batch norm is folded into the weights, and `HeadRows`
gives the output row by row. In training `normalized_head` has gradients of its own, which keep one map of E
channels instead of several: what the backward pass needs beside it is computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.encoders.mix_ops import Layer, convolution_backward, pointwise

# Elements of a strip, 4 MB in fp32: it stays in the cache, and the allocator uses its memory again.
_STRIP_ELEMENTS = 2**20


class HeadRows:
    """The sum over levels of the fused head, (B, H, W, E) in memory: any rows of it, when asked for.

    Args:
        maps: One (B, C_i, H_i, W_i) a level.
        weights: (E, C_i) a level.
        bias: (E,).
        size: Height H and width W of the output.
    """

    def __init__(
        self, maps: Sequence[Tensor], weights: Sequence[Tensor], bias: Tensor, size: Sequence[int]
    ) -> None:
        self.height, self.width = size
        self.bias = bias
        self.finest: list[tuple[Tensor, Tensor]] = []  # (B, H, W, C) and (E, C)
        # Of coarser levels: how rows are interpolated, (H, h), and projected rows, (B, h, W * E).
        self.coarser: list[tuple[Tensor, Tensor]] = []
        for x, weight in zip(maps, weights, strict=True):
            if x.shape[2] >= self.height:
                x = resample(x, size).permute(0, 2, 3, 1).contiguous()
                self.finest.append((x, weight))
                continue
            x = pointwise(x.permute(0, 2, 3, 1), weight).permute(0, 3, 1, 2).to(bias.dtype)
            x = resample(x, (x.shape[2], self.width)).permute(0, 2, 3, 1).flatten(2)
            # Resampling is linear: what it does to unit vectors is its matrix.
            identity = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)[None, None]
            self.coarser.append((resample(identity, (self.height, x.shape[1]))[0, 0], x))

    def __call__(self, first: int, last: int, images: slice = slice(None)) -> Tensor:
        """Rows `first` to `last` (exclusive) of images behind the ReLU, (b, E, rows, W)."""
        return F.relu_(self.sums(images, first, last)).permute(0, 3, 1, 2)

    def whole(self, classify: Layer) -> Tensor:
        """What `classify` makes, pixel by pixel, of the output: (B, classes, H, W), made in strips."""
        output = None
        for images, first, last in self.strips():
            part = classify(self(first, last, images))
            if output is None:
                size = (len(self.finest[0][0]), part.shape[1], self.height, self.width)
                output = torch.empty(size, dtype=part.dtype, memory_format=torch.channels_last)
            output[images, :, first:last] = part
        return output

    def sums(self, images: slice, first: int, last: int) -> Tensor:
        """Rows `first` to `last` (exclusive) of images before norm and ReLU, (b, rows, W, E)."""
        x, weight = self.finest[0]
        # Added up in the weights' precision under autocast too, in which a CPU is faster.
        rows = pointwise(x[images, first:last], weight, self.bias).to(self.bias.dtype).contiguous()
        for x, weight in self.finest[1:]:
            rows += pointwise(x[images, first:last], weight)
        flat = rows.flatten(2)
        for matrix, x in self.coarser:
            top, bottom = self._between(x, first, last)
            flat.baddbmm_(matrix[first:last, top:bottom].expand(len(rows), -1, -1), x[images, top:bottom])
        return rows

    def add_gradients(self, strip: tuple[slice, int, int], gradient: Tensor, into: "HeadRows") -> None:
        """Adds to maps and weights of `into` what a gradient (b, rows, W, E) of a strip means for them."""
        images, first, last = strip
        for (x, weight), (to_x, to_weight) in zip(self.finest, into.finest, strict=True):
            of_x, of_weight, _ = convolution_backward(gradient, x[images, first:last], weight, None)
            to_x[images, first:last] = of_x
            to_weight += of_weight
        for (matrix, x), (_, to_x) in zip(self.coarser, into.coarser, strict=True):
            top, bottom = self._between(x, first, last)
            part = matrix[first:last, top:bottom].T.expand(len(gradient), -1, -1)
            to_x[images, top:bottom].baddbmm_(part, gradient.flatten(2))

    def strips(self) -> Iterator[tuple[slice, int, int]]:
        """Parts that stay in the cache: images, first and last row (exclusive)."""
        row = self.width * len(self.bias)
        images = max(1, _STRIP_ELEMENTS // (self.height * row))
        rows = self.height if images > 1 else max(4, _STRIP_ELEMENTS // row)
        for image in range(0, len(self.finest[0][0]), images):
            for first in range(0, self.height, rows):
                yield slice(image, image + images), first, min(first + rows, self.height)

    def tensors(self) -> list[Tensor]:
        """Maps and weights, for `with_tensors`."""
        return [tensor for pair in self.finest for tensor in pair] + [x for _, x in self.coarser]

    def with_tensors(self, tensors: Sequence[Tensor], bias: Tensor) -> "HeadRows":
        """The same head over other maps and weights."""
        other = object.__new__(HeadRows)
        other.height, other.width, other.bias = self.height, self.width, bias
        last = 2 * len(self.finest)
        other.finest = list(zip(tensors[:last:2], tensors[1:last:2], strict=True))
        matrices = [matrix for matrix, _ in self.coarser]
        other.coarser = list(zip(matrices, tensors[last:], strict=True))
        return other

    def _between(self, x: Tensor, first: int, last: int) -> tuple[int, int]:
        """The rows of a coarser level that rows of the output are interpolated from."""
        height = x.shape[1]
        return max(first * height // self.height - 1, 0), min(-(-last * height // self.height) + 1, height)


def resample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resamples a map (B, C, h, w) bilinearly, as SegFormer does its levels."""
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def normalized_head(rows: HeadRows, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm in training and ReLU over the whole sum of a head: (B, E, H, W).

    The running statistics of `norm` move as in its own forward pass.
    """
    factor = 0.0 if norm.momentum is None else norm.momentum
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:  # the mean of all batches
            factor = 1.0 / float(norm.num_batches_tracked)
    statistics = (norm.running_mean, norm.running_var) if norm.training else (None, None)
    settings = (*statistics, factor, norm.eps)
    return _NormalizedHead.apply(rows, settings, norm.weight, norm.bias, rows.bias, *rows.tensors())


class _NormalizedHead(torch.autograd.Function):
    """Levels, batch norm and ReLU with the gradients of all three (Ioffe and Szegedy 2015, section 3)."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: HeadRows,
        settings: tuple[Any, ...],
        weight: Tensor,
        bias: Tensor,
        head_bias: Tensor,
        *tensors: Tensor,
    ) -> Tensor:
        batch = len(tensors[0])
        total = head_bias.new_empty(batch, rows.height, rows.width, len(head_bias))
        for images, first, last in rows.strips():
            total[images, first:last] = rows.sums(images, first, last)
        mean_to, var_to, factor, eps = settings
        output, mean, inverse_std = torch.native_batch_norm(
            total.permute(0, 3, 1, 2), weight, bias, mean_to, var_to, True, factor, eps
        )
        output.relu_()
        ctx.shape_of = rows.with_tensors([tensor[:0] for tensor in tensors], head_bias[:0])
        ctx.save_for_backward(output, mean, inverse_std, weight, head_bias, *tensors)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        output, mean, inverse_std, weight, head_bias, *tensors = ctx.saved_tensors
        centred = ctx.shape_of.with_tensors(tensors, head_bias - mean)  # sums less their mean
        output, gradient = (t.permute(0, 2, 3, 1) for t in (output, gradient))  # (B, H, W, E)

        def through_relu(images: slice, first: int, last: int) -> Tensor:
            part = gradient[images, first:last].contiguous()
            return torch.ops.aten.threshold_backward(part, output[images, first:last], 0)

        to_bias, to_weight = torch.zeros_like(mean), torch.zeros_like(mean)
        for strip in centred.strips():
            part = through_relu(*strip)
            to_bias += part.sum((0, 1, 2))
            to_weight += part.mul_(centred.sums(*strip)).sum((0, 1, 2))
        to_weight *= inverse_std

        count = output[..., 0].numel()
        scale = weight * inverse_std
        offset, slope = -scale * to_bias / count, -scale * inverse_std * to_weight / count
        into = centred.with_tensors([torch.zeros_like(tensor) for tensor in tensors], head_bias)
        for strip in centred.strips():
            part = torch.addcmul(offset, centred.sums(*strip), slope)
            part.addcmul_(through_relu(*strip), scale)
            centred.add_gradients(strip, part, into)
        # What the norm subtracts again has no gradient.
        return None, None, to_weight, to_bias, torch.zeros_like(head_bias), *into.tensors()
