"""Labels without logits: the arg-max over classes at the image's size, a strip of rows at a time.

The logits of many classes at full size are often larger than all else: 150 classes at 2048 x 2048 are 2.5 GB.
Labels need no more than a strip of them at once.
"""

from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.decoders.all_mlp import FusedSegformerDecoder
from vitseg_zoo.decoders.head_rows import HeadRows
from vitseg_zoo.decoders.patch import PatchHead

# Logits that are held at once, in elements: 8 MB in fp32, small enough to stay in a processor's cache.
_STRIP_ELEMENTS = 2**21

# Rows of a head's input that are classified at once, before they are upsampled.
_LOW_ROWS = 16

# From here on it pays to look which classes can win in a strip, and to interpolate only those.
_MANY_CLASSES = 8

# What does not change which class is largest.
_MONOTONE = (nn.Identity, nn.Sigmoid, nn.Softmax, nn.LogSoftmax, nn.Tanh)


@torch.inference_mode()
def predict_labels(model: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """Predicts the class of every pixel without holding (classes, H, W) logits.

    The result is `model(image).argmax(1)` but for pixels where two classes are equal up to rounding. Heads
    that work row by row (SMP's `SegmentationHead`, the heads of `vitseg` and `segmenter`) are applied in
    strips; a model with another head, or with an activation that is not monotone, is run as it is.

    Args:
        model: An SMP segmentation model, or any module that maps images to logits (B, classes, H, W). It is
            switched to evaluation mode, as SMP's own `predict` does.
        image: (B, C, H, W), normalised as the model expects.

    Returns:
        (B, H, W) int64 class indices; for a model of one class 1 where its logit is positive, else 0.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = smp.create_model("fpn", "resnet18", encoder_weights=None, classes=150)
        >>> predict_labels(model, torch.rand(1, 3, 64, 96)).shape
        torch.Size([1, 64, 96])
    """
    if model.training:
        model.eval()
    head = getattr(model, "segmentation_head", None)
    if not isinstance(head, nn.Sequential) or not _keeps_order(head):
        output = model(image)
        return _largest(output[0] if isinstance(output, tuple) else output)
    height, width = image.shape[2:]
    decoder = getattr(model, "decoder", None)
    rows = None
    if isinstance(decoder, FusedSegformerDecoder) and _upsample(head) is not None:
        features = _input_of(decoder, model, image)
        rows = decoder.rows(features)
        features = decoder(features) if rows is None else None
    else:
        features = _input_of(head, model, image)
    if isinstance(head, PatchHead):
        labels = [_largest(strip) for strip in _patch_strips(head, features)]
    elif _upsample(head) is not None:
        labels = list(_upsampled_labels(head, _MapRows(features) if rows is None else rows))
    elif isinstance(head, SegmentationHead):
        labels = [_largest(strip) for strip in _convolved_strips(head[0], features)]
    else:
        labels = [_largest(head(features))]
    return torch.cat(labels, dim=1)[:, :height, :width]


class _MapRows:
    """The rows of a map that is there, in the form of `HeadRows`."""

    def __init__(self, x: torch.Tensor) -> None:
        self.x = x
        self.height, self.width = x.shape[2:]

    def __call__(self, first: int, last: int) -> torch.Tensor:
        return self.x[:, :, first:last]


class _Reached(Exception):
    """Ends a forward pass where a part of the model would begin; carries the part's input."""


def _input_of(part: nn.Module, model: nn.Module, image: torch.Tensor) -> Any:
    """Runs a model up to one of its parts, whatever its own forward does before."""

    def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _Reached(inputs[0])

    hook = part.register_forward_pre_hook(stop)
    try:
        model(image)
    except _Reached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(model).__name__} does not call its {type(part).__name__}.")


def _keeps_order(head: nn.Sequential) -> bool:
    last = head[-1]
    return isinstance(last, Activation) and isinstance(last.activation, _MONOTONE)


def _upsample(head: nn.Sequential) -> nn.Upsample | None:
    """The bilinear upsampling of a head, where it comes right before the activation."""
    layer = head[-2] if len(head) > 1 else None
    return layer if isinstance(layer, nn.Upsample) and layer.mode == "bilinear" else None


def _largest(logits: torch.Tensor) -> torch.Tensor:
    """(B, K, H, W) -> (B, H, W); one class is there or not, and what is labels already stays."""
    if logits.ndim == 3:
        return logits.long()
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.max(1).indices  # sooner than argmax


