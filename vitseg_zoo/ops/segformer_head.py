"""The fused all-MLP head a strip of rows at a time, for CPUs: the map of E channels stays in the cache.

See `all_mlp` for the mathematics. In evaluation the batch norm is folded into the weights, and `HeadRows`
gives the output row by row. In training `classified_head` has gradients of its own, which keep one map of E
channels instead of several: what the backward pass needs beside it is computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.ops import memory
from vitseg_zoo.ops.bilinear import add_doubled, gradient_of_doubled, resample, resampling_matrix
from vitseg_zoo.ops.dispatch import Layer, pointwise, pointwise_backward

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
        # Of coarser levels: how rows and columns are interpolated, (H, h) and (W, w), and (B, h, w, E).
        self.coarser: list[tuple[Tensor, Tensor, Tensor]] = []
        for x, weight in zip(maps, weights, strict=True):
            if x.shape[2] >= self.height:
                x = resample(x, size).permute(0, 2, 3, 1).contiguous()
                self.finest.append((x, weight))
                continue
            x = pointwise(x.permute(0, 2, 3, 1), weight).to(bias.dtype).contiguous()
            matrices = (resampling_matrix(*sides, like=x) for sides in zip(x.shape[1:3], size, strict=True))
            self.coarser.append((*matrices, x))

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
        return self._add_levels(rows, images, first, last)

    def write_sums(self, images: slice, first: int, last: int, out: Tensor) -> Tensor:
        """Like `sums`, written into `out`, and without the bias, which a batch norm cancels."""
        x, weight = self.finest[0]
        torch.mm(x[images, first:last].flatten(0, 2), weight.T, out=out.flatten(0, 2))
        return self._add_levels(out, images, first, last)

    def _add_levels(self, rows: Tensor, images: slice, first: int, last: int) -> Tensor:
        """Adds to rows (b, rows, W, E) of the first of the finest levels those of all others."""
        for x, weight in self.finest[1:]:
            rows += pointwise(x[images, first:last], weight)
        flat = rows.flatten(0, 1)  # (b * rows, W, E)
        for vertical, horizontal, x in self.coarser:
            top, bottom = self._between(x, first, last)
            with torch.autocast(x.device.type, enabled=False):
                part = vertical[first:last, top:bottom] @ x[images, top:bottom].flatten(2)  # (b, rows, w * E)
            part = part.view(len(flat), -1, x.shape[3])
            if _doubles(horizontal):
                add_doubled(flat, part)
            else:
                flat.baddbmm_(horizontal.expand(len(flat), -1, -1), part)
        return rows

    def add_gradients(self, strip: tuple[slice, int, int], gradient: Tensor, into: "HeadRows") -> None:
        """Adds to maps and weights of `into` what a gradient (b, rows, W, E) of a strip means for them."""
        images, first, last = strip
        for (x, weight), (to_x, to_weight) in zip(self.finest, into.finest, strict=True):
            of_x, of_weight, _ = pointwise_backward(gradient, x[images, first:last], weight, None)
            to_x[images, first:last] = of_x
            to_weight += of_weight
        for (vertical, horizontal, x), (_, _, to_x) in zip(self.coarser, into.coarser, strict=True):
            top, bottom = self._between(x, first, last)
            part = gradient_of_doubled(gradient) if _doubles(horizontal) else horizontal.T @ gradient
            to_rows = vertical[first:last, top:bottom].T.expand(len(part), -1, -1)
            to_x[images, top:bottom].flatten(2).baddbmm_(to_rows, part.flatten(2))  # (b, rows, w * E)

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
        return [tensor for pair in self.finest for tensor in pair] + [x for *_, x in self.coarser]

    def with_tensors(self, tensors: Sequence[Tensor], bias: Tensor) -> "HeadRows":
        """The same head over other maps and weights."""
        other = object.__new__(HeadRows)
        other.height, other.width, other.bias = self.height, self.width, bias
        last = 2 * len(self.finest)
        other.finest = list(zip(tensors[:last:2], tensors[1:last:2], strict=True))
        other.coarser = [
            (*matrices, x) for (*matrices, _), x in zip(self.coarser, tensors[last:], strict=True)
        ]
        return other

    def _between(self, x: Tensor, first: int, last: int) -> tuple[int, int]:
        """The rows of a coarser level that rows of the output are interpolated from."""
        height = x.shape[1]
        return max(first * height // self.height - 1, 0), min(-(-last * height // self.height) + 1, height)


def _doubles(horizontal: Tensor) -> bool:
    """Whether columns become twice as many, which is faster without a product."""
    return horizontal.shape[0] == 2 * horizontal.shape[1]


def classified_head(rows: HeadRows, norm: nn.BatchNorm2d, classifier: nn.Conv2d) -> Tensor:
    """Batch norm in training, ReLU and classifier over the whole sum of a head: (B, classes, H, W).

    The running statistics of `norm` move as in its own forward pass.
    """
    weight = classifier.weight.flatten(1)
    tensors = (norm.weight, norm.bias, weight, classifier.bias, rows.bias, *rows.tensors())
    logits, mean, variance = _ClassifiedHead.apply(rows, norm.eps, *tensors)
    if norm.training and norm.track_running_stats:
        norm.num_batches_tracked.add_(1)
        # Without momentum the mean of all batches.
        factor = 1.0 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        count = len(logits) * rows.height * rows.width
        norm.running_mean.lerp_(mean + rows.bias.detach(), factor)
        norm.running_var.lerp_(variance * (count / (count - 1)), factor)
    return logits


class _ClassifiedHead(torch.autograd.Function):
    """Sum of levels, batch norm, ReLU and classifier with the gradients of all four.

    Those of the batch norm are in "Batch Normalization", https://arxiv.org/abs/1502.03167, section 3. Of the
    maps of E channels only the sum is kept for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: HeadRows,
        eps: float,
        norm_weight: Tensor,
        norm_bias: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head_bias: Tensor,
        *tensors: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = (len(tensors[0]), rows.height, rows.width)
        count = shape[0] * shape[1] * shape[2]
        total = memory.empty((*shape, len(head_bias)), head_bias.dtype)
        parts = []
        for strip in rows.strips():
            part = rows.write_sums(*strip, out=_rows_of(total, strip))
            moments = torch.batch_norm_update_stats(part.permute(0, 3, 1, 2), None, None, 0.0)
            parts.append((part.new_tensor(part[..., 0].numel() / count), *moments))
        shares, means, variances = (torch.stack(column) for column in zip(*parts, strict=True))
        mean = shares @ means
        variance = shares @ (variances + (means - mean).square())
        inverse_std = torch.rsqrt(variance + eps)
        scale = norm_weight * inverse_std
        shift = norm_bias - scale * mean
        logits = head_bias.new_empty(*shape, len(weight))
        buffer = torch.empty_like(_rows_of(total, next(rows.strips())))
        for strip in rows.strips():
            part = _rows_of(total, strip)
            active = torch.addcmul(shift, part, scale, out=_fitting(buffer, part)).relu_()
            _rows_of(logits, strip).copy_(pointwise(active, weight, bias))
        ctx.structure = rows.with_tensors([tensor[:0] for tensor in tensors], head_bias[:0])
        ctx.save_for_backward(total, mean, inverse_std, norm_weight, norm_bias, weight, head_bias, *tensors)
        ctx.eps, ctx.has_bias = eps, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return logits.permute(0, 3, 1, 2), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        total, mean, inverse_std, norm_weight, norm_bias, weight, head_bias, *tensors = ctx.saved_tensors
        rows = ctx.structure.with_tensors(tensors, head_bias)
        gradient = gradient.permute(0, 2, 3, 1).contiguous()  # (B, H, W, classes)
        scale = norm_weight * inverse_std
        shift = norm_bias - scale * mean

        signs, sums = torch.zeros_like(weight), torch.zeros_like(weight)
        buffers = [torch.empty_like(_rows_of(total, next(rows.strips()))) for _ in range(2)]
        for strip in rows.strips():
            part = _rows_of(total, strip)
            of_logits = _rows_of(gradient, strip).flatten(0, 2).T.contiguous()
            mask = torch.addcmul(shift, part, scale, out=_fitting(buffers[0], part)).gt_(0)
            signs.addmm_(of_logits, mask.flatten(0, 2))
            sums.addmm_(of_logits, mask.mul_(part).flatten(0, 2))
        of_weight = scale * sums + shift * signs
        of_norm_bias = (weight * signs).sum(0)
        of_norm_weight = inverse_std * ((weight * sums).sum(0) - mean * of_norm_bias)

        # What is made again here, with the sums over all strips known, takes less time than to keep it.
        count = total[..., 0].numel()
        slope = -scale * inverse_std * of_norm_weight / count
        offset = -scale * of_norm_bias / count - slope * mean
        scaled = weight * scale
        into = rows.with_tensors([torch.zeros_like(tensor) for tensor in tensors], head_bias)
        for strip in rows.strips():
            part = _rows_of(total, strip)
            normed, of_total = (_fitting(buffer, part) for buffer in buffers)
            torch.addcmul(shift, part, scale, out=normed)
            torch.mm(_rows_of(gradient, strip).flatten(0, 2), scaled, out=of_total.flatten(0, 2))
            torch.ops.aten.threshold_backward.grad_input(of_total, normed, 0, grad_input=of_total)
            of_total += torch.addcmul(offset, part, slope, out=normed)
            rows.add_gradients(strip, of_total, into)
        of_bias = gradient.sum((0, 1, 2)) if ctx.has_bias else None
        of_head_bias = torch.zeros_like(head_bias)  # the norm subtracts it again
        return (
            *(None, None, of_norm_weight, of_norm_bias, of_weight, of_bias, of_head_bias),
            *into.tensors(),
        )


def _rows_of(x: Tensor, strip: tuple[slice, int, int]) -> Tensor:
    images, first, last = strip
    return x[images, first:last]


def _fitting(buffer: Tensor, strip: Tensor) -> Tensor:
    """The part of memory for a whole strip that one of less rows or images needs."""
    return buffer[: strip.shape[0], : strip.shape[1]]
