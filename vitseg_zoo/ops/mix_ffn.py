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

from vitseg_zoo.ops.dispatch import Layer, has_operations, runs_eagerly_on_cpu
from vitseg_zoo.ops.drop_path import add_branch, with_drop_path
from vitseg_zoo.ops.linear import conv_nhwc, linear, onednn_dtype, pointwise, times

_HAS_OPERATIONS = has_operations(
    {
        "aten.native_layer_norm.default": "input normalized_shape weight bias eps",
        "aten.native_layer_norm_backward.default": (
            "grad_out input normalized_shape mean rstd weight bias output_mask"
        ),
        "aten.gelu_backward.grad_input": "grad_output self approximate grad_input",
        "aten.convolution_backward.default": (
            "grad_output input weight bias_sizes stride padding dilation transposed output_padding groups "
            "output_mask"
        ),
    }
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
    *,
    norm: nn.LayerNorm,
    fc1: Layer,
    dwconv: nn.Conv2d,
    act: nn.Module,
    drop: nn.Dropout,
    fc2: nn.Linear,
    drop_path: Layer,
) -> Tensor:
    """Compute x + drop_path(drop(fc2(drop(act(dwconv(fc1(norm(x)))))))) on a map (B, H, W, C).

    The caller has asked `may_bypass` for the layers, and `is_mix_conv` for the convolution.

    Args:
        x: The map.
        norm: Norm of each position.
        fc1: Linear layer to the hidden channels, or it and what works on each position behind it.
        dwconv: 3 x 3 depthwise convolution.
        act: Activation, element by element.
        drop: Dropout, behind `act` and behind `fc2`.
        fc2: Linear layer back to C channels.
        drop_path: Dropout of whole images, or the identity.

    Returns:
        (B, H, W, C).
    """

    def half(x: Tensor, scale: Tensor | None) -> Tensor:
        if runs_eagerly_on_cpu(x) and not torch.is_grad_enabled():
            return _in_strips(x, scale, norm=norm, fc1=fc1, dwconv=dwconv, act=act, drop=drop, fc2=fc2)
        trains = _HAS_OPERATIONS and runs_eagerly_on_cpu(x) and not torch.is_autocast_enabled("cpu")
        drops = drop.training and drop.p > 0
        if trains and not drops and _is_gelu(act) and type(fc1) is nn.Linear:
            layers: tuple[Any, ...] = (norm, fc1, dwconv, fc2)
            weights = [tensor for layer in layers for tensor in (layer.weight, layer.bias)]
            return _MixFFN.apply(x, norm.eps, dwconv, scale, *weights)
        hidden = drop(act(conv_nhwc(dwconv, linear(fc1, norm(x)))))
        return add_branch(x, drop(linear(fc2, hidden)), scale)

    return with_drop_path(x, drop_path, half)


def is_mix_conv(conv: nn.Conv2d) -> bool:
    """Tell whether a convolution keeps the size of its input, row by row, as Mix-FFN's does."""
    return (
        conv.kernel_size == (3, 3)
        and conv.stride == (1, 1)
        and conv.padding == conv.dilation
        and conv.padding_mode == "zeros"
    )


def _in_strips(
    x: Tensor,
    scale: Tensor | None,
    *,
    norm: Layer,
    fc1: Layer,
    dwconv: nn.Conv2d,
    act: nn.Module,
    drop: Layer,
    fc2: Layer,
) -> Tensor:
    """Run `mix_ffn` without gradients, with the `image_scale` of its branch."""
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


_GELU = nn.GELU()


def _is_gelu(act: nn.Module) -> bool:
    return type(act) is nn.GELU and act.approximate == "none"


