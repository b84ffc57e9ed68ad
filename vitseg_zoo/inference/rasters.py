"""Images larger than memory, and images with a georeference: read and written by window (extra `geo`).

What comes out is a cloud-optimized GeoTIFF with the image's georeference, overviews and its places without
data, or a PNG. While it is made it is a plain TIFF beside it, of which a run that was interrupted keeps the
rows that are done.
"""

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags

from vitseg_zoo.data.images import as_image, read_pixels, to_picture
from vitseg_zoo.data.tiff import channels_last, read_tags
from vitseg_zoo.files import atomic_path
from vitseg_zoo.inference.outputs import OVERLAY_SIDE, Palette, count_classes
from vitseg_zoo.inference.predictor import Predictor

# Label of places without data.
NODATA = 255

# Pixels from which on an image in tiles is read by window: 128 MB of RGB are at most held otherwise.
LARGE = 2**25

# By a file's first bytes; GDAL knows more formats, some of which open other files or the network.
_DRIVERS = {b"II": "GTiff", b"MM": "GTiff", b"\x89P": "PNG", b"\xff\xd8": "JPEG"}
_SAMPLED_ROWS = 64  # of an overlay that are read at once
_CACHE_MB = 64  # of GDAL, for the whole process; its own choice is a twentieth of the machine's memory


