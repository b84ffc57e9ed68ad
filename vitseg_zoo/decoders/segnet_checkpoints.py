"""Checkpoints of plain PyTorch SegNets: whatever their names, order and shapes say which tensor is which."""

import torch
from torch import nn

from vitseg_zoo.decoders.segnet import CHANNELS, SegNetDecoder, SegNetEncoder, conv_norm

StateDict = dict[str, torch.Tensor]


def is_plain_segnet(weights: StateDict) -> bool:
    """Tell whether the tensors are, in their order, those of a SegNet of the article's layout."""
    return _names(weights) is not None


def convert_plain_segnet(weights: StateDict) -> StateDict:
    """Give the tensors of a plain SegNet the names of `smp.SegNet` or `smp.SegNetDSC`.

    Args:
        weights: A state dict for which `is_plain_segnet` holds.

    Returns:
        The tensors under the zoo's names.
    """
    names = _names(weights) or ()
    converted = dict(zip(names, _without_counters(weights).values(), strict=True))
    norms = [name.removesuffix("running_var") for name in names if name.endswith("running_var")]
    counters = [value for key, value in weights.items() if key.endswith("num_batches_tracked")]
    return {
        f"{norm}num_batches_tracked": value for norm, value in zip(norms, counters, strict=False)
    } | converted


def _names(weights: StateDict) -> list[str] | None:
    """Find the zoo's names of all tensors but the norms' counters; None if the shapes are others."""
    tensors = _without_counters(weights)
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    # The norm of the image comes first, that of the logits last; separable filters have one input channel.
    if len(shapes) < 6 or len(shapes[0]) != 1 or len(shapes[4]) != 4 or len(shapes[-1]) != 1:
        return None
    (in_channels,), (classes,), separable = shapes[0], shapes[-1], shapes[4][0] != CHANNELS[0]
    with torch.device("meta"):
        parts = {
            "encoder": SegNetEncoder(in_channels, separable),
            "decoder": SegNetDecoder(separable),
            "segmentation_head": nn.Sequential(*conv_norm(CHANNELS[0], classes, separable)),
        }
    ours = _without_counters(nn.ModuleDict(parts).state_dict())
    return list(ours) if [tuple(tensor.shape) for tensor in ours.values()] == shapes else None


def _without_counters(weights: StateDict) -> StateDict:
    """Leave out what checkpoints of old do not have."""
    return {key: value for key, value in weights.items() if not key.endswith("num_batches_tracked")}
