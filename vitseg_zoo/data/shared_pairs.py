"""Decoded images and masks in memory that all loading processes share, as far as there is some."""

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_LARGEST_BLOCK = 2**28  # bytes: so few blocks that the system does not run out of open files
_UNKNOWN = 8 * 2**30  # bytes that are taken for free where no system says it
_SHARED = "/dev/shm"  # Linux's shared memory; containers often get 64 MB of it

# Offset in a block, shape and type of an array.
Place = tuple[int, tuple[int, ...], np.dtype]


class SharedPairs:
    """Pairs of image and mask, of any sizes and types, in a few blocks of shared memory.

    Worker processes see them without a copy, however they are started. Where the system's shared memory is
    too small, blocks are ordinary memory, which forked workers share as well.

    Args:
        pairs: What is kept; None for a pair that there is not.
        limit: Bytes that may be taken.

    Raises:
        MemoryError: If the pairs need more.

    Example:
        >>> pairs = [(np.full((2, 2, 3), 7, np.uint8), np.ones((2, 2), np.uint8)), None]
        >>> kept = SharedPairs(pairs, limit=1000)
        >>> kept[0][1].tolist(), kept[1]
        ([[1, 1], [1, 1]], None)
    """

    def __init__(self, pairs: Iterable[tuple[np.ndarray, np.ndarray] | None], limit: int) -> None:
        self.blocks: list[Tensor] = []
        self.places: list[tuple[int, Place, Place] | None] = []
        self.nbytes = end = 0
        for pair in pairs:
            if pair is None:
                self.places.append(None)
                continue
            needed = sum(_aligned(array.nbytes) for array in pair)
            self.nbytes += needed
            if self.nbytes > limit:
                raise MemoryError(f"the pairs need more than {limit} bytes.")
            if not self.blocks or end + needed > len(self.blocks[-1]):
                self.blocks.append(_new_block(max(needed, min(max(self.nbytes, 2**20), _LARGEST_BLOCK))))
                end = 0
            places: list[Place] = []
            for array in pair:
                places.append((end, array.shape, array.dtype))
                self._view(len(self.blocks) - 1, places[-1])[...] = array
                end += _aligned(array.nbytes)
            self.places.append((len(self.blocks) - 1, places[0], places[1]))

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray] | None:
        """Return a pair as views that cannot be written to."""
        place = self.places[index]
        if place is None:
            return None
        image, mask = (self._view(place[0], array) for array in place[1:])
        image.flags.writeable = mask.flags.writeable = False
        return image, mask

    def _view(self, block: int, place: Place) -> np.ndarray:
        offset, shape, dtype = place
        return np.ndarray(shape, dtype, self.blocks[block].numpy(), offset)


def free_memory() -> int:
    """Say how many bytes this process may still take: of the machine, or of its container if that has fewer.

    Example:
        >>> free_memory() > 0
        True
    """
    free = _UNKNOWN
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        group = Path("/sys/fs/cgroup")  # a container's own
        most, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        free = min(free, max(0, most - used + int(statistics["inactive_file"])))  # read files make way
    except (OSError, ValueError, KeyError, StopIteration):  # no Linux, no container, or "max"
        pass
    return free


def _new_block(size: int) -> Tensor:
    block = torch.empty(size, dtype=torch.uint8)
    # Half of it: batches on their way from workers are there, too.
    if not os.path.isdir(_SHARED) or shutil.disk_usage(_SHARED).free > 2 * size:
        block.share_memory_()
    return block


def _aligned(size: int) -> int:
    return -(-size // 64) * 64
