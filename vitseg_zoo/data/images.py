"""The one reader of images and masks, for training as for prediction."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, features

MODES = {1: "L", 3: "RGB"}  # channels of a model -> mode of Pillow

# What files may hold, whatever their names say. Pillow knows more, and runs programs for some: PostScript.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")

# Width times height, known before anything is decoded: 16384 x 16384. A file of 50 kB can ask for gigabytes.
MAX_PIXELS = 2**28


def open_image(path: str | Path) -> Image.Image:
    """Open an image file without decoding it: `PIL.Image.open` for files that may come from strangers.

    Args:
        path: A file in one of `FORMATS`.

    Returns:
        Pillow's image, whose pixels are decoded when they are asked for.

    Raises:
        PIL.UnidentifiedImageError: It has another format.
        ValueError: It has more than `MAX_PIXELS`. From 179 million on Pillow's own limit holds as well, where
            `PIL.Image.MAX_IMAGE_PIXELS` is not changed.
    """
    image = Image.open(path, formats=[name for name in FORMATS if name != "AVIF" or features.check("avif")])
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise ValueError(
            f"its {image.width} x {image.height} pixels are more than the {MAX_PIXELS} that are read "
            "at once: cut it into parts"
        )
    return image


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Read a photograph as it is meant to be seen: turned as its EXIF orientation says.

    Args:
        path: file in one of `FORMATS`; transparency is dropped.
        channels: 3 for RGB, 1 for gray.

    Returns:
        (H, W, 3) or (H, W) uint8.

    Raises:
        ValueError: The file does not exist, is no image, is damaged, or has more than 8 bits a channel.
    """
    if not path.is_file():
        raise ValueError(f"there is no image {path}.")
    try:
        with open_image(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would clip them to white
                raise ValueError("it has more than 8 bits a channel: convert it first")
            image = ImageOps.exif_transpose(file).convert(MODES[channels])
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that is read ({', '.join(FORMATS)}).") from None
    except MemoryError:
        raise ValueError(f"{path} needs more memory than there is: make it smaller.") from None
    except Exception as error:  # the decoders of Pillow raise many kinds on damaged files
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    return np.asarray(image)


def read_pixels(path: Path, what: str = "an image") -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels of an image or mask as they are stored, turned as its EXIF orientation says.

    Args:
        path: File in one of `FORMATS`, or an array of NumPy (.npy).
        what: What messages call it.

    Returns:
        (H, W) or (H, W, C) as stored, and the palette (256, 3) uint8 if the pixels are numbers of one.

    Raises:
        ValueError: The file does not exist, is of no such format, or is damaged.
    """
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        if path.suffix.lower() == ".npy":
            return _read_array(path), None
        with open_image(path) as file:
            image = ImageOps.exif_transpose(file)
            palette = None
            if image.mode == "P":
                colors = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
                palette = np.zeros((256, 3), np.uint8)
                palette[: len(colors)] = colors
            elif image.mode in ("PA", "CMYK", "YCbCr", "LAB", "HSV"):
                image = image.convert("RGB")
            pixels = np.asarray(image)
            return pixels.astype(pixels.dtype.newbyteorder("="), copy=False), palette
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that is read ({', '.join(FORMATS)}).") from None
    except Exception as error:  # the decoders of Pillow raise many kinds on damaged files
        raise ValueError(f"{path} cannot be read as {what}: {error}.") from error


def _read_array(path: Path) -> np.ndarray:
    # Mapped first: the file's header may claim any size, and only what is there can be mapped.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"an array {array.shape} of {array.dtype}, and not (H, W) or (H, W, C) numbers")
    return np.array(array)
