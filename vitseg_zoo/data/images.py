"""The one reader of images and masks, for training as for prediction.

Whole numbers keep their type in memory, and are divided by the largest of it where a model sees them, as by
`torchvision.transforms.v2.ToDtype(scale=True)`; so they lie in [0, 1]. Floats are taken as they are.
"""

from functools import cache
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps, features

from vitseg_zoo.data.tiff import channels_last, has_windows, is_beyond_pillow, open_raster, read_tags

# What files may hold, whatever their names say. Pillow knows more, and runs programs for some: PostScript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# Width times height, known before anything is decoded: 16384 x 16384. A file of 50 kB can ask for gigabytes.
MAX_PIXELS = 2**28

_PART = 2**20  # bytes
_MAX_BYTES = 2**31  # of a raster of many bands
MAX_CHANNELS = 64  # an array whose last side is longer than this, and whose first is not, is (C, H, W)


def open_image(path: str | Path | BinaryIO) -> Image.Image:
    """Open an image file without decoding it: `PIL.Image.open` for files that may come from strangers.

    Args:
        path: A file in one of `FORMATS`, or the opened file.

    Returns:
        Pillow's image, whose pixels are decoded when they are asked for.

    Raises:
        PIL.UnidentifiedImageError: It has another format.
        ValueError: It has more than `MAX_PIXELS`. From 179 million on Pillow's own limit holds as well, where
            `PIL.Image.MAX_IMAGE_PIXELS` is not changed.
    """
    image = Image.open(path, formats=_formats())
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(_too_many(image.width, image.height))
    return image


@cache
def _formats() -> tuple[str, ...]:
    return tuple(name for name in FORMATS if name != "AVIF" or features.check("avif"))


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Read an image as it is meant to be seen: turned as its EXIF orientation says.

    Args:
        path: File in one of `FORMATS`, or an array of NumPy (.npy), (H, W), (H, W, C) or (C, H, W). TIFFs of
            other than 1, 3 or 4 bands, or of several with more than 8 bits, need rasterio (extra `geo`).
        channels: How many are wanted. Gray becomes RGB and RGB gray where it has to, and a fourth channel
            that is not wanted, as transparency, is dropped.

    Returns:
        (H, W, channels), or (H, W) of 1 channel: uint8, uint16, or float32 as stored; other types become
        float32, and what is not finite 0.

    Raises:
        ValueError: The file does not exist, is no image, is damaged, or has other channels.
        ModuleNotFoundError: It needs rasterio, which is missing.
    """
    if not path.is_file():
        raise ValueError(f"there is no image {path}.")
    pixels, palette = read_pixels(path)
    try:
        return as_image(pixels if palette is None else palette[pixels], channels)
    except ValueError as error:
        raise ValueError(f"{path} {error}.") from None


def as_image(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Bring pixels as they are stored to the type and the channels that a model takes: see `read_image`.

    Raises:
        ValueError: They have other channels; what the message says follows the name of a file.
    """
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    elif pixels.dtype not in (np.uint8, np.uint16):
        pixels = np.nan_to_num(pixels.astype(np.float32, copy=False), nan=0.0, posinf=0.0, neginf=0.0)
    stored = 1 if pixels.ndim == 2 else pixels.shape[2]
    if channels in (1, 3) and stored in (2, 4):  # the last is transparency, or what lies beyond red
        pixels, stored = pixels[..., : stored - 1], stored - 1
    if stored == 3 and channels == 1:
        weights = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's "L"
        gray = pixels @ weights
        return (gray.round() if pixels.dtype.kind == "u" else gray).astype(pixels.dtype)
    if stored == 1:
        pixels = pixels.reshape(pixels.shape[:2])
        if channels == 3:
            return np.repeat(pixels[..., None], 3, 2)
    if stored != channels:
        raise ValueError(
            f"has {stored} channel{'s' * (stored > 1)}, where {channels} {'are' if channels > 1 else 'is'} "
            "wanted: take its channels apart, or a data set and a model of as many"
        )
    return pixels


