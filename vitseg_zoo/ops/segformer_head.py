"""SegFormer's all-MLP head, fused: each level is multiplied once, at its own resolution.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, section 3.2. It projects each level to E channels (W_i, b_i), resamples all
to a quarter of the image, concatenates, and fuses them by a 1 x 1 convolution F, a batch norm and a ReLU.
Bilinear weights sum to one, so resampling commutes with linear layers on channels and with their biases, and

    F cat_i(up(W_i x_i + b_i)) = sum_i up(F_i W_i x_i) + sum_i F_i b_i.

The products F_i W_i are small and made anew in each pass: parameters, gradients and batch statistics are
those of the original, and nothing can be out of date. In evaluation the batch norm is folded into them too.

On a GPU, where nothing else fuses them, the levels are resampled and added by one product of matrices.

On a CPU the sum is made a strip of rows at a time: the map of E channels stays in the cache. In evaluation
`HeadRows` gives the output row by row. In training `classified_head` has gradients of its own, which keep one
map of E channels instead of several: what the backward pass needs beside it is computed again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.ops import memory
from vitseg_zoo.ops.autocast import autocast_dtype, without_autocast
from vitseg_zoo.ops.bilinear import add_doubled, gradient_of_doubled, resample, resampling_matrix
from vitseg_zoo.ops.dispatch import (
    Layer,
    has_operations,
    may_bypass,
    reason_to_call,
    runs_eagerly_on_cpu,
    runs_eagerly_on_gpu,
)
from vitseg_zoo.ops.linear import pointwise, pointwise_backward

_HAS_OPERATIONS = has_operations(
    {
        "aten.batch_norm_update_stats.default": "input running_mean running_var momentum",
        "aten.threshold_backward.grad_input": "grad_output self threshold grad_input",
    }
)

# Elements of a strip, 4 MB in fp32: it stays in the cache, and the allocator uses its memory again.
_STRIP_ELEMENTS = 2**20


def reason_not_to_fuse(
    linears: Sequence[nn.Module], fuse: nn.Module, norm: nn.Module, activation: nn.Module
) -> str | None:
    """Say why a head is another function than `fused_head`, or has to call its layers; None if neither.

    Args:
        linears: The projection of each level.
        fuse: Convolution of the concatenated levels.
        norm: Its norm.
        activation: What follows.
    """
    reason = reason_to_call(
        *((linear, nn.Linear) for linear in linears),
        (fuse, nn.Conv2d),
        (norm, (nn.BatchNorm2d, nn.SyncBatchNorm)),
        (activation, nn.ReLU),
    )
    if reason is None and not is_pixelwise(fuse):
        return "the fusion is no 1 x 1 convolution"
    if reason is None and any(linear.bias is None for linear in linears):
        return "a projection without bias"
    return reason


def is_pixelwise(conv: nn.Module) -> bool:
    """Tell whether a layer is a convolution of each pixel by itself."""
    return (
        isinstance(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride == (1, 1)
        and conv.padding in ((0, 0), "valid", "same")
        and conv.groups == 1
    )


def fuse_head(
    linears: Sequence[nn.Linear], fuse: nn.Conv2d, norm: nn.BatchNorm2d
) -> tuple[list[Tensor], Tensor]:
    """Multiply the projections of the levels with the fusion, and with the batch norm in evaluation.

    Args:
        linears: The projection of each level, C_i to E channels.
        fuse: 1 x 1 convolution of the concatenated levels to E channels; its columns are in the same order.
        norm: Its batch norm.

    Returns:
        The products, (E, C_i) each, and the bias (E,), in full precision under autocast too, and for
        float16.
    """
    with without_autocast(fuse.weight):
        # (E, E) each; sizes are given, as ONNX's converter to opset 17 has no way of writing `chunk`
        whole = _wide(fuse.weight).flatten(1)
        parts = whole.split([len(linear.weight) for linear in linears], dim=1)
        bias = whole @ _wide(torch.cat([linear.bias for linear in linears]))
        if fuse.bias is not None:
            bias = bias + fuse.bias
        if not uses_batch_statistics(norm):
            scale = torch.rsqrt(_wide(norm.running_var) + norm.eps)
            shift = -norm.running_mean * scale
            if norm.affine:
                scale, shift = scale * norm.weight, shift * norm.weight + norm.bias
            parts = [scale[:, None] * part for part in parts]
            bias = scale * bias + shift
        return [part @ _wide(linear.weight) for part, linear in zip(parts, linears, strict=True)], bias


def _wide(x: Tensor) -> Tensor:
    """Widen float16, whose range sums leave; a convolution adds up in float32 inside."""
    return x.float() if x.dtype is torch.float16 else x


def uses_batch_statistics(norm: nn.BatchNorm2d) -> bool:
    """Tell whether a batch norm uses the statistics of the batch at hand, so that it cannot be folded."""
    return norm.training or norm.running_mean is None


def fused_head(
    maps: Sequence[Tensor],
    *,
    linears: Sequence[nn.Linear],
    fuse: nn.Conv2d,
    norm: nn.BatchNorm2d,
    size: Sequence[int],
    classify: Layer = nn.Identity(),  # noqa: B008
) -> Tensor:
    """Project levels, resample them to one size, fuse, normalize and classify them.

    The caller has asked `reason_not_to_fuse`.

    Args:
        maps: One (B, C_i, H_i, W_i) a level, coarse to fine.
        linears: See `fuse_head`; in the order of `maps`.
        fuse: See `fuse_head`.
        norm: See `fuse_head`.
        size: Height H and width W of the output.
        classify: What is applied to the output (B, E, H, W), pixel by pixel, perhaps to a part at a time.

    Returns:
        (B, classes, H, W), or (B, E, H, W) behind the ReLU without `classify`.
    """
    weights, bias = fuse_head(linears, fuse, norm)
    is_half = maps[0].dtype is torch.float16
    if runs_eagerly_on_cpu(maps[0]) and not is_half:
        if not (uses_batch_statistics(norm) or torch.is_grad_enabled()):
            return HeadRows(maps, weights, bias, size).whole(classify)
        if _trains(norm, classify, size) and not torch.is_autocast_enabled("cpu"):
            return classified_head(HeadRows(maps, weights, bias, size), norm, classify)
    output: Any = None
    coarse = []
    for level, weight in zip(maps[::-1], weights[::-1], strict=True):
        # The finest level takes the bias, and the others are added to it in place.
        level = _project(_wide(level), weight, bias if output is None else None, size)
        if output is None:
            output = _resampled(level, size)
        elif level.shape[2:] != output.shape[2:] and runs_eagerly_on_gpu(level):
            coarse.append(level)
        else:
            output.add_(_resampled(level, size))
    if coarse:
        output = add_resampled(output, coarse)
    output = output.half() if is_half else output
    output = F.relu_(norm(output) if uses_batch_statistics(norm) else output)
    return _classified(output, classify)


def _trains(norm: nn.BatchNorm2d, classify: Layer, size: Sequence[int]) -> bool:
    """Tell whether `classified_head` has the gradients: plain layers, more than one value a channel."""
    return (
        _HAS_OPERATIONS
        and type(norm) is nn.BatchNorm2d
        and norm.affine
        and uses_batch_statistics(norm)
        and is_pixelwise(classify)
        and may_bypass((classify, nn.Conv2d))
        and min(size) > 1
    )


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """Apply a linear layer on channels, (B, C, h, w) to (B, E, h, w); what is finer than `size` gets it."""
    if x.shape[2] * x.shape[3] > size[0] * size[1]:  # resampled first, which leaves less to project
        x = resample(x, size)
    learns_on_cpu = torch.is_grad_enabled() and not x.is_cuda
    if x.is_contiguous(memory_format=torch.channels_last) and not learns_on_cpu:  # one kernel with the bias
        return F.linear(x.permute(0, 2, 3, 1), weight, bias).permute(0, 3, 1, 2)
    return F.conv2d(x, weight[:, :, None, None], bias)


def _resampled(x: Tensor, size: Sequence[int]) -> Tensor:
    if autocast_dtype(x) is None:
        return resample(x, size)
    # Autocast resamples in full precision, for the many sums of a gradient: without one, maps stay narrow.
    with torch.autocast(x.device.type, enabled=torch.is_grad_enabled()):
        return resample(x, size)


def add_resampled(output: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Add to (B, E, H, W) maps (B, E, h, w), resampled bilinearly, all of them in one product.

    Each map is brought to the output's rows by itself; their columns, side by side, are what the columns of
    the output are made of. Products add up in fp32, forwards and backwards, and resampling by whole powers
    of two has weights that bf16 and fp16 hold exactly.
    """
    size = output.shape[2:]
    rows, to_columns = [], []
    with without_autocast(output):
        for x in maps:
            to_height = resampling_matrix(x.shape[2], size[0], like=x)
            same = (x.shape[2], size[0]) == (x.shape[3], size[1])
            to_columns.append(to_height if same else resampling_matrix(x.shape[3], size[1], like=x))
            nhwc = x.permute(0, 2, 3, 1)
            part = torch.bmm(to_height.expand(len(x), -1, -1), nhwc.flatten(2))  # (B, H, w E)
            rows.append(part.unflatten(2, nhwc.shape[2:]))
        part = torch.cat(rows, 2).flatten(0, 1)  # (B H, sum of w, E)
        matrix = torch.cat(to_columns, 1).expand(len(part), -1, -1)  # (B H, W, sum of w)
        flat = output.permute(0, 2, 3, 1).flatten(0, 1)  # (B H, W, E)
        return torch.baddbmm(flat, matrix, part).unflatten(0, (-1, size[0])).permute(0, 3, 1, 2)


