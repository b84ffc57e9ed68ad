"""A ViT-seg small enough for many tests, and for gradients in float64."""

import segmentation_models_pytorch as smp
from torch import nn

TINY = "vz-vitseg_tiny_patch16_128"
SMALL_ARGS = {"embed_dim": 48, "depth": 3, "num_heads": 4}  # quick, with the shape of the real thing


def small(**kwargs) -> nn.Module:
    """The architecture `vitseg` at a fraction of its size."""
    return smp.create_model("vitseg", TINY, encoder_weights=None, **{**SMALL_ARGS, **kwargs})