def to_unit(pixels: np.ndarray) -> np.ndarray:
    """Make float32 of an image: whole numbers are divided by the largest of their type.

    Example:
        >>> to_unit(np.array([[65535, 0]], np.uint16)), to_unit(np.array([[7.5]], np.float32))
        (array([[1., 0.]], dtype=float32), array([[7.5]], dtype=float32))
    """
    if pixels.dtype.kind not in "ui":
        return pixels.astype(np.float32, copy=False)
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def is_photograph(pixels: np.ndarray) -> bool:
    """Say whether an image is 8-bit RGB, as color jitter and the mean of ImageNet expect it."""
    return pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3


def to_picture(pixels: np.ndarray) -> np.ndarray:
    """Make 8-bit RGB to look at of any image: its first three channels, stretched if they have not 8 bits.

    Args:
        pixels: (H, W) or (H, W, C) numbers.

    Returns:
        (H, W, 3) uint8.
    """
    if pixels.ndim == 3:
        pixels = pixels[..., :3] if pixels.shape[2] >= 3 else pixels[..., 0]
    if pixels.dtype != np.uint8:
        wide = np.nan_to_num(pixels.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
        low, high = np.percentile(wide, (1, 99)).tolist()
        pixels = ((wide - low) * (255 / max(high - low, 1e-12))).clip(0, 255).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, 2)


def read_window(path: Path, window: tuple[int, int, int, int]) -> np.ndarray | None:
    """Read a part of an image or mask as it is stored, without decoding the rest, if its format allows that.

    Args:
        path: A TIFF, by rasterio (extra `geo`).
        window: Top, left, height and width in pixels, within the image.

    Returns:
        What `read_pixels` gives of that part; None for other files, for TIFFs with a palette, in other
        orders of their rows or other kinds of color than RGB, and where rasterio is missing.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        with open(path, "rb") as file:
            tags = read_tags(file)
        if tags is None or not has_windows(tags):
            return None
        top, left, height, width = window
        with open_raster(path) as raster:
            return channels_last(raster.read(window=((top, top + height), (left, left + width))))
    except ModuleNotFoundError:
        return None
    except Exception as error:  # GDAL's
        raise ValueError(f"{path} cannot be read: {error}.") from error


def read_size(path: Path) -> tuple[int, int]:
    """Read the (height, width) of an image, turned as its EXIF orientation says, without its pixels.

    Raises:
        ValueError: The file does not exist, is of no known format, or is damaged.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _read_array(path).shape[:2]
        with open(path, "rb") as file:
            tags = read_tags(file)
            if tags is not None and is_beyond_pillow(tags):
                with open_raster(path) as raster:
                    turned = tags.get(ExifTags.Base.Orientation, 1) > 4
                    return (raster.width, raster.height) if turned else (raster.height, raster.width)
            image = open_image(file)
            is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) > 4
            return (image.width, image.height) if is_turned else (image.height, image.width)
    except Exception as error:  # the decoders of Pillow raise many kinds on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error


