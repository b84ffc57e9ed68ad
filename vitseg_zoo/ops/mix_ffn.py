"""Mix-FFN, the feed-forward part of MiT's blocks, and its form for CPUs.

Paper: "SegFormer: Simple and Efficient Design for Semantic Segmentation with Transformers",
https://arxiv.org/abs/2105.15203, equation 3.

Its hidden map has several times the channels of the rest. On a CPU it is made in strips that stay in the
cache, from the norm before it to the shortcut behind it, which is exact: a strip takes along as many rows
above and below as the convolution reaches. In training the map is kept, before the convolution and behind it.
What takes little work for its size is computed again in the backward pass instead: all of it below 64
channels, the convolution's output above 128.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from vitseg_zoo.ops.dispatch import (
    Layer,
    add_branch,
    conv_nhwc,
    is_plain,
    linear,
    onednn_dtype,
    pointwise,
    runs_eagerly_on_cpu,
    times,
    with_drop_path,
)

# Elements of a strip of the hidden map. 4 MB in fp32 stay in the cache, and the allocator uses their memory
# again instead of asking the system for fresh pages.
_STRIP_ELEMENTS = 2**20
# Channels from which on training keeps the hidden map: an element of it is a sum of so many products.
_KEPT_FROM = 64
# Channels up to which it also keeps the map behind the convolution, which is little of the work with more.
_BOTH_KEPT_UP_TO = 128
# Elements of a strip where a map is kept: its memory is fresh anyway, and longer strips share fewer rows.
_KEPT_STRIP_ELEMENTS = 2**21


def mix_ffn(
    x: Tensor,
    norm: Layer,
    fc1: Layer,
    dwconv: nn.Conv2d,
    act: Layer,
    drop: Layer,
    fc2: Layer,
    drop_path: Layer,
) -> Tensor:
    """The second half of a block: x + drop_path(fc2(act(dwconv(fc1(norm(x)))))) on a map (B, H, W, C).

    Args:
        x: The map.
        norm: Norm of each position.
        fc1: Linear layer to the hidden channels.
        dwconv: 3 x 3 depthwise convolution.
        act: Activation, element by element.
        drop: Dropout, behind `act` and behind `fc2`.
        fc2: Linear layer back to C channels.
        drop_path: Dropout of whole images, or the identity.

    Returns:
        (B, H, W, C).
    """
    layers = norm, fc1, dwconv, act, drop, fc2
    return with_drop_path(x, drop_path, lambda x, scale: _mix_ffn(x, scale, *layers))


def _mix_ffn(
    x: Tensor,
    scale: Tensor | None,
    norm: Layer,
    fc1: Layer,
    dwconv: nn.Conv2d,
    act: Layer,
    drop: Layer,
    fc2: Layer,
) -> Tensor:
    """`mix_ffn` with the `image_scale` of its branch."""
    if runs_eagerly_on_cpu(x) and not torch.is_grad_enabled():
        output = None
        for images, start, stop, top, bottom in _strips(x, dwconv, _STRIP_ELEMENTS):
            hidden = linear(fc1, norm(x[images, top:bottom]))
            hidden = _activated(dwconv, act, hidden)[:, start - top : stop - top]
            strip_scale = None if scale is None else scale[images]
            strip = add_branch(x[images, start:stop], drop(linear(fc2, drop(hidden))), strip_scale)
            if strip.shape[:3] == x.shape[:3]:
                return strip
            if output is None:
                output = strip.new_empty(x.shape)
            output[images, start:stop] = strip
            del hidden  # before the next strip asks for memory, which is still in the cache
        return output
    if runs_eagerly_on_cpu(x) and not torch.is_autocast_enabled("cpu"):
        drops = getattr(drop, "training", False) and getattr(drop, "p", 1.0) > 0
        if _is_gelu(act) and not drops and is_plain((norm, fc1, dwconv, fc2), around=(act,)):
            weights = [tensor for layer in (norm, fc1, dwconv, fc2) for tensor in (layer.weight, layer.bias)]
            return _MixFFN.apply(x, norm.eps, dwconv, scale, *weights)
    hidden = drop(act(conv_nhwc(dwconv, linear(fc1, norm(x)))))
    return add_branch(x, drop(linear(fc2, hidden)), scale)


_GELU = nn.GELU()


def _is_gelu(act: Layer) -> bool:
    return type(act) is nn.GELU and act.approximate == "none"


def _activated(dwconv: nn.Conv2d, act: Layer, x: Tensor) -> Tensor:
    """`act(conv_nhwc(dwconv, x))` without gradients: GELU by oneDNN while the convolution writes."""
    dtype = onednn_dtype(x, dwconv.weight)
    if dtype is None or not _is_gelu(act) or not is_plain((dwconv,), around=(act,)):
        return act(conv_nhwc(dwconv, x))
    return torch.ops.mkldnn._convolution_pointwise(
        x.to(dtype).permute(0, 3, 1, 2),
        dwconv.weight.to(dtype),
        None if dwconv.bias is None else dwconv.bias.to(dtype),
        dwconv.padding,
        dwconv.stride,
        dwconv.dilation,
        dwconv.groups,
        "gelu",
        [],
        "none",
    ).permute(0, 2, 3, 1)


def _strips(x: Tensor, dwconv: nn.Conv2d, elements: int) -> Iterator[tuple[slice, int, int, int, int]]:
    """Parts of a map whose hidden map has about `elements`.

    Yields:
        Images; first and last row (exclusive); the same with the rows that the convolution reaches.
    """
    batch, height, width = x.shape[:3]
    row = width * dwconv.in_channels
    images = max(1, elements // (height * row))
    # Two strips are not worth the rows that both make.
    rows = height if height * row <= 2 * elements else max(16, elements // row)
    halo = dwconv.padding[0]
    for image in range(0, batch, images):
        for start in range(0, height, rows):
            stop = min(start + rows, height)
            yield slice(image, image + images), start, stop, max(start - halo, 0), min(stop + halo, height)


class _MixFFN(torch.autograd.Function):
    """`mix_ffn` with a layer norm, GELU and no dropout but that of images.

    Kept for the backward pass are the input and, where it takes longer to make than to keep, the hidden map.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, eps: float, dwconv: nn.Conv2d, scale: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        ctx.eps = eps
        ctx.conv = dwconv.stride, dwconv.padding, dwconv.dilation, dwconv.groups
        weights = _Weights(*tensors)
        output = x.new_empty(x.shape)
        kept = []
        keeps = x.shape[3] >= _KEPT_FROM
        keeps_both = keeps and x.shape[3] <= _BOTH_KEPT_UP_TO
        ctx.strips = list(_strips(x, dwconv, _KEPT_STRIP_ELEMENTS if keeps else _STRIP_ELEMENTS))
        for images, start, stop, top, bottom in ctx.strips:
            normed = F.layer_norm(x[images, top:bottom], x.shape[3:], weights.norm, weights.norm_bias, eps)
            hidden = pointwise(normed, weights.fc1, weights.fc1_bias)
            if keeps:
                kept.append(hidden)
            if keeps_both:
                kept.append(conv_nhwc(dwconv, hidden)[:, start - top : stop - top])
                hidden = F.gelu(kept[-1])
            else:
                hidden = _activated(dwconv, _GELU, hidden)[:, start - top : stop - top]
            strip_scale = None if scale is None else scale[images]
            shortcut, strip = x[images, start:stop], output[images, start:stop]
            add_branch(shortcut, pointwise(hidden, weights.fc2, weights.fc2_bias), strip_scale, out=strip)
            del normed, hidden  # as above
        ctx.save_for_backward(x, scale, *weights, *kept)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # Once: gradient checkpointing gives them out a single time.
        x, scale, *saved = ctx.saved_tensors
        weights, kept = _Weights(*saved[:8]), saved[8:]
        to_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        to_weights = _Sums()
        maps = len(kept) // len(ctx.strips)
        for i, (images, start, stop, top, bottom) in enumerate(ctx.strips):
            of_output = gradient[images, start:stop]
            of_output = of_output if scale is None else of_output * scale[images]
            strip = x[images, top:bottom], start - top, of_output, kept[maps * i : maps * (i + 1)]
            of_x = _strip_backward(*strip, weights, to_weights, ctx.conv, ctx.eps)
            shared = 2 * (start - top)  # rows with the strip above
            to_x[images, top : top + shared] += of_x[:, :shared]
            rows = slice(top + shared, bottom)
            torch.add(gradient[images, rows], of_x[:, shared:], out=to_x[images, rows])
            del of_x  # as above
        return to_x, None, None, None, *(to_weights.get(name) for name in _Weights._fields)


