"""Whether the layers of a model are torch's own, so that their weights can be multiplied beforehand."""

from collections.abc import Iterable

from torch import nn

from vitseg_zoo.encoders.mix_ops import PointwiseLinear

_PLAIN_TYPES = (nn.Linear, PointwiseLinear, nn.Conv2d, nn.BatchNorm2d, nn.SyncBatchNorm)


def is_plain(layers: Iterable[nn.Module], around: Iterable[nn.Module]) -> bool:
    """Whether `layers` can be multiplied: torch's own, without hooks on them or on the modules `around`."""
    layers = list(layers)
    return all(type(layer) in _PLAIN_TYPES for layer in layers) and not any(
        module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in (*layers, *around)
    )
