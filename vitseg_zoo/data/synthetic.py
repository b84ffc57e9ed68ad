"""Drawn cats and dogs: a data set that the package makes itself, for a first training without any download.

Each picture is an animal in one of five poses over a cluttered scene. The scene shares colors and textures
with the animal's coat, and holds balls, cushions, posts and plants of that very coat, so that color tells
little and shape decides. Masks have the three classes of the Oxford-IIIT Pet trimaps.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import cv2
import numpy as np
from numpy.random import Generator

from vitseg_zoo.data.animals import Chain, Parts, draw_pose
from vitseg_zoo.data.oxford_pets import CLASS_NAMES, PALETTE

PET, BACKGROUND, BORDER = range(3)  # as vitseg_zoo.data.oxford_pets
_SPLITS = ("train", "val", "test")

# RGB colors of coats, and of what else a scene may hold.
_COATS = np.array(
    [
        (35, 32, 34),  # black
        (225, 220, 212),  # white
        (190, 120, 60),  # ginger
        (110, 75, 50),  # brown
        (212, 180, 140),  # cream
        (128, 128, 132),  # gray
        (80, 58, 46),  # chocolate
        (92, 100, 114),  # blue
    ]
)
_THINGS = np.array(
    [
        (70, 110, 50),  # grass
        (120, 140, 80),  # leaves
        (60, 95, 140),  # blue
        (150, 60, 55),  # red
        (165, 160, 150),  # stone
        (100, 110, 60),  # olive
        (150, 130, 160),  # lilac
        (70, 120, 115),  # teal
    ]
)


class SyntheticPets(Sequence):
    """Drawn animals with masks of three classes: 0 pet, 1 background, 2 border.

    A picture depends only on (`split`, `seed`, index), and is drawn when it is read, in about 10 ms.

    Args:
        count: number of pictures.
        split: "train", "val" or "test": different pictures of the same kind.
        image_size: side of the square pictures, in pixels.
        seed: another seed gives other pictures.

    Raises:
        ValueError: unknown `split`.

    Example:
        >>> image, mask = SyntheticPets(count=10)[3]
        >>> image.shape, image.dtype, mask.shape, np.unique(mask).tolist()
        ((128, 128, 3), dtype('uint8'), (128, 128), [0, 1, 2])
    """

    class_names, palette, ignore_index = CLASS_NAMES, PALETTE, None

    def __init__(self, count: int, split: str = "train", image_size: int = 128, seed: int = 0) -> None:
        if split not in _SPLITS:
            raise ValueError(f'split must be "train", "val" or "test", not {split!r}.')
        self.length = count
        self.split = split
        self.image_size = image_size
        self.seed = seed

    def __len__(self) -> int:
        return self.length

    def __getitem__(  # type: ignore[override]  # no slices
        self, index: int
    ) -> tuple[np.ndarray, np.ndarray]:
        if not -self.length <= index < self.length:
            raise IndexError(f"index {index} is out of range for {self.length} pictures.")
        rng = np.random.default_rng([_SPLITS.index(self.split), self.seed, index % self.length])
        return _draw(rng, self.image_size)


def _draw(rng: Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture (S, S, 3) and its mask (S, S), both uint8."""
    coat = [_color(rng, _COATS) for _ in range(2)]
    scene = _scene(rng, size)
    for _ in range(rng.integers(3, 8)):
        _draw_thing(scene, rng, coat)

    pet = _draw_animal(scene, _place(draw_pose(rng), rng, size), rng, coat)
    if rng.random() < 0.25:  # something in front
        pet = np.minimum(pet, 1 - _draw_thing(scene, rng, coat, largest=0.12))

    scene *= rng.uniform(0.8, 1.25) * (0.8 + 0.4 * _noise(rng, size, 2)[..., None])  # light
    scene += rng.normal(0, rng.uniform(2, 7), scene.shape)  # the camera's noise
    image = np.clip(scene, 0, 255).astype(np.uint8)

    inside = (pet > 0.5).astype(np.uint8)
    mask = np.where(inside, PET, BACKGROUND).astype(np.uint8)
    width = 2 * round(size / 64) + 1  # as the trimaps at 128 x 128: a band of 4 pixels on the outline
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    mask[cv2.dilate(inside, disk) != cv2.erode(inside, disk)] = BORDER
    return image, mask


