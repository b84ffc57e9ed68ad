"""TIFF files: what one says of itself, and any number of bands by rasterio (extra `geo`)."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, TiffImagePlugin

_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")  # the first bytes of TIFF and of BigTIFF

Tags = TiffImagePlugin.ImageFileDirectory_v2


def read_tags(file: BinaryIO) -> Tags | None:
    """Read the tags of a TIFF; None of another file."""
    header = file.read(8)
    if not header.startswith(_TIFF):
        file.seek(0)
        return None
    if b"+" in header[2:4]:  # BigTIFF
        header += file.read(8)
    tags = Tags(header)
    file.seek(tags.next)
    tags.load(file)
    file.seek(0)
    return tags


def has_windows(tags: Tags) -> bool:
    """Say whether rasterio reads of a TIFF what `read_pixels` gives, number for number."""
    if tags.get(ExifTags.Base.Orientation, 1) != 1:
        return False
    if is_beyond_pillow(tags):
        return True
    kinds = {
        (bits, kind)
        for bits in tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        for kind in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
    }
    return (
        (tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION), tags.get(TiffImagePlugin.COMPRESSION) == 7)
        in {(1, False), (2, False), (2, True), (6, True)}  # black is 0, RGB, and JPEG's YCbCr
        and len(kinds) == 1
        and kinds <= {(8, 1), (16, 1), (32, 3)}  # whole numbers, and floats
        and 1 not in tags.get(TiffImagePlugin.EXTRASAMPLES, ())  # colors times transparency
    )


def is_beyond_pillow(tags: Tags) -> bool:
    """Say whether Pillow would drop bands of a TIFF, or bits of several bands."""
    bands = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1)
    is_alpha = bool(set(tags.get(TiffImagePlugin.EXTRASAMPLES, ())) & {1, 2})
    deepest = max(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)))
    if bands == 1:
        return deepest > 32
    return deepest > 8 or bands > 4 or (bands == 2 and not is_alpha)


@contextmanager
def open_raster(path: str | Path) -> Iterator[Any]:
    """Open a TIFF of any bands by rasterio (extra `geo`), to read all of it or a window.

    Only TIFF is opened, whatever the name says, and no file beside it is read or written.

    Yields:
        A `rasterio.DatasetReader`; its `read` gives (bands, height, width).

    Raises:
        ModuleNotFoundError: If rasterio is missing.
        rasterio.errors.RasterioIOError: If it is no TIFF or damaged.
    """
    import rasterio
    from rasterio.errors import NotGeoreferencedWarning

    with (
        warnings.catch_warnings(),
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.open(Path(path).absolute(), driver="GTiff") as raster:
            yield raster


def channels_last(pixels: np.ndarray) -> np.ndarray:
    """Make (H, W, C) of (C, H, W), or (H, W) of one channel."""
    return np.ascontiguousarray(pixels[0] if len(pixels) == 1 else np.moveaxis(pixels, 0, -1))
