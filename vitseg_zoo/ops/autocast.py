"""Autocast on the device that a tensor is on, which may have none, as `meta`."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """Return the type that autocast computes in on a tensor's device, or None where it is off.

    Example:
        >>> x = torch.zeros(2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     autocast_dtype(x)
        torch.bfloat16
        >>> autocast_dtype(x), autocast_dtype(x.to("meta"))
        (None, None)
    """
    kind = x.device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def without_autocast(x: Tensor) -> AbstractContextManager:
    """Switch autocast off on a tensor's device, inside a `with` block.

    Example:
        >>> x = torch.eye(2)
        >>> with torch.autocast("cpu", torch.bfloat16), without_autocast(x):
        ...     (x @ x).dtype
        torch.float32
    """
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)
