"""A plain ViT's entries in SMP's table of encoders: one for each way of making a pyramid of it."""

from typing import Any

from vitseg_zoo.encoders.detail import DetailPyramidEncoder
from vitseg_zoo.encoders.pretrained import TimmWeights
from vitseg_zoo.encoders.pyramid import PyramidEncoder, SimpleFeaturePyramidEncoder

# What stands before the name of the timm model -> the pyramid over it.
PYRAMIDS = {
    "vz-": SimpleFeaturePyramidEncoder,
    "vz-shuffle-": PyramidEncoder,
    "vz-detail-": DetailPyramidEncoder,
}


def smp_entry(name: str, tags: list[str]) -> dict[str, dict[str, Any]]:
    """Return a timm ViT's entries for SMP's table of encoders.

    Args:
        name: Name of the timm model.
        tags: Tags of its weights; where there are any, `"imagenet"` stands for the default tag.

    Returns:
        `vz-<name>` with the learned pyramid, `vz-shuffle-<name>` with the one that needs no parameters, and
        `vz-detail-<name>` with a path over the image beside the ViT.
    """
    settings = {tag: TimmWeights(f"{name}.{tag}") for tag in tags}
    if tags:
        settings["imagenet"] = TimmWeights(name)
    return {
        f"{prefix}{name}": {"encoder": encoder, "params": {"name": name}, "pretrained_settings": settings}
        for prefix, encoder in PYRAMIDS.items()
    }
