"""`vitseg predict IMAGE...`: masks and overlays of photographs, at their own size."""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitseg_zoo.data.images import MODES, read_image
from vitseg_zoo.inference.predictor import palette_image, predict_image
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.terminal import say
from vitseg_zoo.weights.catalog import DEFAULT_MODEL
from vitseg_zoo.weights.loading import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `vitseg predict`."""
    add = parser.add_argument
    add("images", nargs="+", type=Path, metavar="IMAGE", help="photographs of any size and format")
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


def run(args: argparse.Namespace) -> int:
    """Writes a mask and an overlay for each image; one that cannot be read or written stops no other."""
    targets = name_outputs(args.images, args.out)
    if args.checkpoint is not None and not args.checkpoint.is_file():
        raise FileNotFoundError(f"there is no checkpoint {args.checkpoint}.")
    model, metadata = load_model(args.checkpoint or args.weights)
    classes, channels = metadata["arguments"]["classes"], metadata["arguments"].get("in_channels", 3)
    if channels not in MODES:
        raise ValueError(f"the model takes {channels} channels, but photographs have 3 or 1.")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    names = metadata.get("class_names") or [f"class {index}" for index in range(classes)]
    palette = metadata.get("palette") or distinct_colors(len(names))
    if len(names) == 1:  # 0 is its absence
        names, palette = ["background", *names], [(0, 0, 0), *palette]
    if len(names) > 256:
        raise ValueError(f"a palette PNG holds 256 classes, but the model has {len(names)}.")

    say(f"{args.checkpoint or args.weights} knows {', '.join(names[:10])}{', ...' * (len(names) > 10)}")
    args.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # the limit of `data.images` holds: photographs have up to 200 million
    failed = 0
    for path, (mask_path, overlay_path) in targets.items():
        try:
            image = read_image(path, channels)
            labels = predict_image(model, image, metadata)
            mask = palette_image(labels, palette)
            _save(mask, mask_path, "PNG")
            photograph = Image.fromarray(image).convert("RGB")
            overlay = Image.blend(photograph, mask.convert("RGB"), 0.5)
            if "background" in names:  # stays as it is
                overlay.paste(photograph, mask=Image.fromarray(labels == names.index("background")))
            _save(overlay, overlay_path, "JPEG")
        except ValueError as error:
            say(f"vitseg predict: {error}", file=sys.stderr)
            failed += 1
            continue
        shares = np.bincount(labels.ravel(), minlength=len(names)) / labels.size
        largest = [
            f"{names[index]} {shares[index]:.1%}" for index in np.argsort(-shares)[:5] if shares[index]
        ]
        say(f"{mask_path}: {', '.join(largest)}")
    return 1 if failed else 0


def name_outputs(images: Sequence[Path], folder: Path) -> dict[Path, tuple[Path, Path]]:
    """Chooses where the mask and the overlay of each image are written.

    Args:
        images: files to predict.
        folder: where to.

    Returns:
        Image -> (mask, overlay).

    Raises:
        ValueError: Two images would be written to the same file, or one over an image.

    Example:
        >>> list(name_outputs([Path("a/cat.jpg")], Path("out")).values())[0][0].name
        'cat_mask.png'
    """
    targets = {
        path: (folder / f"{path.stem}_mask.png", folder / f"{path.stem}_overlay.jpg") for path in images
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
    partial = path.with_name(path.name + ".partial")
    try:
        picture.save(partial, format=kind)
        os.replace(partial, path)
    except OSError as error:  # a JPEG has no more than 65535 pixels a side
        with contextlib.suppress(OSError):  # too long a name cannot even be removed
            partial.unlink()
        raise ValueError(f"{path} cannot be written: {error}.") from error
