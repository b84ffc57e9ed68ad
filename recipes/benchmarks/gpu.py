"""All that a page on GPU speed needs, in under eight minutes on one card, as Markdown.

    python recipes/benchmarks/gpu.py > gpu.md
    python recipes/benchmarks/gpu.py --device cpu --quick    # tiny: does it run?

SegFormer here, of SMP and of Hugging Face, with and without `accelerate`; ViT-seg against timm's own ViT;
U-Nets over a ViT and over a ResNet. They take turns in one process, at 512 x 512 with random weights and 150
classes (21 in training). Hugging Face's logits are enlarged to the image's size, which the others' have.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from torch import nn

import vitseg_zoo
from vitseg_zoo.benchmark import HEADER, Cost, describe_setup, measure


@dataclass(frozen=True)
class Part:
    """A table of the page: what takes turns, and how."""

    title: str
    models: tuple[str, ...]
    batches: tuple[int, ...]
    precision: str = "bf16"
    compile: str | None = None
    train: bool = False


B0 = ("ours B0", "SMP B0", "HF B0", "HF B0, accelerated")
B2 = ("ours B2", "SMP B2", "HF B2", "HF B2, accelerated")
OTHERS = ("vitseg, ViT-S", "timm ViT-S + resize", "U-Net, ViT-S", "U-Net, ResNet-34")
PARTS = (
    Part("SegFormer, bf16", B0 + B2, (1, 4, 16)),
    Part("SegFormer, TF32", B0 + B2, (16,), "tf32"),
    Part("ViTs and U-Nets, bf16", OTHERS, (1, 16)),
    Part("Training step, bf16", (*B0, *B2, *OTHERS), (8,), train=True),
    # Last, as compiling takes most of the time.
    Part("CUDA graphs (reduce-overhead), bf16", B0[:3], (1,), compile="reduce-overhead"),
    Part("torch.compile, bf16", (*B0[:3], *OTHERS[:2]), (16,), compile="default"),
)
QUICK = (Part("Quick", ("ours B0", "HF B0"), (1, 2)), Part("Quick training", ("ours B0",), (2,), train=True))


class LogitsOfImage(nn.Module):
    """Hugging Face's model, whose logits are enlarged to the image's size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.interpolate(self.model(x).logits, x.shape[2:], mode="bilinear")


class ResizedTokens(nn.Module):
    """timm's own forward of a ViT, a linear layer on its tokens, and one resize: the least that segments."""

    def __init__(self, name: str, classes: int, size: int) -> None:
        super().__init__()
        self.vit = timm.create_model(name, img_size=size, num_classes=0)
        self.head = nn.Conv2d(self.vit.embed_dim, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.vit.forward_features(x)[:, self.vit.num_prefix_tokens :]
        grid = self.vit.patch_embed.grid_size
        logits = self.head(tokens.transpose(1, 2).unflatten(2, grid))
        return F.interpolate(logits, x.shape[2:], mode="bilinear")


def hugging_face(variant: str, classes: int) -> nn.Module:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    is_b0 = variant == "b0"
    config = SegformerConfig(
        depths=[2, 2, 2, 2] if is_b0 else [3, 4, 6, 3],
        hidden_sizes=[32, 64, 160, 256] if is_b0 else [64, 128, 320, 512],
        decoder_hidden_size=256 if is_b0 else 768,
    )
    config.num_labels = classes
    return LogitsOfImage(SegformerForSemanticSegmentation(config))


def build(name: str, classes: int, size: int) -> nn.Module:
    """Build one of the models by its name in the tables."""
    variant = "b0" if "B0" in name else "b2"
    options = dict(
        encoder_weights=None,
        classes=classes,
        decoder_segmentation_channels=256 if variant == "b0" else 768,
    )
    builders: dict[str, Callable[[], nn.Module]] = {
        "ours": lambda: smp.create_model("fusedsegformer", f"vz-mit_{variant}", **options),
        "SMP": lambda: smp.Segformer(f"mit_{variant}", **options),
        "HF": lambda: hugging_face(variant, classes),
        "vitseg,": lambda: smp.create_model("vitseg", "vz-vit_small_patch16_224", None, classes=classes),
        "timm": lambda: ResizedTokens("vit_small_patch16_224", classes, size),
    }
    if name.startswith("U-Net"):
        encoder = "vz-vit_small_patch16_224" if "ViT" in name else "resnet34"
        return smp.Unet(encoder, encoder_weights=None, classes=classes)
    model = builders[name.split()[0]]()
    return vitseg_zoo.accelerate(model) if name.endswith("accelerated") else model


def card(device: str) -> str:
    """Say which card, driver and versions measured."""
    if device != "cuda":
        return describe_setup(device)
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,memory.total", "--format=csv,noheader"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        said = "unknown"
    return f"{describe_setup(device)}; driver, power limit, memory: {said}"


def ratios(costs: list[Cost], batch: int) -> list[str]:
    """Say how many times as long the peers take as ours, of each variant."""
    times = {cost.model: cost.p50 for cost in costs if cost.batch == batch and cost.p50}
    lines = []
    for variant in ("B0", "B2"):
        peers = [f"{peer} {variant}" for peer in ("SMP", "HF") if f"{peer} {variant}" in times]
        if f"ours {variant}" in times and peers:
            said = [f"{peer} {times[peer] / times[f'ours {variant}']:.2f}" for peer in peers]
            lines.append(f"- Times of ours, batch {batch}: {', '.join(said)}.")
    return lines


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--minutes", type=float, default=7.5, help="begin no table after that [%(default)s]")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print(
            "There is no CUDA device here: run this on a machine with one, or with --device cpu --quick.",
            file=sys.stderr,
        )
        return 1
    size, rounds = (64, 2) if args.quick else (512, 30)
    start = time.monotonic()
    print(f"{card(args.device)}\n\n{size} x {size}, medians and 95th percentiles of {rounds} runs in turn.")
    for part in QUICK if args.quick else PARTS:
        if time.monotonic() - start > 60 * args.minutes:
            print(f"\n## {part.title}\n\nNot measured: {args.minutes:g} minutes were over.")
            continue
        classes = 21 if part.train else 150
        models = {name: build(name, classes, size) for name in part.models}
        costs = measure(
            models,
            (size, size),
            part.batches,
            args.device,
            precision=part.precision,
            compile=part.compile,
            train=part.train,
            rounds=rounds,
            warm_up=2 if args.quick else 5,
        )
        print(f"\n## {part.title}\n\n{HEADER}")
        print("\n".join(cost.row() for cost in costs))
        if lines := [line for batch in part.batches for line in ratios(costs, batch)]:
            print("\n" + "\n".join(lines))
        sys.stdout.flush()
    print(f"\nAll in {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