class _Weights(NamedTuple):
    """The weights of `_MixFFN`, in the order of its arguments."""

    norm: Tensor | None
    norm_bias: Tensor | None
    fc1: Tensor
    fc1_bias: Tensor | None
    conv: Tensor
    conv_bias: Tensor | None
    fc2: Tensor
    fc2_bias: Tensor | None


class _Sums(dict[str, Tensor]):
    """Gradients by the name of the weight, added up strip by strip."""

    def add(self, name: str, share: Tensor | None) -> None:
        """Adds a strip's share, if there is one, whose memory may be taken."""
        if share is not None:
            self[name] = self[name].add_(share) if name in self else share

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Adds the product of two matrices."""
        self[name] = self[name].addmm_(left, right) if name in self else left @ right


def _strip_backward(
    x: Tensor,
    halo: int,
    of_output: Tensor,
    kept: Sequence[Tensor],
    weights: _Weights,
    to_weights: _Sums,
    conv: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
    eps: float,
) -> Tensor:
    """The gradient of a strip's branch: that of its rows is returned, those of weights go to `to_weights`.

    A function of its own, so that a strip's maps are free, and their memory still in the cache, for the next.

    Args:
        x: Rows of the input, those that the convolution reaches included.
        halo: How many of them are above those of the output.
        of_output: Gradient of the output.
        kept: What was kept of the hidden map: before the convolution, behind it.
        weights: The weights.
        to_weights: Their gradients.
        conv: Stride, padding, dilation and groups of the convolution.
        eps: Of the norm.
    """
    norm = weights.norm, weights.norm_bias
    inner = slice(halo, halo + of_output.shape[1])
    normed, mean, inverse_std = torch.native_layer_norm(x, x.shape[3:], *norm, eps)
    # (b, rows + halo, W, hidden) and (b, rows, W, hidden)
    first = kept[0] if kept else pointwise(normed, weights.fc1, weights.fc1_bias)
    if len(kept) > 1:
        second = kept[1]
    else:  # with the weights that are saved: the layer may have got others since
        convolved = F.conv2d(first.permute(0, 3, 1, 2), weights.conv, weights.conv_bias, *conv)
        second = convolved.permute(0, 2, 3, 1)[:, inner]
        del convolved
    to_weights.add_product("fc2", of_output.flatten(0, 2).T, F.gelu(second).flatten(0, 2))
    of_second = of_activated = times(of_output, weights.fc2)
    if first.shape != second.shape:
        # Rows of the halo belong to other strips: nothing comes back from them.
        of_second = torch.empty_like(first)
        of_second[:, : inner.start] = 0
        of_second[:, inner.stop :] = 0
    torch.ops.aten.gelu_backward.grad_input(of_activated, second, grad_input=of_second[:, inner])
    del second, of_activated
    of_first, of_conv, of_conv_bias = _depthwise_backward(of_second, first, weights, conv)
    to_weights.add_product("fc1", of_first.flatten(0, 2).T, normed.flatten(0, 2))
    of_normed = times(of_first, weights.fc1)
    wanted = [True, *(weight is not None for weight in norm)]
    of_x, of_norm, of_norm_bias = torch.ops.aten.native_layer_norm_backward(
        of_normed, x, x.shape[3:], mean, inverse_std, *norm, wanted
    )
    to_weights.add("norm", of_norm)
    to_weights.add("norm_bias", of_norm_bias)
    to_weights.add("fc1_bias", None if weights.fc1_bias is None else of_first.sum((0, 1, 2)))
    to_weights.add("conv", of_conv)
    to_weights.add("conv_bias", of_conv_bias)
    to_weights.add("fc2_bias", None if weights.fc2_bias is None else of_output.sum((0, 1, 2)))
    return of_x


def _depthwise_backward(
    gradient: Tensor,
    x: Tensor,
    weights: _Weights,
    conv: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of `x`, weight and bias of the convolution of a map from that of its output."""
    stride, padding, dilation, groups = conv
    of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
        gradient.permute(0, 3, 1, 2),
        x.permute(0, 3, 1, 2),
        weights.conv,
        None if weights.conv_bias is None else weights.conv_bias.shape,
        stride,
        padding,
        dilation,
        False,
        [0, 0],
        groups,
        [True, True, weights.conv_bias is not None],
    )
    return of_x.permute(0, 2, 3, 1), of_weight, of_bias