# Textures: coats, walls, floors and things are all made by `_texture`.


def _color(rng: Generator, palette: np.ndarray) -> np.ndarray:
    color = palette[rng.integers(len(palette))] * rng.uniform(0.75, 1.2) + rng.normal(0, 6, 3)
    return np.clip(color, 8, 247).astype(np.float32)


def _noise(rng: Generator, size: int, cells: float, stretch: float = 1.0, angle: float = 0.0) -> np.ndarray:
    """Draw smooth noise (S, S) in [0, 1]: `cells` bumps across, drawn out by `stretch` at an angle."""
    height, width = max(2, round(cells)) + 1, max(2, round(cells / stretch)) + 1
    square = int(1.42 * size) if angle else size  # room to turn it
    values = rng.random((height, width), dtype=np.float32)
    values = cv2.resize(values, (square, square), interpolation=cv2.INTER_LINEAR)
    if not angle:
        return values
    turn = cv2.getRotationMatrix2D((square / 2, square / 2), angle, 1.0)
    turn[:, 2] -= (square - size) / 2
    return cv2.warpAffine(values, turn, (size, size), borderMode=cv2.BORDER_REFLECT)


def _texture(rng: Generator, size: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Draw a surface (S, S, 3) of two colors: stripes, patches or nearly one color, with hair or grain."""
    kind, angle = rng.integers(4), rng.uniform(1, 180)
    if kind == 0:  # stripes that bend
        ramp = np.linspace(0, 2 * np.pi * rng.uniform(4, 12), size, dtype=np.float32)
        along = math.cos(math.radians(angle)) * ramp + math.sin(math.radians(angle)) * ramp[:, None]
        waves = np.sin(along + rng.uniform(1, 9) * _noise(rng, size, 4))
        share = _step(waves, rng.uniform(-0.3, 0.6), width=0.3)
    elif kind == 1:  # patches
        share = _step(_noise(rng, size, rng.uniform(3, 14)), rng.uniform(0.45, 0.65), width=0.05)
    else:
        share = rng.uniform(0, 0.35) * _noise(rng, size, 3)
    surface = first + share[..., None] * (second - first)
    grain = _noise(rng, size, rng.uniform(50, 100), stretch=rng.uniform(1, 8), angle=angle) - 0.5
    return surface * (1 + rng.uniform(0.2, 0.6) * grain[..., None])


def _step(values: np.ndarray, edge: float, width: float) -> np.ndarray:
    """Return 0 below `edge`, 1 above it, and a ramp of `width` between."""
    return np.clip((values - edge) / width + 0.5, 0, 1)


# Shapes: coverage (S, S) in [0, 1], with smooth edges


def _fill(shape: Chain, size: int, solid: bool = False) -> np.ndarray:
    """Return the coverage of a chain, or with `solid` of the hull of all its circles."""
    canvas = np.zeros((size, size), np.uint8)
    turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    rim = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    circles = [np.array([x, y]) + radius * rim for x, y, radius in shape]
    for group in [circles] if solid or len(circles) == 1 else pairwise(circles):
        hull = cv2.convexHull(np.concatenate(group).astype(np.float32))
        # `shift`: coordinates in sixteenths of a pixel.
        cv2.fillConvexPoly(canvas, np.round(16 * hull).astype(np.int32), 255, cv2.LINE_AA, shift=4)
    return canvas.astype(np.float32) / 255


def _depth(coverage: np.ndarray, deepest: float) -> np.ndarray:
    """Return the distance to the outline in units of `deepest` pixels, at most 1."""
    pixels = (coverage > 0.5).astype(np.uint8)
    return np.minimum(cv2.distanceTransform(pixels, cv2.DIST_L2, 3) / deepest, 1)


def _light(coverage: np.ndarray) -> np.ndarray:
    """Draw light on a rounded body (S, S): darker toward its outline and its underside."""
    rows = np.flatnonzero(coverage.max(axis=1) > 0)
    down = np.arange(len(coverage), dtype=np.float32)[:, None] - np.float32(rows[0])
    down = np.clip(down / np.float32(len(rows) + 1), 0, 1)
    return (0.7 + 0.35 * np.sqrt(_depth(coverage, 0.06 * len(coverage)))) * (1.1 - 0.3 * down)


def _paint(scene: np.ndarray, coverage: np.ndarray, surface: np.ndarray) -> None:
    scene += coverage[..., None] * (surface - scene)


# The scene


def _scene(rng: Generator, size: int) -> np.ndarray:
    """Draw wall and floor, or one ground, as (S, S, 3) float32."""
    palettes = [_COATS if rng.random() < 0.5 else _THINGS for _ in range(2)]
    floor, wall = (_texture(rng, size, _color(rng, colors), _color(rng, colors)) for colors in palettes)
    if rng.random() < 0.7:
        horizon = int(size * rng.uniform(0.2, 0.75))
        floor[:horizon] = wall[:horizon]
    return floor


def _draw_thing(
    scene: np.ndarray, rng: Generator, coat: list[np.ndarray], largest: float = 0.28
) -> np.ndarray:
    """Draw a ball, cushion, post or plant, mostly in colors of the animal, and return its coverage."""
    size = len(scene)
    center, radius = rng.uniform(-0.05, 1.05, 2) * size, rng.uniform(0.04, largest) * size
    turn, kind = rng.uniform(0, 2 * np.pi), rng.integers(4)

    def at(angle: float, reach: float) -> np.ndarray:
        return center + reach * radius * np.array([np.cos(angle), np.sin(angle)])

    if kind == 0:  # ball
        chains = [[(*center, radius)]]
    elif kind == 1:  # cushion or box
        half, soft = rng.uniform(0.3, 0.8), rng.uniform(0.02, 0.3) * radius
        corners = (half, np.pi - half, np.pi + half, -half)
        chains = [[(*at(turn + angle, 1), soft) for angle in corners]]
    elif kind == 2:  # post
        thick = rng.uniform(0.08, 0.25) * radius
        chains = [[(*at(turn, 2), thick), (*at(turn + np.pi, 2), thick)]]
    else:  # plant: leaves from one point
        chains = []
        for angle in turn + rng.uniform(-1.3, 1.3, rng.integers(3, 7)):
            reach = rng.uniform(0.8, 1.8)
            middle, tip = (*at(angle, reach / 2), 0.2 * radius), (*at(angle, reach), 0.02 * radius)
            chains.append([(*center, 0.1 * radius), middle, tip])
    coverage = np.max([_fill(chain, size, solid=kind == 1) for chain in chains], axis=0)
    if coverage.any():
        colors = (
            coat if rng.random() < 0.6 else [_color(rng, np.concatenate([_COATS, _THINGS])) for _ in range(2)]
        )
        _paint(scene, coverage, _texture(rng, size, *colors) * _light(coverage)[..., None])
    return coverage


# The animal


def _place(parts: Parts, rng: Generator, size: int) -> Parts:
    """Turn, mirror, scale and shift an animal into a picture of S x S pixels."""
    mirror, angle = rng.choice([-1, 1]), rng.normal(0, 0.2)
    scale = rng.uniform(0.55, 1.0) * size
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    x0, y0 = rng.uniform(0.28, 0.72, 2) * size
    placed = []
    for part, chain in parts:
        points = [(turn @ (x, y), radius * scale) for x, y, radius in chain]
        placed.append((part, [(x0 + mirror * x, y0 + y, radius) for (x, y), radius in points]))
    return placed


def _draw_animal(scene: np.ndarray, parts: Parts, rng: Generator, coat: list[np.ndarray]) -> np.ndarray:
    """Draw an animal with its shadow into the scene and return its coverage."""
    size = len(scene)
    filled = [(part, _fill(chain, size)) for part, chain in parts]
    pet = np.max([coverage for _, coverage in filled], axis=0)
    shadow = cv2.GaussianBlur(np.roll(pet, size // 24, axis=0), (0, 0), size / 40)
    scene *= 1 - rng.uniform(0.1, 0.5) * shadow[..., None]

    fur, marks = _texture(rng, size, *coat), _texture(rng, size, *coat[::-1])
    marked = {part for part in ("ear", "tail", "leg", "far leg", "muzzle", "head") if rng.random() < 0.3}
    light = _light(pet)
    for part, coverage in filled:
        surface = coat[0] * 0.15 + 8  # eyes and nose
        if part != "eye":
            dim = (0.75 if part == "far leg" else 1.0) * (0.8 + 0.2 * _depth(coverage, size / 50))
            surface = (marks if part in marked else fur) * (light * dim)[..., None]
        _paint(scene, coverage, surface)
    return pet
