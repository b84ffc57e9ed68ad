"""Labels without logits: the arg-max over classes at the image's size, a strip of rows at a time.

The logits of many classes at full size are often larger than all else: 150 classes at 2048 x 2048 are 2.5 GB.
Labels need no more than a strip of them at once.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.modules import Activation
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from vitseg_zoo.acceleration.smp_segformer import Segformer as AcceleratedSegformer
from vitseg_zoo.architectures.base import TokenModel
from vitseg_zoo.architectures.fused_segformer import FusedSegformer
from vitseg_zoo.decoders.segformer import FusedSegformerDecoder
from vitseg_zoo.decoders.vit_seg import PatchHead
from vitseg_zoo.ops.bilinear import is_bilinear
from vitseg_zoo.ops.dispatch import may_bypass, runs_eagerly_on_cpu
from vitseg_zoo.ops.segformer_head import HeadRows

# Logits that are held at once, in elements: 8 MB in fp32, small enough to stay in a processor's cache.
_STRIP_ELEMENTS = 2**21

# The same where it is not: on a GPU few large kernels are faster; 64 MB in fp32.
_CHUNK_ELEMENTS = 2**24

# Rows of a head's input that are classified at once, before they are upsampled.
_LOW_ROWS = 16

# Rows of labels that are made at once: of more, more columns have a border of two classes in them.
_GROUP_ROWS = 16

# From here on it pays to look which classes can win in a strip, and to interpolate only those.
_MANY_CLASSES = 8

# Activations that do not change which class is largest.
_MONOTONE = (nn.Identity, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh)


@torch.inference_mode()
def predict_labels(
    model: nn.Module,
    image: torch.Tensor,
    size: Sequence[int] | None = None,
    dtype: torch.dtype = torch.int64,
) -> torch.Tensor:
    """Predict the class of every pixel without holding (classes, H, W) logits.

    The result is `model(image).argmax(1)` but for pixels where two classes are equal up to rounding. Heads
    that work row by row (SMP's `SegmentationHead`, the heads of `vitseg` and `segmenter`) are applied in
    strips; a model with another head, with hooks on its head, or with an activation that is not monotone, is
    run as it is. Models of Hugging Face give logits that are smaller than the image: those are resampled to
    its size in strips, bilinearly with `align_corners=False`, as Hugging Face does.

    Args:
        model: An SMP segmentation model, a Hugging Face model whose output has `logits`, or any module that
            maps images to logits (B, classes, H, W). It is switched to evaluation mode, as SMP's own
            `predict` does. What `DataParallel` and `DistributedDataParallel` wrap is run by itself.
        image: (B, C, H, W), normalized as the model expects.
        size: Height and width of the labels, for example those of a photograph before it was resized for the
            model. Logits are resampled to it bilinearly, a strip at a time.
        dtype: Of the labels; `torch.uint8` holds 256 classes in an eighth of the memory.

    Returns:
        (B, H, W) class indices, of `size` or as large as the model's output, of Hugging Face as large
        as the image.
        For a model of one class 1 where its logit is positive, else 0. The activation is seen if it belongs
        to a `segmentation_head`, also of a model inside another module; any other output of one class is
        taken for logits, and 1 where it is positive.

    Raises:
        ValueError: If the model's output holds no logits (B, classes, H, W), or a side of the image or of
            the size is 0.
        TypeError: If the image is no tensor, or the size is not two whole numbers.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = smp.create_model("fpn", "resnet18", encoder_weights=None, classes=150)
        >>> predict_labels(model, torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 64, 96])
    """
    size = _check(image, size)
    if model.training:
        model.eval()
    while isinstance(model, (nn.DataParallel, DistributedDataParallel)):
        model = model.module
        image = image.to(next(model.parameters()).device)  # as the wrapper would
    height, width = image.shape[2:]
    head: Any = getattr(model, "segmentation_head", None)
    decoder: Any = getattr(model, "decoder", None)
    layers = _row_layers(head)
    if layers is None or not _runs_in_parts(model):
        return _labels_of(model(image), model, (height, width), size, dtype)
    upsample = layers[-1] if isinstance(layers[-1], nn.Upsample) else None
    fused = (
        upsample is not None
        and isinstance(decoder, FusedSegformerDecoder)
        and may_bypass((decoder, type(decoder)))
    )
    model.check_input_shape(image)
    features = model.encoder(image)
    rows = decoder.rows(features) if fused and runs_eagerly_on_cpu(image) else None
    x = decoder(features) if rows is None else None
    if upsample is None:
        if size not in (None, (height, width)):
            logits = nn.Sequential(*layers)(x)[:, :, :height, :width]
            return _labels_of(logits, nn.Identity(), (height, width), size, dtype)
        strips = _patch_labels(layers, x) if isinstance(head, PatchHead) else _convolved_labels(layers[0], x)
        labels = [strip.to(dtype) for strip in strips]
    else:
        rows = rows or _MapRows(x)
        conv = layers[0] if len(layers) == 2 else nn.Identity()
        if size is None:
            size = [int(side * upsample.scale_factor) for side in (rows.height, rows.width)]
        else:
            height, width = size
        return _upsampled_labels(conv, rows, size, bool(upsample.align_corners), dtype)[:, :height, :width]
    return torch.cat(labels, dim=1)[:, :height, :width]


class _MapRows:
    """The rows of a map that is there, in the form of `HeadRows`."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.height, self.width = x.shape[2:]

    def __call__(self, first: int, last: int) -> torch.Tensor:
        return self.x[:, :, first:last]


