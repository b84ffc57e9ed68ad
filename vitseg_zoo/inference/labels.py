"""Labels without logits: the arg-max over classes at the image's size, a strip of rows at a time.

The logits of many classes at full size are often larger than all else: 150 classes at 2048 x 2048 are 2.5 GB.
Labels need no more than a strip of them at once.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.decoders.patch import PatchHead

# Logits that are held at once, in elements: 8 MB in fp32, small enough to stay in a processor's cache.
_STRIP_ELEMENTS = 2**21

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
    features = _input_of(head, model, image)
    height, width = image.shape[2:]
    if isinstance(head, PatchHead):
        strips = _patch_strips(head, features)
    elif _upsample(head) is not None:
        strips = _upsampled_strips(head, features)
    elif isinstance(head, SegmentationHead):
        strips = _convolved_strips(head[0], features)
    else:
        strips = iter([head(features)])
    labels = [_largest(strip[..., :width]) for strip in strips]
    return torch.cat(labels, dim=1)[:, :height]


class _HeadReached(Exception):
    """Ends a forward pass where the segmentation head would begin; carries the head's input."""


def _input_of(head: nn.Module, model: nn.Module, image: torch.Tensor) -> Any:
    """Runs a model up to its head, whatever its own forward does before."""

    def stop(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        raise _HeadReached(inputs[0])

    hook = head.register_forward_pre_hook(stop)
    try:
        model(image)
    except _HeadReached as reached:
        return reached.args[0]
    finally:
        hook.remove()
    raise ValueError(f"{type(model).__name__} does not call its segmentation_head.")


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
    return (logits[:, 0] > 0).long() if logits.shape[1] == 1 else logits.argmax(1)


def _rows(classes: int, width: int, batch: int) -> int:
    return max(1, _STRIP_ELEMENTS // (classes * width * batch))


def _patch_strips(head: PatchHead, tokens: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of rows of patches; `tokens` is (B, h, w, D)."""
    batch, height, width = tokens.shape[:3]
    rows = _rows(head[0].out_features, width, batch)
    for start in range(0, height, rows):
        yield head(tokens[:, start : start + rows])


def _convolve_rows(layer: nn.Module, x: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """Rows `start` to `stop` of a convolution's output, from the rows that they depend on."""
    halo = layer.padding[0] if isinstance(layer, nn.Conv2d) else 0
    first, last = max(start - halo, 0), min(stop + halo, x.shape[2])
    return layer(x[:, :, first:last])[:, :, start - first : stop - first]


def _convolved_strips(conv: nn.Module, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of a head that is a convolution at the image's size; `x` is (B, C, H, W)."""
    batch, _, height, width = x.shape
    rows = _rows(conv.out_channels, width, batch)
    for start in range(0, height, rows):
        yield _convolve_rows(conv, x, start, min(start + rows, height))


def _upsampled_strips(head: nn.Sequential, x: torch.Tensor) -> Iterator[torch.Tensor]:
    """Logits of a head that upsamples: rows are interpolated first, then columns; `x` is (B, C, h, w)."""
    conv = head[0] if isinstance(head[0], nn.Conv2d) else nn.Identity()
    classes = conv.out_channels if isinstance(conv, nn.Conv2d) else x.shape[1]
    scale, align_corners = _upsample(head).scale_factor, bool(_upsample(head).align_corners)
    batch, _, low_height, low_width = x.shape
    height, width = int(low_height * scale), int(low_width * scale)

    # Row r of the output lies between the rows `above` and `above + 1` of the input.
    position = torch.arange(height, device=x.device, dtype=torch.float32)
    if align_corners:
        position = position * ((low_height - 1) / max(height - 1, 1))
    else:
        position = ((position + 0.5) / scale - 0.5).clamp(0, low_height - 1)
    above = position.long().clamp(max=max(low_height - 2, 0))
    weight = (position - above).view(1, 1, -1, 1).to(x.dtype)
    bounds = above.tolist()

    rows = _rows(classes, width, batch)
    for start in range(0, height, rows):
        stop = min(start + rows, height)
        first, last = bounds[start], min(bounds[stop - 1] + 2, low_height)
        # Channels last, in which a processor interpolates and compares many classes several times as fast.
        low = _convolve_rows(conv, x, first, last).contiguous(memory_format=torch.channels_last)
        upper = above[start:stop] - first
        lower = (upper + 1).clamp(max=last - first - 1)
        strip = torch.lerp(low[:, :, upper], low[:, :, lower], weight[:, :, start:stop].to(low.dtype))
        yield F.interpolate(
            strip, size=(stop - start, width), mode="bilinear", align_corners=align_corners
        )  # (B, K, rows, W)
