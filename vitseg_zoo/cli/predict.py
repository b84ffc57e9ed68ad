"""`vitseg predict PATH...`: masks and overlays of images and videos, at their own size."""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitseg_zoo.inference.augmentation import TTA, cost
from vitseg_zoo.inference.files import find_images
from vitseg_zoo.inference.output_files import EACH, are_there, name_folders, name_outputs
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.inference.tables import ALL, write_tables
from vitseg_zoo.inference.videos import is_video
from vitseg_zoo.inference.writer import OutputWriter
from vitseg_zoo.terminal import say
from vitseg_zoo.weights.catalog import DEFAULT_MODEL
from vitseg_zoo.weights.download_errors import without_password
from vitseg_zoo.weights.metadata import FITS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg predict`."""
    add = parser.add_argument
    add(
        "images",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="images of any size and format, folders of them, patterns such as 'photos/*.jpg', or videos",
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--checkpoint", type=Path, metavar="CKPT", help="checkpoint of a training, as best.ckpt"
    )
    model.add_argument(
        "--weights",
        default=DEFAULT_MODEL,
        metavar="FILE",
        help="a .safetensors file, or a model of `vitseg list` [%(default)s, which comes with the package]",
    )
    add(
        "--out",
        type=Path,
        default=Path("masks"),
        metavar="DIR",
        help="folder for NAME_mask.png, of several classes a pixel NAME_mask/CLASS.png, NAME_overlay.jpg and "
        "so on, of videos NAME_overlay.mp4 [%(default)s]",
    )
    add(
        "--outputs",
        type=_listed("mask", *EACH, *ALL),
        metavar="WHAT,...",
        help=f"what to make: mask (always), {', '.join([*EACH, *ALL])} [mask,overlay]; of videos an "
        "overlay (always), and a mask of each frame if asked for",
    )
    add("--overwrite", action="store_true", help="predict images again whose mask and overlay exist")
    add(
        "--fit",
        choices=FITS,
        help="squeeze images to the size of the training, resize their shorter side to it, cut them into "
        "tiles, or take them whole; by default as the model was trained",
    )
    add("--tile", type=int, metavar="PIXELS", help="predict in tiles of this side, at the image's own size")
    add(
        "--overlap",
        type=float,
        default=0.25,
        metavar="PART",
        help="of a tile that its neighbor covers, too [%(default)s]",
    )
    add(
        "--tta",
        type=_listed(*TTA),
        default=[],
        metavar="WHAT,...",
        help="average over mirrored copies (flips), resized ones (scales) or both: slower, a little better",
    )
    add("--batch-size", type=int, metavar="N", help="images of one size, or tiles, at once [CPU 1, GPU 8]")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps [the fastest that there is]")


def _listed(*known: str) -> Any:
    def parse(text: str) -> list[str]:
        values = [value.strip() for value in text.split(",") if value.strip()]
        if unknown := [value for value in values if value not in known]:
            raise argparse.ArgumentTypeError(f"should be of {', '.join(known)}, got {', '.join(unknown)}")
        return values

    return parse


def run(args: argparse.Namespace) -> int:
    """Write what is asked for of each image; one that cannot be read or written stops no other."""
    images = find_images(args.images, without=args.out)
    outputs = args.outputs or ["mask", "overlay"]
    targets = name_outputs(images, args.out, outputs, frames="mask" in (args.outputs or ()))
    if any(map(is_video, images)):
        import av  # noqa: F401  to say now that it is missing
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {args.checkpoint}.")
    predictor = Predictor(
        args.checkpoint or args.weights,
        args.device,
        fit=args.fit,
        tile=args.tile,
        overlap=args.overlap,
        batch_size=args.batch_size,
        tta=args.tta,
    )
    names, palette = predictor.class_names, predictor.palette
    if len(names) > 255:
        raise ValueError(f"a mask holds 255 classes, but the model has {len(names)}.")
    if predictor.multilabel:
        name_folders(targets, outputs)
    files = [path for path, made in targets.items() if args.overwrite or not are_there(made, predictor)]
    if len(files) < len(targets):
        done = len(targets) - len(files)
        what = " and ".join(name for name in outputs if name not in ALL) or "mask"
        say(f"{done} of {len(targets)} images have their {what}: --overwrite makes them anew.")
        if not files and not set(outputs) & {*ALL}:
            return 0
    about = without_password(str(args.checkpoint or args.weights))
    say(f"{about} knows {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, color in zip(names, palette, strict=True):
        alike.setdefault(tuple(color), []).append(name)
    for same in alike.values():
        if len(same) > 1:  # as two of ADE20K's own are
            say(f"{' and '.join(same)} have the same color: only the numbers in the masks tell them apart")
    say(f"{predictor.describe()} (--fit)")
    if args.tta:
        say(f"each image takes {cost(args.tta):g} times as long (--tta {','.join(args.tta)})")

    writer = OutputWriter(predictor, targets, about)
    args.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # the limit of `data.images` holds: photographs have up to 200 million
    errors = {}
    for path, shares in writer.predict(files):
        if isinstance(shares, ValueError):
            errors[path] = shares
            continue
        largest = [
            f"{names[index]} {shares[index]:.1%}" for index in np.argsort(-shares)[:5] if shares[index]
        ]
        say(f"{next(iter(targets[path].values()))}: {', '.join(largest)}")
    masks = {path: made["mask"] for path, made in targets.items() if path not in errors and "mask" in made}
    asked = [what for what in outputs if what in ALL]
    if asked:
        named = {path: images[path] for path in masks}
        write_tables(args.out, asked, named, masks, names, writer.skip, predictor.multilabel)
        say(f"{args.out}: {', '.join(ALL[what] for what in asked)} of {len(masks)} images")
    for error in errors.values():
        say(f"vitseg predict: {error}", file=sys.stderr)
    return 1 if errors else 0