def _check(image: torch.Tensor, size: Sequence[int] | None) -> tuple[int, int] | None:
    """Refuse what is no batch of images or no size; return the size as a pair of int."""
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image should be a tensor (B, C, H, W), got {type(image).__name__}.")
    if image.ndim != 4 or 0 in image.shape:
        raise ValueError(f"image should be (B, C, H, W) with no side of 0, got {tuple(image.shape)}.")
    if size is None:
        return None
    try:
        height, width = (index(side) for side in size)
    except (TypeError, ValueError):  # not a sequence, not of whole numbers, not two
        raise TypeError(f"size should be two whole numbers, height and width, got {size!r}.") from None
    if min(height, width) < 1:
        raise ValueError(f"size should be at least 1 x 1, got {height} x {width}.")
    return height, width


# Encoder, decoder and head, one after the other; what may follow them does not change labels.
_FORWARDS = (
    SegmentationModel.forward,
    TokenModel.forward,
    FusedSegformer.forward,
    AcceleratedSegformer.forward,
)


def _runs_in_parts(model: nn.Module) -> bool:
    """Tell whether a model is SMP's or the zoo's and runs as those do, with no hook on it as a whole."""
    return (
        type(model).forward in _FORWARDS
        and getattr(model, "refinement", None) is None  # which comes behind the head
        and may_bypass((model, type(model)))
    )


def _row_layers(head: Any) -> list[nn.Module] | None:
    """Return the layers before the activation of a head that works row by row; None of any other head.

    Those of a `PatchHead`, or a convolution, or a bilinear upsampling, or one and then the other.
    """
    if (
        not isinstance(head, nn.Sequential)
        or type(head).forward is not nn.Sequential.forward
        or not may_bypass(*((module, type(module)) for module in head.modules()))
    ):
        return None
    *layers, activation = [layer for layer in head if type(layer) is not nn.Identity] or [None]
    if not layers or not isinstance(getattr(activation, "activation", activation), _MONOTONE):
        return None
    if isinstance(head, PatchHead):
        return layers if isinstance(layers[0], nn.Linear) else None
    behind = layers[1:] if _keeps_size(layers[0]) else layers
    return layers if not behind or (len(behind) == 1 and is_bilinear(behind[0])) else None


def _keeps_size(layer: nn.Module) -> bool:
    """Say whether a layer is a convolution whose output is as large as its input by zeros around it."""
    return (
        isinstance(layer, nn.Conv2d)
        and layer.stride == (1, 1)
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and all(
            2 * padding == dilation * (kernel - 1)
            for padding, dilation, kernel in zip(
                layer.padding, layer.dilation, layer.kernel_size, strict=True
            )
        )
    )


