"""The choice of a training's precision."""

import copy
import time

import torch
from torch import nn

from vitseg_zoo.ops.linear import HAS_BF16


def choose_precision(
    model: nn.Module, image_size: tuple[int, int], batch_size: int = 8, channels: int = 3, rounds: int = 3
) -> str:
    """Choose Lightning's `precision` for training a model on this machine, by trying on a CPU.

    On a CPU, bf16 autocast trains 1.2 to 3 times as fast where the processor multiplies bf16 itself, but
    depthwise convolutions and interpolation can lose more than matrix products gain: so a few steps of a copy
    of the model are timed in either precision. Where bf16 is only emulated, on a CPU or a GPU, the answer is
    fp32 at once: a step could take minutes.

    Args:
        model: takes images (B, C, H, W), gives logits (B, classes, H, W); not changed.
        image_size: (height, width) in pixels.
        batch_size: images in the steps that are timed.
        channels: of the images.
        rounds: steps in either precision, alternating; the fastest counts.

    Returns:
        "bf16-mixed" or "32-true".

    Example:
        >>> choose_precision(nn.Conv2d(3, 2, 1), (32, 32)) in ("bf16-mixed", "32-true")
        True
    """
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    if not HAS_BF16:
        return "32-true"
    trial = copy.deepcopy(model).train()
    fastest = {True: float("inf"), False: float("inf")}
    with torch.random.fork_rng(devices=[]):
        images = torch.rand(batch_size, channels, *image_size)
        for turn in range(rounds + 1):
            for bf16 in fastest:
                start = time.perf_counter()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    logits = trial(images)
                logits.float().logsumexp(1).mean().backward()
                if turn:  # the first one also sets up kernels
                    fastest[bf16] = min(fastest[bf16], time.perf_counter() - start)
    return "bf16-mixed" if fastest[True] < fastest[False] else "32-true"