@contextmanager
def open_windows(path: str | Path) -> Iterator[Any]:
    """Open an image to read windows of it: a TIFF, PNG or JPEG, whatever its name says.

    Yields:
        A `rasterio.DatasetReader`.

    Raises:
        ModuleNotFoundError: If rasterio is missing.
        ValueError: If it is none of these, or damaged.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError

    options = dict(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO", GDAL_CACHEMAX=_CACHE_MB)
    with warnings.catch_warnings(), rasterio.Env(**options):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        try:
            with open(path, "rb") as file:
                driver = _DRIVERS.get(file.read(2))
            if driver is None:
                raise ValueError(f"{path} is no TIFF, PNG or JPEG.")
            with rasterio.open(Path(path).absolute(), driver=driver) as raster:
                yield raster
        except (OSError, RasterioIOError) as error:
            raise ValueError(f"{path} cannot be read as an image: {error}.") from error


def is_georeferenced(path: Path) -> bool:
    """Say whether a file is a TIFF that knows where on Earth it lies; False without rasterio."""
    if path.suffix.lower() not in (".tif", ".tiff"):
        return False
    try:
        with open_windows(path) as raster:
            return raster.driver == "GTiff" and (raster.crs is not None or bool(raster.gcps[0]))
    except (ModuleNotFoundError, ValueError):
        return False


def is_windowed(path: Path, predictor: Predictor) -> bool:
    """Say whether an image is predicted by window: in tiles, and large or with a georeference."""
    if predictor.fit != "tiles":
        return False
    try:
        with open_windows(path) as raster, open(path, "rb") as file:
            tags = read_tags(file)  # of a TIFF, of whose orientation GDAL says nothing
            found = tags.get(ExifTags.Base.Orientation) if tags else raster.tags().get("EXIF_Orientation")
            is_upright = found in (None, 1, "1")
            return is_upright and (raster.width * raster.height > LARGE or raster.crs is not None)
    except (ModuleNotFoundError, ValueError):
        return False


def predict_raster(
    predictor: Predictor, path: Path, out: Path, palette: Palette, about: str = ""
) -> np.ndarray:
    """Predict an image in tiles, from file to file, with memory for one row of tiles.

    Interrupted, the rows that are done stay beside `out`, and the next call goes on from there.

    Args:
        predictor: With `fit="tiles"`, of at most 255 classes.
        path: TIFF, PNG or JPEG of any size.
        out: Where labels go: `.tif`, of a multi-label model with a band a class, or `.png`. It is there when
            all of it is done.
        palette: One RGB color a class.
        about: What the model is called; rows of another one are not taken over.

    Returns:
        (classes,) pixels of each class.

    Raises:
        ValueError: If the image cannot be read.
    """
    import rasterio
    from rasterio.windows import Window

    partial, progress = (out.with_name(f".{out.stem}.partial{end}") for end in (".tif", ".json"))
    with open_windows(path) as source:
        height, width = source.height, source.width
        colors = read_palette(source)
        has_gaps = not all("all_valid" in [flag.name for flag in flags] for flags in source.mask_flag_enums)

        def read(top: int, bottom: int) -> np.ndarray:
            pixels = np.moveaxis(source.read(window=Window(0, top, width, bottom - top)), 0, -1)
            if colors is not None:
                pixels = colors[pixels[..., 0]]
            return as_image(pixels, predictor.channels)

        stat = path.stat()
        task = [str(path.name), stat.st_size, stat.st_mtime_ns, about, predictor.describe(), *predictor.tta]
        row, counts = 0, np.zeros(len(palette), np.int64)
        with suppress(OSError, ValueError, KeyError):
            state = json.loads(progress.read_text())
            if state["task"] == task and partial.is_file():
                row, counts = int(state["rows"]), np.array(state["counts"], np.int64)
        if not row:
            out.parent.mkdir(parents=True, exist_ok=True)
            _create(partial, source, palette, predictor.class_names if predictor.multilabel else None)
        for labels in predictor.label_rows(read, (height, width), row):
            window = Window(0, row, width, len(labels))
            bands = _bands(labels, source.dataset_mask(window=window) == 0 if has_gaps else None)
            with rasterio.open(partial, "r+") as target:  # closed again: what is in it then stays
                target.write(bands, window=window)
            row += len(labels)
            counts += count_classes(labels, len(palette))
            with atomic_path(progress) as file:
                file.write_text(json.dumps({"task": task, "rows": row, "counts": counts.tolist()}))
        _finish(partial, out)
    progress.unlink(missing_ok=True)
    return counts


def write_raster(labels: np.ndarray, path: Path, out: Path, palette: Palette, names: Sequence[str]) -> None:
    """Write labels of a whole image as a GeoTIFF with the image's georeference; `labels` get its `NODATA`.

    Args:
        labels: (H, W) uint8, or (H, W, classes) bool, which become a band of 0 and 1 a class.
        path: The image.
        out: `.tif`.
        palette: One RGB color a class.
        names: One a class, which describe those bands.
    """
    import rasterio

    partial = out.with_name(f".{out.stem}.partial.tif")
    out.parent.mkdir(parents=True, exist_ok=True)
    with open_windows(path) as source:
        bands = _bands(labels, source.dataset_mask() == 0)
        _create(partial, source, palette, names if labels.ndim == 3 else None)
        with rasterio.open(partial, "r+") as target:
            target.write(bands)
        _finish(partial, out)


def _bands(labels: np.ndarray, gaps: np.ndarray | None) -> np.ndarray:
    """Make (bands, H, W) uint8 of labels, with `NODATA` in gaps; there, `labels` get it or no class."""
    if labels.ndim == 2:
        bands = labels[None]
    else:
        if gaps is not None:
            labels[gaps] = False
        bands = np.moveaxis(labels, 2, 0).astype(np.uint8)
    if gaps is not None:
        bands[:, gaps] = NODATA
    return bands


def _create(partial: Path, source: Any, palette: Palette, names: Sequence[str] | None) -> None:
    """Make an empty mask in the place of a raster: one band with a palette, or a band for each of `names`."""
    import rasterio

    points, points_crs = source.gcps
    place = dict(gcps=points, crs=points_crs) if points else dict(transform=source.transform, crs=source.crs)
    partial.unlink(missing_ok=True)
    with rasterio.open(
        partial,
        "w",
        driver="GTiff",
        height=source.height,
        width=source.width,
        count=len(names) if names else 1,
        dtype="uint8",
        nodata=NODATA,
        BIGTIFF="IF_SAFER",
        **place,
    ) as target:
        if names:
            target.descriptions = names
            return
        colors = {index: (*color, 255) for index, color in enumerate(palette)}
        target.write_colormap(1, {NODATA: (0, 0, 0, 0)} | colors)


def _finish(partial: Path, out: Path) -> None:
    import rasterio.shutil

    options = dict(driver="PNG")
    if out.suffix == ".tif":
        options = dict(driver="COG", compress="DEFLATE", overview_resampling="nearest", bigtiff="IF_SAFER")
    with atomic_path(out) as whole:
        rasterio.shutil.copy(partial, whole, **options)
    partial.unlink()


def read_palette(source: Any) -> np.ndarray | None:
    """Return the palette (256, 3) of an image whose pixels are numbers of one."""
    if source.count > 1 or source.colorinterp[0].name != "palette":
        return None
    colors = source.colormap(1)
    return np.array([colors.get(index, (0, 0, 0))[:3] for index in range(256)], np.uint8)


def reduced_raster(path: Path, are_labels: bool = False) -> np.ndarray:
    """Read an image no longer than `OVERLAY_SIDE` on any side, from its overviews if it has some.

    Args:
        path: An image or, if `are_labels`, a mask.
        are_labels: Give the numbers as they are.

    Returns:
        (H, W, 3) uint8 to look at, or labels (H, W), of several bands (H, W, bands).
    """
    with open_windows(path) as raster:
        scale = max(max(raster.width, raster.height) / OVERLAY_SIDE, 1)
        size = (max(round(raster.height / scale), 1), max(round(raster.width / scale), 1))
        colors = read_palette(raster)
        count = raster.count if are_labels else 1 if colors is not None else min(raster.count, 3)
        if scale == 1 or raster.overviews(1):
            bands = raster.read(list(range(1, count + 1)), out_shape=(count, *size))
        else:  # GDAL would decode the same tiles for each row again
            bands = _sampled(raster, count, size)
        if are_labels:
            return channels_last(bands)
        return colors[bands[0]] if colors is not None else to_picture(np.moveaxis(bands, 0, -1))


def _sampled(raster: Any, count: int, size: tuple[int, int]) -> np.ndarray:
    """Read every n-th pixel of the first bands, (count, *size), in strips of the whole width."""
    from rasterio.windows import Window

    rows, columns = (
        ((np.arange(part) + 0.5) * (whole / part)).astype(np.int64)
        for part, whole in zip(size, raster.shape, strict=True)
    )
    bands = np.empty((count, *size), raster.dtypes[0])
    for first in range(0, size[0], _SAMPLED_ROWS):
        part = rows[first : first + _SAMPLED_ROWS]
        window = Window(0, part[0], raster.width, part[-1] + 1 - part[0])
        strip = raster.read(list(range(1, count + 1)), window=window)
        bands[:, first : first + len(part)] = strip[:, part - part[0]][:, :, columns]
    return bands


def read_labels(path: Path) -> np.ndarray:
    """Read the labels of a mask that was written, (H, W) uint8, of several bands (H, W, bands)."""
    if path.suffix == ".png":
        with suppress(ValueError):  # of too many pixels
            return read_pixels(path)[0]
    with open_windows(path) as raster:
        return channels_last(raster.read())


def pixel_area(path: Path) -> float | None:
    """Say how many square meters a pixel has, by a projected georeference; None if that is not known."""
    if not is_georeferenced(path):
        return None
    with open_windows(path) as raster:
        if raster.crs is None or not raster.crs.is_projected:
            return None
        return abs(raster.transform.determinant) * raster.crs.linear_units_factor[1] ** 2


def write_geojson(mask: Path, out: Path, names: Sequence[str], skip: int | None = None) -> None:
    """Write the regions of a mask as GeoJSON polygons.

    Args:
        mask: A mask that was written. With a georeference coordinates are longitude and latitude (RFC 7946);
            else they are x and y in pixels, y downwards.
        out: The file.
        names: One a class, the property `class`.
        skip: A class to leave out, as the background.
    """
    import rasterio
    from rasterio.features import shapes
    from rasterio.warp import transform_geom

    with open_windows(mask) as raster, atomic_path(out) as whole, open(whole, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        separator = "\n"
        for geometry, value in shapes(rasterio.band(raster, 1), transform=raster.transform):
            label = int(value)
            if label == skip or label >= len(names):
                continue
            if raster.crs is not None:
                geometry = transform_geom(raster.crs, "EPSG:4326", geometry, precision=7)
            feature = {"type": "Feature", "properties": {"class": names[label]}, "geometry": geometry}
            file.write(separator + json.dumps(feature))
            separator = ",\n"
        file.write("\n]}\n")
