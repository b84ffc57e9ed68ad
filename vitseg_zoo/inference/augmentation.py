"""Test-time augmentation: the logits of an image, averaged over mirrored and resized copies.

As `ttach.SegmentationTTAWrapper(merge_mode="mean")` does; scales lie around the one of the training.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

TTA = ("flips", "scales")

# What each is run at beside the image as it is.
_SCALES = (0.75, 1.25)


def augmented(
    logits: Callable[[torch.Tensor], torch.Tensor], pixels: torch.Tensor, tta: Sequence[str]
) -> torch.Tensor:
    """Average a model's logits over copies of images.

    Args:
        logits: The model: (B, C, h, w) to (B, classes, h, w).
        pixels: (B, C, h, w), normalized.
        tta: `"flips"`: mirrored left to right as well. `"scales"`: at 0.75 and 1.25 times the size as well,
            rounded to multiples of 32. Both: each size in both ways.

    Returns:
        (B, classes, h, w).

    Example:
        >>> augmented(lambda x: x, torch.eye(64)[None, None], ["flips"]).sum()
        tensor(64.)
    """
    height, width = pixels.shape[2:]
    sizes = {(height, width)}
    if "scales" in tta:
        sizes |= {
            tuple(max(round(side * scale / 32), 1) * 32 for side in (height, width)) for scale in _SCALES
        }
    total, runs = None, 0
    for size in sorted(sizes):
        resized = pixels if size == (height, width) else F.interpolate(pixels, size, mode="bilinear")
        for mirrors in (False, True) if "flips" in tta else (False,):
            output = logits(resized.flip(3) if mirrors else resized)
            output = output.flip(3) if mirrors else output
            if size != (height, width):
                output = F.interpolate(output, (height, width), mode="bilinear")
            total = output if total is None else total + output
            runs += 1
    assert total is not None
    return total / runs if runs > 1 else total


def cost(tta: Sequence[str]) -> float:
    """Say how many times the work of one run a model has.

    Example:
        >>> cost(["flips"]), cost(["flips", "scales"])
        (2.0, 6.25)
    """
    work = 1 + (sum(scale**2 for scale in _SCALES) if "scales" in tta else 0)
    return float(work * (2 if "flips" in tta else 1))
