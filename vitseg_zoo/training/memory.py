"""Memory of a training on a CPU."""

import ctypes
import sys

# Parameters of glibc's `mallopt`, as in its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Lets this process keep the memory that it frees, for as long as it runs.

    By default Linux's C library gives the memory of large tensors back to the system, and each step of a
    training asks for it again, page by page, which takes up to a third of the time. Kept, it serves the next
    steps, from about the fourth on. The peak of memory grows little, since the steps of a training are alike.
    See "Malloc Tunable Parameters" in glibc's manual: `M_MMAP_MAX` and `M_TRIM_THRESHOLD`.

    Returns:
        Whether it could be set: with glibc.

    Example:
        >>> kept = keep_freed_memory()  # before the first step
    """
    if sys.platform != "linux":
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return mallopt is not None and all((mallopt(_M_MMAP_MAX, 0), mallopt(_M_TRIM_THRESHOLD, -1)))