def _rows(classes: int, width: int, batch: int) -> int:
    return max(1, _STRIP_ELEMENTS // (classes * width * batch))


def _patch_strips(head: PatchHead, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of rows of patches; `tokens` is (B, h, w, D)."""
    batch, height, width = tokens.shape[:3]
    rows = _rows(head[0].out_features, width, batch)
    for start in range(0, height, rows):
        yield head(tokens[:, start : start + rows])


def _convolve_rows(layer: nn.Module, rows: "_MapRows | HeadRows", start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a convolution's output, from the rows that they depend on."""
    halo = layer.padding[0] if isinstance(layer, nn.Conv2d) else 0
    first, last = max(start - halo, 0), min(stop + halo, rows.height)
    return layer(rows(first, last))[:, :, start - first : stop - first]


def _convolved_strips(conv: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of a head that is a convolution at the image's size; `x` is (B, C, H, W)."""
    batch, _, height, width = x.shape
    rows = _rows(conv.out_channels, width, batch)
    for start in range(0, height, rows):
        yield _convolve_rows(conv, _MapRows(x), start, min(start + rows, height))


def _upsampled_labels(head: nn.Sequential, source: "_MapRows | HeadRows") -> Iterator[torch.Tensor]:
    """Labels of a head that upsamples, in strips (B, rows, W); `source` gives rows of the head's input."""
    conv = head[0] if isinstance(head[0], nn.Conv2d) else nn.Identity()
    scale, align_corners = _upsample(head).scale_factor, bool(_upsample(head).align_corners)
    height, width = int(source.height * scale), int(source.width * scale)

    # Row r of the output lies between the rows `above[r]` and `above[r] + 1` of the input.
    position = torch.arange(height, dtype=torch.float32)
    if align_corners:
        position = position * ((source.height - 1) / max(height - 1, 1))
    else:
        position = ((position + 0.5) / scale - 0.5).clamp(0, source.height - 1)
    above = position.long().clamp(max=max(source.height - 2, 0))
    weights = (position - above).view(1, -1, 1, 1)
    bounds = above.tolist()

    low, low_start, start = None, 0, 0
    for first in range(0, source.height, _LOW_ROWS):
        last = min(first + _LOW_ROWS, source.height)
        new = _convolve_rows(conv, source, first, last)
        # The row before is needed once more, to interpolate between the two.
        low = new if low is None else torch.cat([low[:, :, -1:], new], dim=2)
        low_start = max(first - 1, 0)
        end = height if last == source.height else bisect_left(bounds, last - 1)
        classes = _contenders(low)
        if len(classes) == 1 < low.shape[1]:
            yield classes.expand(len(low), end - start, width)
        else:
            # (B, h, w, K): beside each other in memory, classes are compared several times as fast.
            part = low.permute(0, 2, 3, 1)[..., classes]
            rows = _rows(len(classes), width, len(part))
            for top in range(start, end, rows):
                bottom = min(top + rows, end)
                upper = (above[top:bottom] - low_start).to(low.device)
                lower = (upper + 1).clamp(max=low.shape[2] - 1)
                strip = torch.lerp(part[:, upper], part[:, lower], weights[:, top:bottom].to(low))
                size = (bottom - top, width)
                strip = F.interpolate(
                    strip.permute(0, 3, 1, 2), size=size, mode="bilinear", align_corners=align_corners
                )
                yield _largest(strip) if len(classes) == 1 else classes[_largest(strip)]
        start = end


def _contenders(low: torch.Tensor) -> torch.Tensor:
    """Classes that can be the largest between the positions of (B, K, h, w) logits.

    Interpolation stays between the smallest and the largest of the four logits around a place. A class whose
    largest is below another's smallest loses everywhere between the four.
    """
    if low.shape[1] < _MANY_CLASSES:
        return torch.arange(low.shape[1], device=low.device)
    largest, smallest = low, low
    for dim in (2, 3):
        if low.shape[dim] > 1:
            n = low.shape[dim] - 1
            largest = torch.maximum(largest.narrow(dim, 0, n), largest.narrow(dim, 1, n))
            smallest = torch.minimum(smallest.narrow(dim, 0, n), smallest.narrow(dim, 1, n))
    # (B, K, h - 1, w - 1); no comparison with NaN is true, so that nobody loses there.
    loses = largest < smallest.amax(1, keepdim=True)
    return (~loses.permute(0, 2, 3, 1).flatten(0, 2).all(0)).nonzero().flatten()
