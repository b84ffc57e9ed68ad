"""What is written of each image that is predicted: its mask, an overlay, outlines."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.data.images import to_picture
from vitseg_zoo.files import atomic_folder, atomic_path, file_names
from vitseg_zoo.inference.files import predict_files
from vitseg_zoo.inference.outputs import class_shares, overlay, palette_image, reduced
from vitseg_zoo.inference.predictor import Predictor
from vitseg_zoo.inference.rasters import (
    is_windowed,
    open_windows,
    predict_raster,
    reduced_raster,
    write_geojson,
    write_raster,
)
from vitseg_zoo.inference.videos import is_video, predict_video

Shares = np.ndarray | ValueError  # of each class in an image's pixels, or why it could not be predicted


class OutputWriter:
    """Predicts images and videos, and writes what is asked for of each.

    Args:
        predictor: The model.
        targets: Image -> output -> file, as `name_outputs` gives them.
        about: The model's name, for the metadata of GeoTIFFs.
    """

    def __init__(self, predictor: Predictor, targets: Mapping[Path, Mapping[str, Path]], about: str) -> None:
        self.predictor, self.targets, self.about = predictor, targets, about
        names = predictor.class_names
        self.skip = names.index("background") if "background" in names else None  # of outlines

    def predict(self, paths: Sequence[Path]) -> Iterator[tuple[Path, Shares]]:
        """Write the outputs of each image or video; one that cannot be read or written stops no other."""
        videos = [path for path in paths if is_video(path)]
        windowed = [path for path in paths if path not in videos and self._is_windowed(path)]
        apart = {*windowed, *videos}
        yield from predict_files(self.predictor, [path for path in paths if path not in apart], self._write)
        for path in windowed:
            yield path, self._write_windowed(path)
        for path in videos:
            yield path, self._write_video(path)

    def _is_windowed(self, path: Path) -> bool:
        can_be = not self.predictor.multilabel or self.targets[path]["mask"].suffix == ".tif"
        return can_be and is_windowed(path, self.predictor)

    def _write(self, path: Path, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
        names, palette = self.predictor.class_names, self.predictor.palette
        made = self.targets[path]
        mask = made["mask"]
        try:
            if mask.suffix == ".tif":
                write_raster(labels, path, mask, palette, names)
            elif self.predictor.multilabel:
                with atomic_folder(mask) as folder:
                    for name, layer in zip(file_names(names), np.moveaxis(labels, 2, 0), strict=True):
                        Image.fromarray(layer * np.uint8(255)).save(folder / f"{name}.png")
            else:
                _save(palette_image(labels, palette), mask, "PNG")
            if "overlay" in made:
                picture = overlay(to_picture(reduced(image)), reduced(labels), names, palette)
                _save(picture, made["overlay"], "JPEG")
            if "geojson" in made:
                write_geojson(mask, made["geojson"], names, self.skip)
        except OSError as error:
            raise ValueError(f"{mask} cannot be written: {error}.") from error
        return class_shares(labels, len(names))

    def _write_windowed(self, path: Path) -> Shares:
        names, palette = self.predictor.class_names, self.predictor.palette
        made = self.targets[path]
        try:
            counts = predict_raster(self.predictor, path, made["mask"], palette, self.about)
            if "overlay" in made:
                labels = reduced_raster(made["mask"], are_labels=True)
                if self.predictor.multilabel:
                    labels = np.atleast_3d(labels) == 1
                _save(overlay(reduced_raster(path), labels, names, palette), made["overlay"], "JPEG")
            if "geojson" in made:
                write_geojson(made["mask"], made["geojson"], names, self.skip)
            if self.predictor.multilabel:
                with open_windows(path) as raster:
                    return counts / (raster.width * raster.height)
            return counts / max(counts.sum(), 1)
        except (ValueError, OSError) as error:
            return error if isinstance(error, ValueError) else ValueError(f"{path}: {error}.")

    def _write_video(self, path: Path) -> Shares:
        made = self.targets[path]
        try:
            return predict_video(self.predictor, path, made["overlay"], made.get("frames"))
        except (ValueError, OSError) as error:
            return error if isinstance(error, ValueError) else ValueError(f"{path}: {error}.")


def _save(picture: Image.Image, path: Path, kind: str) -> None:
    try:
        with atomic_path(path) as partial:
            picture.save(partial, format=kind)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error}.") from error
