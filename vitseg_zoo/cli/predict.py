"""`vitseg predict PATH...`: masks and overlays of images and videos, at their own size."""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vitseg_zoo.data.images import to_picture
from vitseg_zoo.files import atomic_folder, atomic_path, file_names
from vitseg_zoo.inference.augmentation import TTA, cost
from vitseg_zoo.inference.files import find_images, predict_files
from vitseg_zoo.inference.output_files import EACH, are_there, name_folders, name_outputs
from vitseg_zoo.inference.outputs import areas, class_shares, count_classes, overlay, palette_image, reduced
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.inference.rasters import (
    is_windowed,
    open_windows,
    pixel_area,
    predict_raster,
    read_labels,
    reduced_raster,
    write_geojson,
    write_raster,
)
from vitseg_zoo.inference.regions import coco_annotations, coco_categories, label_studio_task
from vitseg_zoo.inference.videos import is_video, predict_video
from vitseg_zoo.terminal import say
from vitseg_zoo.weights.catalog import DEFAULT_MODEL
from vitseg_zoo.weights.download_errors import without_password
from vitseg_zoo.weights.metadata import FITS

# What can be made of all images together, beside what is made of EACH.
ALL = {"areas": "areas.csv", "coco": "coco.json", "label-studio": "label_studio.json"}


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

    def write(path: Path, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        made = targets[path]
        mask = made["mask"]
        try:
            if mask.suffix == ".tif":
                write_raster(labels, path, mask, palette, names)
            elif predictor.multilabel:
                with atomic_folder(mask) as folder:
                    for name, layer in zip(file_names(names), np.moveaxis(labels, 2, 0), strict=True):
                        Image.fromarray(layer * np.uint8(255)).save(folder / f"{name}.png")
            else:
                _save(palette_image(labels, palette), mask, "PNG")
            if "overlay" in made:
                picture = overlay(to_picture(reduced(image)), reduced(labels), names, palette)
                _save(picture, made["overlay"], "JPEG")
            if "geojson" in made:
                write_geojson(mask, made["geojson"], names, skip)
        except OSError as error:
            raise ValueError(f"{mask} cannot be written: {error}.") from error
        return class_shares(labels, len(names))

    def write_windowed(path: Path) -> np.ndarray | ValueError:
        made = targets[path]
        try:
            counts = predict_raster(predictor, path, made["mask"], palette, about)
            if "overlay" in made:
                labels = reduced_raster(made["mask"], are_labels=True)
                if predictor.multilabel:
                    labels = np.atleast_3d(labels) == 1
                _save(overlay(reduced_raster(path), labels, names, palette), made["overlay"], "JPEG")
            if "geojson" in made:
                write_geojson(made["mask"], made["geojson"], names, skip)
            if predictor.multilabel:
                with open_windows(path) as raster:
                    return counts / (raster.width * raster.height)
            return counts / max(counts.sum(), 1)
        except (ValueError, OSError) as error:
            return error if isinstance(error, ValueError) else ValueError(f"{path}: {error}.")

    def write_video(path: Path) -> np.ndarray | ValueError:
        made = targets[path]
        try:
            return predict_video(predictor, path, made["overlay"], made.get("frames"))
        except (ValueError, OSError) as error:
            return error if isinstance(error, ValueError) else ValueError(f"{path}: {error}.")

    def results() -> Iterator[tuple[Path, np.ndarray | ValueError]]:
        apart = {*windowed, *videos}
        yield from predict_files(predictor, [path for path in files if path not in apart], write)
        for path in windowed:
            yield path, write_windowed(path)
        for path in videos:
            yield path, write_video(path)

    skip = names.index("background") if "background" in names else None
    videos = [path for path in files if is_video(path)]
    windowed = [
        path
        for path in files
        if path not in videos
        and (not predictor.multilabel or targets[path]["mask"].suffix == ".tif")
        and is_windowed(path, predictor)
    ]
    args.out.mkdir(parents=True, exist_ok=True)
    Image.MAX_IMAGE_PIXELS = None  # the limit of `data.images` holds: photographs have up to 200 million
    errors = {}
    for path, shares in results():
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
        _write_tables(args.out, asked, named, masks, names, skip, predictor.multilabel)
    for error in errors.values():
        say(f"vitseg predict: {error}", file=sys.stderr)
    return 1 if errors else 0


def _write_tables(
    out: Path,
    asked: list[str],
    images: Mapping[Path, Path],
    masks: Mapping[Path, Path],
    names: list[str],
    skip: int | None,
    multilabel: bool,
) -> None:
    """Write the files that hold all images, from the masks: those of earlier runs are in them, too."""
    rows: list[dict] = []
    tasks: list[dict] = []
    pictures: list[dict] = []
    annotations: list[dict] = []
    for number, (path, mask) in enumerate(masks.items(), 1):
        if multilabel and mask.suffix == ".tif":
            labels = np.atleast_3d(read_labels(mask)) == 1
        elif multilabel:
            labels = np.stack([read_labels(mask / f"{name}.png") > 0 for name in file_names(names)], axis=2)
        else:
            labels = read_labels(mask)
        name = images[path].with_name(images[path].name + path.suffix).as_posix()
        if "areas" in asked:
            total = labels.shape[0] * labels.shape[1] if multilabel else None
            rows += areas(name, count_classes(labels, len(names)), names, pixel_area(path), total)
        if "coco" in asked:
            height, width = labels.shape[:2]
            pictures.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations += coco_annotations(labels, number, len(annotations) + 1, skip)
        if "label-studio" in asked:
            tasks.append(label_studio_task(f"/data/local-files/?d={name}", labels, names, skip))
    if "areas" in asked:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (
            atomic_path(out / "areas.csv") as whole,
            open(whole, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        _write_json(out / "areas.json", rows)
    if "coco" in asked:
        categories = coco_categories(names)
        content = {"images": pictures, "annotations": annotations, "categories": categories}
        _write_json(out / ALL["coco"], content)
    if "label-studio" in asked:
        _write_json(out / ALL["label-studio"], tasks)
    say(f"{out}: {', '.join(ALL[what] for what in asked)} of {len(masks)} images")


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as whole:
        whole.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    try:
        with atomic_path(path) as partial:
            picture.save(partial, format=kind)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}.") from error
