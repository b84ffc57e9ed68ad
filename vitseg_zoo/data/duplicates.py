"""Images that are nearly the same, by their difference hashes."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Difference hashes of near duplicates differ in at most this many of 64 bits.
_NEAR = 3
# Images with so few edges in their 9 x 8 pixels are alike whatever they show.
_FEWEST_EDGES = 8
# Images that share a quarter of their hashes; more than so many say nothing, as frames of one camera.
_LARGEST_BUCKET = 500


def near_duplicates(hashes: Sequence[int]) -> list[list[int]]:
    """Group images whose difference hashes differ in at most 3 of 64 bits.

    Such hashes agree in one of four quarters at least, so only images that share a quarter are compared.

    Args:
        hashes: 8 x 8 bits of each image: whether a pixel is brighter than its neighbor.

    Returns:
        The places of the images of each group of two and more.

    Example:
        >>> near_duplicates([0xFFFF0000FFFF, 0x123456789ABCDEF, 0xFFFF0000FFF0 | 0x7])
        [[0, 2]]
    """
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, bits in enumerate(hashes):
        if _FEWEST_EDGES <= bits.bit_count() <= 64 - _FEWEST_EDGES:
            for quarter in range(4):
                buckets[quarter, bits >> 16 * quarter & 0xFFFF].append(index)
    pairs = [
        pair
        for bucket in buckets.values()
        for pair in combinations(bucket[:_LARGEST_BUCKET], 2)
        if (hashes[pair[0]] ^ hashes[pair[1]]).bit_count() <= _NEAR
    ]
    if not pairs:
        return []
    one, other = np.array(pairs).T
    graph = coo_array((np.ones(len(pairs), bool), (one, other)), shape=(len(hashes), len(hashes)))
    groups: dict[int, list[int]] = defaultdict(list)
    for index, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        groups[group].append(index)
    return [group for group in groups.values() if len(group) > 1]
