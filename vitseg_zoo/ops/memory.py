"""Memory on a CPU: huge pages for large outputs, and what a training frees kept for its next step.

Fresh memory comes from the system in pages of 4 kB, each of which costs an interruption: of the logits of 150
classes at 512 x 512 that is more than half of the time. Huge pages have 2 MB, but most systems give them out
only where they are asked for, which PyTorch's allocator does not do by default. Like PyTorch's cache on a
GPU, the memory of the last outputs is kept, and used again once no tensor is left in it.
"""

import ctypes
import mmap
import sys
import threading
import weakref
from collections.abc import Sequence

import torch

# Bytes. Less comes from memory that the process already has. More would be much to keep, and huge pages
# that are not kept may come slower than small ones: in virtual machines that return free memory to the host.
_SMALLEST, _LARGEST = 32 * 2**20, 256 * 2**20

# Of the last outputs, oldest first: the memory, and a reference that is dead once no tensor uses it.
_kept: list[tuple[mmap.mmap, weakref.ref]] = []
_lock = threading.Lock()

# Parameters of glibc's `mallopt`, as in its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def empty(
    size: Sequence[int], dtype: torch.dtype, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """`torch.empty` on the CPU; see the module for where its memory comes from."""
    count = torch.Size(size).numel() * dtype.itemsize
    if not _SMALLEST <= count <= _LARGEST or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=dtype, memory_format=memory_format)
    with _lock:
        for i, (memory, holder) in enumerate(_kept):
            if len(memory) == count and holder() is None:
                del _kept[i]
                break
        else:
            try:
                memory = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE)
                memory.madvise(mmap.MADV_HUGEPAGE)
            except OSError:  # a kernel without them, or no memory, which PyTorch has its own words for
                return torch.empty(size, dtype=dtype, memory_format=memory_format)
        view = memoryview(memory)
        _kept.append((memory, weakref.ref(view)))
        while sum(len(memory) for memory, _ in _kept) > _LARGEST:
            del _kept[0]
    storage = torch.frombuffer(view, dtype=torch.uint8).untyped_storage()
    # Not as a view, which PyTorch would not let everyone change in place.
    stride = torch.empty(size, memory_format=memory_format, device="meta").stride()
    return torch.empty(0, dtype=dtype).set_(storage, 0, tuple(size), stride)


def keep_freed_memory() -> bool:
    """Let this process keep the memory that it frees, for as long as it runs.

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