def _activated(dwconv: nn.Conv2d, act: nn.Module, x: Tensor) -> Tensor:
    """Compute `act(conv_nhwc(dwconv, x))` without gradients: GELU by oneDNN while the convolution writes."""
    dtype = onednn_dtype(x, dwconv.weight)
    if dtype is None or not _is_gelu(act):
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
    """Yield parts of a map whose hidden map has about `elements`.

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
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        # Once: gradient checkpointing gives them out a single time.
        x, scale, *saved = ctx.saved_tensors
        weights, kept = _Weights(*saved[:8]), saved[8:]
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_weights = _Sums()
        maps = len(kept) // len(ctx.strips)
        for i, (images, start, stop, top, bottom) in enumerate(ctx.strips):
            grad_strip = grad_output[images, start:stop]
            grad_strip = grad_strip if scale is None else grad_strip * scale[images]
            grad_rows = _strip_backward(
                x[images, top:bottom],
                grad_strip,
                halo=start - top,
                kept=kept[maps * i : maps * (i + 1)],
                weights=weights,
                grad_weights=grad_weights,
                conv=ctx.conv,
                eps=ctx.eps,
            )
            shared = 2 * (start - top)  # rows with the strip above
            grad_x[images, top : top + shared] += grad_rows[:, :shared]
            rows = slice(top + shared, bottom)
            torch.add(grad_output[images, rows], grad_rows[:, shared:], out=grad_x[images, rows])
            del grad_rows  # as above
        return grad_x, None, None, None, *(grad_weights.get(name) for name in _Weights._fields)


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
        """Add a strip's share, if there is one, whose memory may be taken."""
        if share is not None:
            self[name] = self[name].add_(share) if name in self else share

    def add_product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Add the product of two matrices."""
        self[name] = self[name].addmm_(left, right) if name in self else left @ right


def _strip_backward(
    x: Tensor,
    grad_output: Tensor,
    *,
    halo: int,
    kept: Sequence[Tensor],
    weights: _Weights,
    grad_weights: _Sums,
    conv: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
    eps: float,
) -> Tensor:
    """Return the gradient of a strip's rows, and add those of the weights to `grad_weights`.

    A function of its own, so that a strip's maps are free, and their memory still in the cache, for the next.

    Args:
        x: Rows of the input, those that the convolution reaches included.
        grad_output: Gradient of the output.
        halo: How many of them are above those of the output.
        kept: What was kept of the hidden map: before the convolution, behind it.
        weights: The weights.
        grad_weights: Their gradients.
        conv: Stride, padding, dilation and groups of the convolution.
        eps: Of the norm.
    """
    norm = weights.norm, weights.norm_bias
    inner = slice(halo, halo + grad_output.shape[1])
    normed, mean, inverse_std = torch.native_layer_norm(x, x.shape[3:], *norm, eps)
    # (b, rows + halo, W, hidden) and (b, rows, W, hidden)
    first = kept[0] if kept else pointwise(normed, weights.fc1, weights.fc1_bias)
    if len(kept) > 1:
        second = kept[1]
    else:  # with the weights that are saved: the layer may have got others since
        convolved = F.conv2d(first.permute(0, 3, 1, 2), weights.conv, weights.conv_bias, *conv)
        second = convolved.permute(0, 2, 3, 1)[:, inner]
        del convolved
    grad_weights.add_product("fc2", grad_output.flatten(0, 2).T, F.gelu(second).flatten(0, 2))
    grad_second = grad_activated = times(grad_output, weights.fc2)
    if first.shape != second.shape:
        # Rows of the halo belong to other strips: nothing comes back from them.
        grad_second = torch.empty_like(first)
        grad_second[:, : inner.start] = 0
        grad_second[:, inner.stop :] = 0
    torch.ops.aten.gelu_backward.grad_input(grad_activated, second, grad_input=grad_second[:, inner])
    del second, grad_activated
    grad_first, grad_conv, grad_conv_bias = _depthwise_backward(grad_second, first, weights, conv)
    grad_weights.add_product("fc1", grad_first.flatten(0, 2).T, normed.flatten(0, 2))
    grad_normed = times(grad_first, weights.fc1)
    wanted = [True, *(weight is not None for weight in norm)]
    grad_x, grad_norm, grad_norm_bias = torch.ops.aten.native_layer_norm_backward(
        grad_normed, x, x.shape[3:], mean, inverse_std, *norm, wanted
    )
    grad_weights.add("norm", grad_norm)
    grad_weights.add("norm_bias", grad_norm_bias)
    grad_weights.add("fc1_bias", None if weights.fc1_bias is None else grad_first.sum((0, 1, 2)))
    grad_weights.add("conv", grad_conv)
    grad_weights.add("conv_bias", grad_conv_bias)
    grad_weights.add("fc2_bias", None if weights.fc2_bias is None else grad_output.sum((0, 1, 2)))
    return grad_x


def _depthwise_backward(
    grad_output: Tensor,
    x: Tensor,
    weights: _Weights,
    conv: tuple[tuple[int, int], tuple[int, int], tuple[int, int], int],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Give the gradients of `x`, weight and bias of the convolution of a map."""
    stride, padding, dilation, groups = conv
    grad_x, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
        grad_output.permute(0, 3, 1, 2),
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
    return grad_x.permute(0, 2, 3, 1), grad_weight, grad_bias
