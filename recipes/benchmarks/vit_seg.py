"""A training step of ViT-seg against the same network in `nn.Unfold`, `nn.MultiheadAttention`, `nn.Fold`.

    python recipes/benchmarks/vit_seg.py [--batch-size 32] [--rounds 5]

Both are the article's model (86 M parameters, 128 x 128, dropout 0.2) with cross-entropy and Adam. They take
turns in one process; printed are medians, and ratios of medians against the reference in fp32.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
from vit_seg_reference import ReferenceViTSeg


def training_step(model: torch.nn.Module, images: torch.Tensor, masks: torch.Tensor, bf16: bool) -> Callable:
    """A function that makes one step of training."""
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = F.cross_entropy(model(images).float(), masks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(args.batch_size, 3, 128, 128)
    masks = torch.randint(0, 3, (args.batch_size, 128, 128))
    reference, ours = ReferenceViTSeg(), smp.create_model("vitseg", classes=3)
    steps = {
        "reference, fp32": training_step(reference, images, masks, bf16=False),
        "reference, bf16": training_step(reference, images, masks, bf16=True),
        "vitseg, fp32": training_step(ours, images, masks, bf16=False),
        "vitseg, bf16": training_step(ours, images, masks, bf16=True),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    base = medians["reference, fp32"]
    for name, median in medians.items():
        print(f"{name:16}  {median * 1e3:7.0f} ms  {base / median:5.2f}x the reference in fp32")


if __name__ == "__main__":
    main()