def _classified(x: Tensor, classify: Layer) -> Tensor:
    """Apply a classifier to (B, E, H, W); a convolution on a GPU as a product, which adds the bias itself."""
    if not (
        runs_eagerly_on_gpu(x)
        and isinstance(classify, nn.Conv2d)
        and classify.bias is not None
        and is_pixelwise(classify)
        and may_bypass((classify, nn.Conv2d))
    ):
        return classify(x)
    weight = classify.weight.flatten(1)
    if not torch.is_grad_enabled():
        return F.linear(x.permute(0, 2, 3, 1), weight, classify.bias).permute(0, 3, 1, 2)
    # In the order of NCHW, into which losses would copy the large logits.
    logits = torch.baddbmm(classify.bias[:, None], weight.expand(len(x), -1, -1), x.flatten(2))
    return logits.unflatten(2, x.shape[2:])


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
        """Return rows `first` to `last` (exclusive) of images behind the ReLU, (b, E, rows, W)."""
        return F.relu_(self.sums(images, first, last)).permute(0, 3, 1, 2)

    def whole(self, classify: Layer) -> Tensor:
        """Give what `classify` makes, pixel by pixel, of the output: (B, classes, H, W), made in strips."""
        output = None
        for images, first, last in self.strips():
            part = classify(self(first, last, images))
            if output is None:
                size = (len(self.finest[0][0]), part.shape[1], self.height, self.width)
                output = torch.empty(size, dtype=part.dtype, memory_format=torch.channels_last)
            output[images, :, first:last] = part
        return output

    def sums(self, images: slice, first: int, last: int) -> Tensor:
        """Return rows `first` to `last` (exclusive) of images before norm and ReLU, (b, rows, W, E)."""
        x, weight = self.finest[0]
        # Added up in the weights' precision under autocast too, in which a CPU is faster.
        rows = pointwise(x[images, first:last], weight, self.bias).to(self.bias.dtype).contiguous()
        return self._add_levels(rows, images, first, last)

    def write_sums(self, images: slice, first: int, last: int, out: Tensor) -> Tensor:
        """Write `sums` into `out`, and without the bias, which a batch norm cancels."""
        x, weight = self.finest[0]
        torch.mm(x[images, first:last].flatten(0, 2), weight.T, out=out.flatten(0, 2))
        return self._add_levels(out, images, first, last)

    def _add_levels(self, rows: Tensor, images: slice, first: int, last: int) -> Tensor:
        """Add to rows (b, rows, W, E) of the first of the finest levels those of all others."""
        for x, weight in self.finest[1:]:
            rows += pointwise(x[images, first:last], weight)
        flat = rows.flatten(0, 1)  # (b * rows, W, E)
        for vertical, horizontal, x in self.coarser:
            top, bottom = self._between(x, first, last)
            with without_autocast(x):
                part = vertical[first:last, top:bottom] @ x[images, top:bottom].flatten(2)  # (b, rows, w * E)
            part = part.view(len(flat), -1, x.shape[3])
            if _doubles(horizontal):
                add_doubled(flat, part)
            else:
                flat.baddbmm_(horizontal.expand(len(flat), -1, -1), part)
        return rows

    def add_gradients(self, strip: tuple[slice, int, int], grad_output: Tensor, into: "HeadRows") -> None:
        """Add to maps and weights of `into` what a gradient (b, rows, W, E) of a strip means for them."""
        images, first, last = strip
        for (x, weight), (grad_x, grad_weight) in zip(self.finest, into.finest, strict=True):
            grad_rows, grad_share, _ = pointwise_backward(grad_output, x[images, first:last], weight, None)
            grad_x[images, first:last] = grad_rows
            grad_weight += grad_share
        for (vertical, horizontal, x), (_, _, grad_x) in zip(self.coarser, into.coarser, strict=True):
            top, bottom = self._between(x, first, last)
            part = gradient_of_doubled(grad_output) if _doubles(horizontal) else horizontal.T @ grad_output
            to_rows = vertical[first:last, top:bottom].T.expand(len(part), -1, -1)
            grad_x[images, top:bottom].flatten(2).baddbmm_(to_rows, part.flatten(2))  # (b, rows, w * E)

    def strips(self) -> Iterator[tuple[slice, int, int]]:
        """Yield parts that stay in the cache: images, first and last row (exclusive)."""
        row = self.width * len(self.bias)
        images = max(1, _STRIP_ELEMENTS // (self.height * row))
        rows = self.height if images > 1 else max(4, _STRIP_ELEMENTS // row)
        for image in range(0, len(self.finest[0][0]), images):
            for first in range(0, self.height, rows):
                yield slice(image, image + images), first, min(first + rows, self.height)

    def tensors(self) -> list[Tensor]:
        """Return maps and weights, for `with_tensors`."""
        return [tensor for pair in self.finest for tensor in pair] + [x for *_, x in self.coarser]

    def with_tensors(self, tensors: Sequence[Tensor], bias: Tensor) -> "HeadRows":
        """Make the same head over other maps and weights."""
        other = object.__new__(HeadRows)
        other.height, other.width, other.bias = self.height, self.width, bias
        last = 2 * len(self.finest)
        other.finest = list(zip(tensors[:last:2], tensors[1:last:2], strict=True))
        other.coarser = [
            (*matrices, x) for (*matrices, _), x in zip(self.coarser, tensors[last:], strict=True)
        ]
        return other

    def _between(self, x: Tensor, first: int, last: int) -> tuple[int, int]:
        """Return the rows of a coarser level that rows of the output are interpolated from."""
        height = x.shape[1]
        return max(first * height // self.height - 1, 0), min(-(-last * height // self.height) + 1, height)


def _doubles(horizontal: Tensor) -> bool:
    """Tell whether columns become twice as many, which is faster without a product."""
    return horizontal.shape[0] == 2 * horizontal.shape[1]


def classified_head(rows: HeadRows, norm: nn.BatchNorm2d, classifier: nn.Conv2d) -> Tensor:
    """Apply batch norm in training, ReLU and classifier over the whole sum of a head: (B, classes, H, W).

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
            moments = torch.ops.aten.batch_norm_update_stats(part.permute(0, 3, 1, 2), None, None, 0.0)
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
    def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        total, mean, inverse_std, norm_weight, norm_bias, weight, head_bias, *tensors = ctx.saved_tensors
        rows = ctx.structure.with_tensors(tensors, head_bias)
        grad_output = grad_output.permute(0, 2, 3, 1).contiguous()  # (B, H, W, classes)
        scale = norm_weight * inverse_std
        shift = norm_bias - scale * mean

        signs, sums = torch.zeros_like(weight), torch.zeros_like(weight)
        buffers = [torch.empty_like(_rows_of(total, next(rows.strips()))) for _ in range(2)]
        for strip in rows.strips():
            part = _rows_of(total, strip)
            grad_logits = _rows_of(grad_output, strip).flatten(0, 2).T.contiguous()
            mask = torch.addcmul(shift, part, scale, out=_fitting(buffers[0], part)).gt_(0)
            signs.addmm_(grad_logits, mask.flatten(0, 2))
            sums.addmm_(grad_logits, mask.mul_(part).flatten(0, 2))
        grad_weight = scale * sums + shift * signs
        grad_norm_bias = (weight * signs).sum(0)
        grad_norm_weight = inverse_std * ((weight * sums).sum(0) - mean * grad_norm_bias)

        # What is made again here, with the sums over all strips known, takes less time than to keep it.
        count = total[..., 0].numel()
        slope = -scale * inverse_std * grad_norm_weight / count
        offset = -scale * grad_norm_bias / count - slope * mean
        scaled = weight * scale
        into = rows.with_tensors([torch.zeros_like(tensor) for tensor in tensors], head_bias)
        for strip in rows.strips():
            part = _rows_of(total, strip)
            normed, grad_total = (_fitting(buffer, part) for buffer in buffers)
            torch.addcmul(shift, part, scale, out=normed)
            torch.mm(_rows_of(grad_output, strip).flatten(0, 2), scaled, out=grad_total.flatten(0, 2))
            torch.ops.aten.threshold_backward.grad_input(grad_total, normed, 0, grad_input=grad_total)
            grad_total += torch.addcmul(offset, part, slope, out=normed)
            rows.add_gradients(strip, grad_total, into)
        grad_bias = grad_output.sum((0, 1, 2)) if ctx.has_bias else None
        grad_head_bias = torch.zeros_like(head_bias)  # the norm subtracts it again
        return (
            *(None, None, grad_norm_weight, grad_norm_bias, grad_weight, grad_bias, grad_head_bias),
            *into.tensors(),
        )


def _rows_of(x: Tensor, strip: tuple[slice, int, int]) -> Tensor:
    images, first, last = strip
    return x[images, first:last]


def _fitting(buffer: Tensor, strip: Tensor) -> Tensor:
    """Return the part of memory for a whole strip that one of less rows or images needs."""
    return buffer[: strip.shape[0], : strip.shape[1]]
