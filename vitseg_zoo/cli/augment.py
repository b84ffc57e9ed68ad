"""`vitseg augment`: what a training will see of an image, as a contact sheet."""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.data.check_page import overlay
from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.masks import read_mask
from vitseg_zoo.data.transforms import PRESETS
from vitseg_zoo.files import atomic_path
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.terminal import say

_COLUMNS, _ROWS = 4, 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("image", type=Path, help="an image")
    add("mask", type=Path, help="its mask, of one channel")
    add("--recipe", default="standard", choices=PRESETS, help="preset of augmentations (%(default)s)")
    add("--image-size", type=int, default=256, help="side of what a training sees, in pixels (%(default)s)")
    add("--seed", type=int, default=0, help="seed of the drawing (%(default)s)")
    add("--out", type=Path, default=Path("augment.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Write the sheet."""
    if not 16 <= args.image_size <= 2048:
        raise ValueError(f"--image-size should be in range [16, 2048], got {args.image_size}.")
    image, mask = read_image(args.image), read_mask(args.mask, colors=False)
    if mask.shape != image.shape[:2]:
        raise ValueError(
            f"{args.mask} is {' x '.join(map(str, mask.shape))}, and the image {image.shape[0]} x "
            f"{image.shape[1]} (height x width): give a mask of one channel and of the image's size."
        )
    values, numbers = np.unique(mask, return_inverse=True)
    numbers = numbers.reshape(mask.shape).astype(np.uint8 if len(values) < 256 else np.uint16)
    augment, palette = PRESETS[args.recipe](args.image_size), tuple(distinct_colors(len(values)))
    augment.set_random_seed(args.seed)
    seen = [augment(image=image, mask=numbers) for _ in range(_COLUMNS * _ROWS)]
    pictures = [overlay(one["image"], one["mask"], palette) for one in seen]
    rows = [np.concatenate(pictures[at : at + _COLUMNS], 1) for at in range(0, len(pictures), _COLUMNS)]
    with atomic_path(args.out) as partial:
        Image.fromarray(np.concatenate(rows, 0)).save(partial)
    say(f"{args.out}: {len(pictures)} views by {args.recipe}")
    return 0