def read_pixels(path: Path, what: str = "an image") -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels of an image or mask as they are stored, turned as its EXIF orientation says.

    Args:
        path: As for `read_image`.
        what: What messages call it.

    Returns:
        (H, W) or (H, W, C) as stored, and the palette (256, 3) uint8 if the pixels are numbers of one.

    Raises:
        ValueError: The file does not exist, is of no such format, or is damaged.
        ModuleNotFoundError: It needs rasterio, which is missing.
    """
    try:
        if path.suffix.lower() == ".npy":
            return _read_array(path), None
        with open(path, "rb") as file:
            tags = read_tags(file)
            if tags is not None and is_beyond_pillow(tags):
                return _turn(_read_raster(path), tags.get(ExifTags.Base.Orientation, 1)), None
            image = open_image(file)
            if (pixels := _read_jpeg(image, file)) is not None:
                return pixels, None
            if image.format == "PNG" and image.mode in ("RGB", "RGBA") and _png_depth(image) == 16:
                return _read_deep_png(path), None
            return _read_pillow(image)
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that is read ({', '.join(FORMATS)}).") from None
    except MemoryError:
        raise ValueError(f"{path} needs more memory than there is: make it smaller.") from None
    except ModuleNotFoundError:  # rasterio
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise ValueError(f"there is no file {path}.") from None
    except Exception as error:  # the decoders of Pillow raise many kinds on damaged files
        raise ValueError(f"{path} cannot be read as {what}: {error}.") from error


def _read_jpeg(image: Image.Image, file: BinaryIO) -> np.ndarray | None:
    """Decode a JPEG as Pillow does, bit for bit, in half of its time; None for what only Pillow decodes."""
    if image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    try:
        import simplejpeg
    except ModuleNotFoundError:  # it comes with the extra `train`
        return None
    file.seek(0)
    content = file.read()
    file.seek(0)
    try:
        if simplejpeg.decode_jpeg_header(content)[:2] != (image.height, image.width):
            return None
        pixels = simplejpeg.decode_jpeg(content, "GRAY" if image.mode == "L" else "RGB")
    except ValueError:  # damaged, perhaps only a little: Pillow says how, or reads it
        return None
    pixels = pixels[..., 0] if image.mode == "L" else pixels
    return _turn(pixels, image.getexif().get(ExifTags.Base.Orientation, 1))


def _turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W) or (H, W, C) as `PIL.ImageOps.exif_transpose` does for this orientation of EXIF."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _read_pillow(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    is_deep_png = image.format in ("PNG", "PPM") and image.mode == "I"  # 16 bits in older Pillow
    ImageOps.exif_transpose(image, in_place=True)
    palette = None
    if image.mode == "P":
        colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(colors)] = colors
    elif image.mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV"):
        image = image.convert("RGB")
    elif image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    pixels = _to_array(image)
    if is_deep_png:
        return pixels.astype(np.uint16), palette
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), palette


def _to_array(image: Image.Image) -> np.ndarray:
    """Copy an image's pixels in strips: of a large one `np.asarray` would hold two more copies meanwhile."""
    first, rows = np.asarray(image.crop((0, 0, image.width, 1))), max(1, _PART // (4 * image.width))
    pixels = np.empty((image.height, *first.shape[1:]), first.dtype)
    for top in range(0, image.height, rows):
        pixels[top : top + rows] = image.crop((0, top, image.width, min(top + rows, image.height)))
    return pixels


def _png_depth(image: Image.Image) -> int:
    tiles = image.tile  # type: ignore[attr-defined]  # of files
    return 16 if any(str(tile[3]).endswith(";16B") for tile in tiles) else 8


def _read_deep_png(path: Path) -> np.ndarray:
    """Read a color PNG of 16 bits, of which Pillow keeps 8."""
    pixels = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ValueError("damaged")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA)


def _read_raster(path: Path) -> np.ndarray:
    with open_raster(path) as raster:
        size = raster.width * raster.height
        if size > MAX_PIXELS or size * raster.count * np.dtype(raster.dtypes[0]).itemsize > _MAX_BYTES:
            raise ValueError(_too_many(raster.width, raster.height))
        return channels_last(raster.read())


def _too_many(width: int, height: int) -> str:
    return (
        f"its {width} x {height} pixels are more than the {MAX_PIXELS} that are read at once: "
        "cut it into parts"
    )


def _read_array(path: Path) -> np.ndarray:
    # Mapped first: the file's header may claim any size, and only what is there can be mapped.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"an array {array.shape} of {array.dtype}, and not (H, W) or (H, W, C) numbers")
    if array.ndim == 3 and array.shape[2] > MAX_CHANNELS >= array.shape[0]:
        array = np.moveaxis(array, 0, -1)
    return np.array(array.astype(array.dtype.newbyteorder("="), copy=False), order="C")