def _labels_of(
    output: Any,
    model: nn.Module,
    image_size: Sequence[int],
    size: Sequence[int] | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Label of what a model gave for images; what is labels already stays."""
    from_transformers = hasattr(output, "logits")
    logits = output.logits if from_transformers else output[0] if isinstance(output, tuple) else output
    if isinstance(logits, torch.Tensor) and logits.ndim == 3 and not logits.is_floating_point():
        labels = logits if size is None else F.interpolate(logits[:, None].double(), size)[:, 0]
        return labels.to(dtype)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 4:
        what = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"{type(model).__name__} should give logits (B, classes, H, W), but gives {what}.")
    if logits.shape[1] == 1:
        logits = logits - _zero_logit(model, logits)
    if from_transformers and size is None:
        size = image_size
    if size is None or logits.shape[2:] == tuple(size):
        return _largest(logits).to(dtype)
    return _upsampled_labels(nn.Identity(), _MapRows(logits), size, False, dtype)


def _zero_logit(model: nn.Module, logits: torch.Tensor) -> torch.Tensor | float:
    """Say what a logit of zero becomes in a model, by the activation of its segmentation head."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "segmentation_head":
            parts = list(module.modules())
            # A head of the user's own may end in an activation of PyTorch.
            last = ([part for part in parts if isinstance(part, Activation)] or parts)[-1]
            if isinstance(last, (Activation, *_MONOTONE)):
                return last(logits.new_zeros(1, 1, 1, 1))
    return 0.0


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """Label logits, (B, K, H, W) -> (B, H, W); one class is there or not."""
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.max(1).indices  # sooner than argmax


def _rows(x: torch.Tensor, classes: int, width: int) -> int:
    """Rows of a strip of (B, classes, rows, W) logits that are made of `x`."""
    elements = _STRIP_ELEMENTS if runs_eagerly_on_cpu(x) else _CHUNK_ELEMENTS
    return max(1, elements // (classes * width * len(x)))


def _patch_labels(layers: list[nn.Module], tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give labels of rows of patches, from tokens (B, h, w, D), before the patches are put together."""
    linear, side = layers[0], layers[-1].upscale_factor
    rows = _rows(tokens, linear.out_features, tokens.shape[2])
    for start in range(0, tokens.shape[1], rows):
        logits = linear(tokens[:, start : start + rows]).unflatten(3, (-1, side, side))  # (B, h, w, K, y, x)
        labels = _largest(logits.flatten(0, 2)).unflatten(0, logits.shape[:3])
        yield labels.transpose(2, 3).flatten(1, 2).flatten(2, 3)


def _convolve_rows(layer: nn.Module, rows: "_MapRows | HeadRows", start: int, stop: int) -> torch.Tensor:
    """Return rows `start` to `stop` of a convolution's output, from the rows that they depend on."""
    halo = layer.padding[0] if isinstance(layer, nn.Conv2d) else 0
    first, last = max(start - halo, 0), min(stop + halo, rows.height)
    return layer(rows(first, last))[:, :, start - first : stop - first]


def _convolved_labels(conv: nn.Conv2d, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Give labels, in strips, of a head that is a convolution at the image's size; `x` is (B, C, H, W)."""
    height, width = x.shape[2:]
    rows = _rows(x, conv.out_channels, width)
    for start in range(0, height, rows):
        yield _largest(_convolve_rows(conv, _MapRows(x), start, min(start + rows, height)))


def _upsampled_labels(
    conv: nn.Module,
    source: "_MapRows | HeadRows",
    size: Sequence[int],
    align_corners: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Give labels (B, H, W) of what `conv` makes of `source`, upsampled to a size."""
    if isinstance(source, _MapRows) and not runs_eagerly_on_cpu(source.x):
        chunks = _labels_in_chunks(conv(source.x), size, align_corners)
        return torch.cat([chunk.to(dtype) for chunk in chunks], dim=1)
    return torch.cat(list(_labels_in_strips(conv, source, size, align_corners, dtype)), dim=1)


def _labels_in_chunks(low: torch.Tensor, size: Sequence[int], align_corners: bool) -> Iterator[torch.Tensor]:
    """Give labels in chunks (B, rows, W) of (B, K, h, w) logits upsampled to a size: the plain form.

    Nothing depends on data, so that a GPU need not wait and graphs can be recorded.
    """
    height, width = size
    dtype = torch.promote_types(low.dtype, torch.float32)  # sums are wide, as under autocast
    above, weights = _positions(low.shape[2], height, align_corners, low.device)
    weights = weights.to(dtype)
    below = (above + 1).clamp(max=low.shape[2] - 1)
    rows = _rows(low, low.shape[1], width)
    for top in range(0, height, rows):
        chunk = slice(top, min(top + rows, height))
        around = (low.index_select(2, index[chunk]).to(dtype) for index in (above, below))
        strip = torch.lerp(*around, weights[chunk, None])
        yield _largest(
            F.interpolate(strip, (strip.shape[2], width), mode="bilinear", align_corners=align_corners)
        )


def _labels_in_strips(
    conv: nn.Module,
    source: "_MapRows | HeadRows",
    size: Sequence[int],
    align_corners: bool,
    dtype: torch.dtype,
) -> Iterator[torch.Tensor]:
    """Give labels in strips (B, rows, W) of what `conv` makes of rows of `source`, upsampled to a size.

    Where one class is the largest at all four logits around a place, it is the largest at the place, as
    bilinear interpolation averages the four. All other places alone are interpolated.
    """
    height, width = size
    above, row_weights = _positions(source.height, height, align_corners)
    left, column_weights = _positions(source.width, width, align_corners)
    right = (left + 1).clamp(max=source.width - 1)
    bounds = above.tolist()
    few = max(1, _GROUP_ROWS * source.height // height)  # rows between logits, of which a group is made

    low, low_start, start, prunes = None, 0, 0, True
    for first in range(0, source.height, _LOW_ROWS):
        last = min(first + _LOW_ROWS, source.height)
        new = _convolve_rows(conv, source, first, last)
        # The row before is needed once more, to interpolate between the two.
        low = new if low is None else torch.cat([low[:, :, -1:], new], dim=2)
        low_start = max(first - 1, 0)
        classes = _contenders(low) if prunes and low.shape[1] >= _MANY_CLASSES else None
        if classes is not None and len(classes) > low.shape[1] // 2:  # as with random weights: never mind
            classes, prunes = None, False
        # (B, h, w, K): beside each other in memory, classes are compared several times as fast.
        part = low.permute(0, 2, 3, 1)
        part = part.contiguous() if classes is None else part[..., classes]
        # The largest at a place is among the contenders.
        nearest = (_largest(low) if classes is None else classes[part.max(3).indices]).to(dtype)
        differs = _differs(nearest)
        # Where classes meet nearly everywhere, no column is spared: one group has the fewest calls.
        cells = few if differs.float().mean() < 0.25 else source.height
        stop = last - 1 if last < source.height else last
        for cell in range(low_start, stop, cells):
            end = min(cell + cells, stop)
            end = height if end >= source.height - 1 else bisect_left(bounds, end)
            if end == start:
                continue
            upper = above[start:end] - low_start
            lower = (upper + 1).clamp(max=low.shape[2] - 1)
            mixed = differs[:, upper[0] : upper[-1] + 1].flatten(0, 1).any(0)[left].nonzero().flatten()
            is_sparse = 2 * len(mixed) < width  # else all columns are interpolated, which is simpler
            around, columns = part[:, upper[0] : lower[-1] + 1], slice(None)
            if is_sparse:
                labels, columns = nearest.index_select(2, left).index_select(1, upper), mixed
                weights = column_weights[mixed, None].to(low)
                around = torch.lerp(around[:, :, left[mixed]], around[:, :, right[mixed]], weights)
            else:
                labels = nearest.new_empty(len(low), end - start, width)
            upper, lower = upper - upper[0], lower - upper[0]
            rows = _rows(part, part.shape[3], max(len(mixed), 1))
            for top in range(0, end - start if len(mixed) else 0, rows):
                bottom = min(top + rows, end - start)
                weights = row_weights[start + top : start + bottom, None, None].to(low)
                strip = torch.lerp(around[:, upper[top:bottom]], around[:, lower[top:bottom]], weights)
                strip = strip.permute(0, 3, 1, 2)
                if not is_sparse:
                    strip = F.interpolate(
                        strip, size=(bottom - top, width), mode="bilinear", align_corners=align_corners
                    )
                found = _largest(strip)
                labels[:, top:bottom, columns] = (found if classes is None else classes[found]).to(dtype)
            yield labels
            start = end


def _positions(
    source: int, size: int, align_corners: bool, device: torch.device | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Say between which logits the pixels of a side lie: the first of two, and the second one's weight."""
    position = torch.arange(size, dtype=torch.float32, device=device)
    if align_corners:
        position = position * ((source - 1) / max(size - 1, 1))
    else:
        position = ((position + 0.5) * (source / size) - 0.5).clamp(0, source - 1)
    first = position.long().clamp(max=max(source - 2, 0))
    return first, position - first


def _differs(labels: torch.Tensor) -> torch.Tensor:
    """Say for each of (B, h, w) labels whether the ones below, beside and between differ from it."""
    below = torch.cat([labels[:, 1:], labels[:, -1:]], dim=1)
    pair = labels != below
    beside = torch.cat([labels[:, :, 1:], labels[:, :, -1:]], dim=2) != labels
    return pair | beside | torch.cat([pair[:, :, 1:], pair[:, :, -1:]], dim=2)


def _contenders(low: torch.Tensor) -> torch.Tensor:
    """Return the classes that can be the largest between the positions of (B, K, h, w) logits.

    Interpolation stays between the smallest and the largest of the four logits around a place. A class whose
    largest is below another's smallest loses everywhere between the four.
    """
    largest, smallest = low, low
    for dim in (2, 3):
        if low.shape[dim] > 1:
            n = low.shape[dim] - 1
            largest = torch.maximum(largest.narrow(dim, 0, n), largest.narrow(dim, 1, n))
            smallest = torch.minimum(smallest.narrow(dim, 0, n), smallest.narrow(dim, 1, n))
    # (B, K, h - 1, w - 1); no comparison with NaN is true, so that nobody loses there.
    loses = largest < smallest.amax(1, keepdim=True)
    return (~loses.permute(0, 2, 3, 1).flatten(0, 2).all(0)).nonzero().flatten()
