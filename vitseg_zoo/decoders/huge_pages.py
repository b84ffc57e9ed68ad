"""Memory for large outputs, in Linux's huge pages.

Fresh memory comes from the system in pages of 4 kB, each of which costs an interruption: of the logits of 150
classes at 512 x 512 that is more than half of the time. Huge pages have 2 MB. Most systems give them out only
where they are asked for ("madvise"), which PyTorch's allocator does not do by default.

Not for training: in a virtual machine that gives memory back to its host, huge pages that were free for a
second or two are slower to get again than small ones.
"""

import mmap
from collections.abc import Sequence

import torch

# Smaller tensors come from memory that the process already has.
_LEAST_BYTES = 32 * 2**20


def empty(size: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """`torch.empty(size, dtype=dtype)` on the CPU, in huge pages if it is large and the system has them."""
    count = torch.Size(size).numel()
    if count * dtype.itemsize < _LEAST_BYTES or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=dtype)
    try:
        memory = mmap.mmap(-1, count * dtype.itemsize, flags=mmap.MAP_PRIVATE)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them, or no memory, which PyTorch has its own words for
        return torch.empty(size, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype).view(tuple(size))  # which keeps the memory
