"""The drawn animals' anatomy: five poses of a cat or dog, as chains of circles.

An animal is about one unit long and looks to the right; x goes to the right and y down.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator

# A chain of circles (x, y, radius): neighbors are joined by their common hull. All shapes are made of them.
Chain = list[tuple[float, float, float]]
# Pairs of a part's name and its chain; later parts are drawn over earlier ones.
Parts = list[tuple[str, Chain]]


def draw_pose(rng: Generator) -> Parts:
    """Return an animal in a random pose, of random proportions.

    Example:
        >>> parts = draw_pose(np.random.default_rng(0))
        >>> {"head", "body", "ear"} <= {part for part, _ in parts}
        True
    """
    return _POSES[rng.integers(len(_POSES))](rng)


def _leg(rng: Generator, x: float, y: float, length: float, radius: float) -> Chain:
    swing, knee = rng.uniform(-0.35, 0.35), rng.uniform(-0.06, 0.06)
    foot = x + swing * length
    return [
        (x, y, radius * 1.5),
        (x + swing * length / 2 + knee, y + length * 0.55, radius),
        (foot, y + length, radius * 0.8),
        (foot + radius, y + length, radius * 0.8),
    ]


def _tail(rng: Generator, x: float, y: float) -> Chain:
    angle, bend = rng.uniform(2.2, 4.2), rng.uniform(-0.7, 0.7)
    radius, step = rng.uniform(0.02, 0.05), rng.uniform(0.05, 0.11)
    chain = [(x, y, radius * 1.3)]
    for _ in range(5):
        x, y = x + step * np.cos(angle), y + step * np.sin(angle)
        chain.append((x, y, radius))
        angle += bend
    return chain


def _head(rng: Generator, x: float, y: float, radius: float, frontal: float = 0.5) -> Parts:
    """Return a head with ears, pointed or hanging, and a face, with probability `frontal` from the front."""
    from_front, pointed = rng.random() < frontal, rng.random() < 0.6
    parts: Parts = []
    if from_front:
        skull = [(x - radius * 0.15, y, radius), (x + radius * 0.15, y, radius)]
        sides, nose = (-0.6, 0.6), (0.0, 0.35)
        eyes: tuple[float, ...] = (-0.42, 0.42)
        muzzle = [(x, y + radius * 0.4, radius * 0.45)]
    else:
        length = rng.uniform(0.9, 1.7)
        skull = [(x, y, radius)]
        sides, eyes, nose = (-0.65, 0.1), (0.45,), (length + 0.2, 0.25)
        muzzle = [
            (x + radius * 0.3, y + radius * 0.3, radius * 0.55),
            (x + radius * length, y + radius * 0.4, radius * 0.32),
        ]
    for side in sides:
        reach = rng.uniform(0.7, 1.3) * radius
        root = (x + side * radius, y - radius * 0.6, radius * 0.38)
        tip = (side * 0.5 * reach, -reach) if pointed else (np.sign(side - 0.1) * 0.45 * reach, 1.1 * reach)
        parts.append(
            ("ear", [root, (root[0] + tip[0], root[1] + tip[1], radius * (0.05 if pointed else 0.25))])
        )
    parts += [("head", skull), ("muzzle", muzzle)]
    parts += [("eye", [(x + side * radius, y - radius * 0.1, radius * 0.13)]) for side in eyes]
    parts.append(("eye", [(x + nose[0] * radius, y + nose[1] * radius, radius * 0.14)]))
    return parts


def _standing(rng: Generator) -> Parts:
    length, radius = rng.uniform(0.4, 0.62), rng.uniform(0.11, 0.16)
    leg, thick = rng.uniform(0.22, 0.4), rng.uniform(0.03, 0.05)
    hip, shoulder = -length / 2, length / 2
    head = (shoulder + rng.uniform(0.1, 0.2), rng.uniform(-0.32, 0.05))
    parts: Parts = [("far leg", _leg(rng, x + 0.05, radius * 0.3, leg, thick)) for x in (hip, shoulder)]
    parts.append(("tail", _tail(rng, hip - radius * 0.8, -radius * 0.5)))
    parts.append(
        ("body", [(hip, 0, radius), (0, 0.01, radius * rng.uniform(0.85, 1.1)), (shoulder, -0.01, radius)])
    )
    parts += [("leg", _leg(rng, x, radius * 0.3, leg, thick)) for x in (hip, shoulder)]
    parts.append(("neck", [(shoulder, -0.03, radius * 0.8), (*head, 0.08)]))
    return parts + _head(rng, *head, rng.uniform(0.1, 0.14))


def _sitting(rng: Generator) -> Parts:
    lean, thick = rng.uniform(0.05, 0.2), rng.uniform(0.035, 0.05)
    parts: Parts = [("tail", _tail(rng, -0.2, 0.35))]
    parts.append(("far leg", [(lean + 0.06, 0, thick * 1.5), (lean + 0.1, 0.42, thick)]))
    parts.append(("body", [(-0.08, 0.25, rng.uniform(0.16, 0.22)), (lean, -0.08, rng.uniform(0.11, 0.15))]))
    parts.append(("leg", [(-0.05, 0.28, 0.12), (0.02, 0.42, thick), (0.12, 0.43, thick)]))
    parts.append(("leg", [(lean, 0, thick * 1.6), (lean + 0.04, 0.42, thick), (lean + 0.08, 0.43, thick)]))
    return parts + _head(
        rng, lean + rng.uniform(-0.02, 0.08), rng.uniform(-0.36, -0.26), rng.uniform(0.12, 0.16)
    )


def _lying(rng: Generator) -> Parts:
    radius, thick = rng.uniform(0.12, 0.18), rng.uniform(0.035, 0.05)
    parts: Parts = [("tail", _tail(rng, -0.4, 0.08))]
    parts.append(
        (
            "body",
            [(-0.32, 0.08, radius), (0, 0.06, radius * rng.uniform(0.9, 1.1)), (0.25, 0.04, radius * 0.9)],
        )
    )
    parts.append(("leg", [(-0.28, 0.12, radius * 0.75), (-0.12, 0.2, thick), (0.02, 0.21, thick)]))
    parts.append(
        ("leg", [(0.22, 0.14, thick * 1.5), (0.4, 0.2, thick), (rng.uniform(0.45, 0.6), 0.2, thick)])
    )
    return parts + _head(rng, rng.uniform(0.3, 0.42), rng.uniform(-0.2, 0.1), rng.uniform(0.11, 0.15))


def _curled(rng: Generator) -> Parts:
    parts: Parts = [("body", [(-0.12, 0, rng.uniform(0.2, 0.26)), (0.12, 0.05, rng.uniform(0.16, 0.22))])]
    parts.append(("leg", [(-0.18, 0.1, 0.14), (0.0, 0.23, 0.04), (0.1, 0.24, 0.04)]))
    bend = np.linspace(3.2, rng.uniform(1.2, 1.9), 6)
    parts.append(("tail", [(0.4 * np.cos(a), 0.25 * np.sin(a) + 0.04, 0.04) for a in bend]))
    return parts + _head(
        rng, rng.uniform(0.25, 0.36), rng.uniform(-0.12, 0.12), rng.uniform(0.12, 0.16), frontal=0.8
    )


def _portrait(rng: Generator) -> Parts:
    tilt = rng.uniform(-0.12, 0.12)
    body = [(0.0, 0.75, 0.4), (tilt / 2, 0.3, rng.uniform(0.18, 0.26))]
    return [("body", body), *_head(rng, tilt, 0.0, rng.uniform(0.24, 0.3))]


_POSES: list[Callable[[Generator], Parts]] = [_standing, _sitting, _lying, _curled, _portrait]
