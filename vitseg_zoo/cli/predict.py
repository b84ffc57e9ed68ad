"""`vitseg predict PATH...`: masks and overlays of photographs, at their own size."""

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.data.images import to_picture
from vitseg_zoo.files import atomic_path
from vitseg_zoo.inference.files import class_shares, find_images, predict_files
from vitseg_zoo.inference.predictor import Predictor, palette_image
from vitseg_zoo.palette import distinct_colors
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
        help="photographs of any size and format, folders of them, or patterns such as 'photos/*.jpg'",
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
        help="folder for NAME_mask.png and NAME_overlay.jpg [%(default)s]",
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


def run(args: argparse.Namespace) -> int:
    """Write a mask and an overlay for each image; one that cannot be read or written stops no other."""
    targets = name_outputs(find_images(args.images, without=args.out), args.out)
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {args.checkpoint}.")
    files = [path for path, made in targets.items() if args.overwrite or not all(map(os.path.isfile, made))]
    if len(files) < len(targets):
        done = len(targets) - len(files)
        say(f"{done} of {len(targets)} images have their mask and overlay: --overwrite makes them anew.")
        if not files:
            return 0
    predictor = Predictor(args.checkpoint or args.weights, fit=args.fit, tile=args.tile, overlap=args.overlap)
    metadata = predictor.metadata
    names = metadata.get("class_names") or [f"class {index}" for index in range(predictor.classes or 1)]
    palette = metadata.get("palette") or distinct_colors(len(names))
    if len(names) == 1:  # 0 is its absence
        names, palette = ["background", *names], [(0, 0, 0), *palette]
    if len(names) > 256:
        raise ValueError(f"a palette PNG holds 256 classes, but the model has {len(names)}.")

    def write(path: Path, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        mask_path, overlay_path = targets[path]
        mask = palette_image(labels, palette)
        _save(mask, mask_path, "PNG")
        photograph = Image.fromarray(to_picture(image))
        overlay = Image.blend(photograph, mask.convert("RGB"), 0.5)
        if "background" in names:  # stays as it is
            overlay.paste(photograph, mask=Image.fromarray(labels == names.index("background")))
        _save(overlay, overlay_path, "JPEG")
        return class_shares(labels, len(names))

    knows = f"{', '.join(names[:10])}{', ...' * (len(names) > 10)}"
    say(f"{without_password(str(args.checkpoint or args.weights))} knows {knows}")
    alike: dict[tuple[int, ...], list[str]] = {}
    for name, color in zip(names, palette, strict=True):
        alike.setdefault(tuple(color), []).append(name)
    for same in alike.values():
        if len(same) > 1:  # as two of ADE20K's own are
            say(f"{' and '.join(same)} have the same color: only the numbers in the masks tell them apart")
    say(f"{predictor.describe()} (--fit)")
    args.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # the limit of `data.images` holds: photographs have up to 200 million
    errors = []
    for path, shares in predict_files(predictor, files, write):
        if isinstance(shares, ValueError):
            errors.append(shares)
            continue
        largest = [
            f"{names[index]} {shares[index]:.1%}" for index in np.argsort(-shares)[:5] if shares[index]
        ]
        say(f"{targets[path][0]}: {', '.join(largest)}")
    for error in errors:
        say(f"vitseg predict: {error}", file=sys.stderr)
    return 1 if errors else 0


def name_outputs(images: Mapping[Path, Path], folder: Path) -> dict[Path, tuple[Path, Path]]:
    """Choose where the mask and the overlay of each image are written.

    Args:
        images: files to predict, and what their results are called after, as `find_images` gives them.
        folder: where to.

    Returns:
        Image -> (mask, overlay).

    Raises:
        ValueError: Two images would be written to the same file, or one over an image.

    Example:
        >>> list(name_outputs({Path("a/cat.jpg"): Path("cat")}, Path("out")).values())[0][0].name
        'cat_mask.png'
    """
    targets = {
        path: (folder / f"{name}_mask.png", folder / f"{name}_overlay.jpg") for path, name in images.items()
    }
    owners: dict[Path, Path] = {}
    inputs = {path.resolve() for path in images}
    for path, outputs in targets.items():
        other = owners.setdefault(outputs[0], path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be written to {outputs[0]}: predict them into two folders."
            )
        for output in outputs:
            if output.resolve() in inputs:
                raise ValueError(f"{output} would overwrite an image of that name: choose another --out.")
    return targets


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    try:
        with atomic_path(path) as partial:
            picture.save(partial, format=kind)
    except OSError as error:  # a JPEG has no more than 65535 pixels a side
        raise ValueError(f"{path} cannot be written: {error}.") from error
