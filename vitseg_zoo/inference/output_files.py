"""Where the files of a prediction go, and whether they are there from an earlier run."""

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitseg_zoo.files import file_names
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.inference.rasters import is_georeferenced, open_windows, read_palette
from vitseg_zoo.inference.videos import is_video

# What can be made of each image beside its mask.
EACH = {"overlay": "_overlay.jpg", "geojson": ".geojson"}
_FRAMES = "_masks"  # of a video, a folder


def name_outputs(
    images: Mapping[Path, Path],
    folder: Path,
    outputs: Iterable[str] = ("mask", "overlay"),
    frames: bool = False,
) -> dict[Path, dict[str, Path]]:
    """Choose where the mask of each image and what else is asked for are written.

    Args:
        images: files to predict, and what their results are called after, as `find_images` gives them.
        folder: where to.
        outputs: what to write beside the mask.
        frames: of a video, write the mask of each frame beside the overlay.

    Returns:
        Image -> output -> file. The mask of a georeferenced image is a TIFF; of a video there is `overlay`,
        and `frames`, a folder.

    Raises:
        ValueError: Two images would be written to the same file, or one over an image.

    Example:
        >>> name_outputs({Path("a/cat.jpg"): Path("cat")}, Path("out"))[Path("a/cat.jpg")]["mask"].name
        'cat_mask.png'
    """
    targets = {}
    for path, name in images.items():
        if is_video(path):
            made = {"overlay": folder / f"{name}_overlay.mp4"}
            targets[path] = made | ({"frames": folder / f"{name}{_FRAMES}"} if frames else {})
        else:
            made = {"mask": folder / f"{name}_mask.{'tif' if is_georeferenced(path) else 'png'}"}
            targets[path] = made | {what: folder / f"{name}{EACH[what]}" for what in outputs if what in EACH}
    owners: dict[Path, Path] = {}
    inputs = {path.resolve() for path in images}
    for path, made in targets.items():
        first = next(iter(made.values()))
        other = owners.setdefault(first.with_suffix(""), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} would both be written to {first}: predict them into two folders."
            )
        for output in made.values():
            if output.resolve() in inputs:
                raise ValueError(f"{output} would overwrite an image of that name: choose another --out.")
    return targets


def name_folders(targets: Mapping[Path, dict[str, Path]], outputs: Sequence[str]) -> None:
    """Write masks of several classes a pixel into a folder an image, a PNG a class; GeoTIFFs have bands.

    Raises:
        ValueError: If an output cannot have several classes a pixel.
    """
    if "geojson" in outputs:
        raise ValueError("geojson is made of one class a pixel, but the model is multi-label: leave it out.")
    for made in targets.values():
        if "mask" in made and made["mask"].suffix == ".png":  # a video has none
            made["mask"] = made["mask"].with_suffix("")


def are_there(made: Mapping[str, Path], predictor: Predictor) -> bool:
    """Say whether all outputs of an image are there from an earlier run.

    Raises:
        ValueError: If its mask is that of a model with other classes, where that shows.
    """
    there = {}
    for what, path in made.items():
        is_folder = what == "frames" or (what == "mask" and path.suffix not in (".png", ".tif"))
        there[what] = os.path.isdir(path) if is_folder else os.path.isfile(path)
    if there.get("mask") and not _is_of(made["mask"], predictor):
        raise ValueError(
            f"{made['mask']} is the mask of a model with other classes: choose another --out, or --overwrite."
        )
    return all(there.values())


def _is_of(mask: Path, predictor: Predictor) -> bool:
    """Say whether a mask that is there is of a model with these classes, by their names or their colors."""
    colors: Any = None
    if mask.suffix == ".tif":
        with open_windows(mask) as raster:
            if predictor.multilabel:
                return raster.descriptions == tuple(predictor.class_names)
            if raster.count > 1:
                return False
            colors = read_palette(raster)
    elif mask.suffix == ".png":
        with suppress(OSError), Image.open(mask, formats=["PNG"]) as picture:  # or it is somebody's own file
            colors = picture.getpalette()
    else:
        found = {file.stem for file in mask.glob("*.png") if not file.name.startswith(".")}
        return found == {*file_names(predictor.class_names)}
    if colors is None:
        return True
    shown, expected = np.ravel(colors), np.ravel(predictor.palette)
    length = min(len(shown), len(expected))  # a PNG leaves out colors at the end
    return np.array_equal(shown[:length], expected[:length])
