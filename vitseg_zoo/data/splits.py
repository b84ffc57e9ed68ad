"""How images without a split are divided: at random, but what belongs together stays together."""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence


def group_names(names: Sequence[str]) -> dict[str, str]:
    """Say which images belong together, as frames of one video: by folder, or by what precedes a number.

    Args:
        names: Names of images, as `Pair.name`.

    Returns:
        Name -> its group; each name is its own group where neither rule makes at least 5 groups, of which
        none has more than 40 % of the images.

    Example:
        >>> group_names(["a/1", "a/2"])["a/1"]
        'a/1'
        >>> group_names([f"scene{i}/{j}" for i in range(6) for j in range(9)])["scene3/7"]
        'scene3'
    """
    rules = (lambda name: name.rpartition("/")[0], lambda name: re.sub(r"[\W_]*\d+$", "", name))
    for rule in rules:
        groups = {name: rule(name) for name in names}
        counts = Counter(groups.values())
        if 5 <= len(counts) < len(names) and max(counts.values()) <= 0.4 * len(names):
            return groups
    return {name: name for name in names}


def split_names(names: Sequence[str], val: float = 0.2, seed: int = 0) -> dict[str, list[str]]:
    """Divide images that have no split at random into "train" and "val", groups of `group_names` kept whole.

    Args:
        names: Names of images; their order does not matter.
        val: Share of "val", of the images.
        seed: Seed of the drawing.

    Example:
        >>> {split: len(names) for split, names in split_names([str(i) for i in range(10)]).items()}
        {'train': 8, 'val': 2}
    """
    members: dict[str, list[str]] = defaultdict(list)
    for name, group in group_names(sorted(names)).items():
        members[group].append(name)
    groups = sorted(members)
    random.Random(seed).shuffle(groups)
    wanted = max(1, round(val * len(names)))
    chosen: set[str] = set()
    for group in groups:
        if len(chosen) < wanted and len(members) > 1:
            chosen.update(members[group])
    return {
        "train": sorted(name for name in names if name not in chosen),
        "val": sorted(name for name in names if name in chosen),
    }
