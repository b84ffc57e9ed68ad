"""The one reader of images and masks, for training as for prediction."""

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}  # channels of a model -> mode of Pillow


def read_image(path: Path, channels: int = 3) -> np.ndarray:
    """Reads a photograph as it is meant to be seen: turned as its EXIF orientation says.

    Args:
        path: file of any format that Pillow reads; transparency is dropped.
        channels: 3 for RGB, 1 for gray.

    Returns:
        (H, W, 3) or (H, W) uint8.

    Raises:
        ValueError: The file does not exist, is no image, is damaged, or has more than 8 bits a channel.
    """
    if not path.is_file():
        raise ValueError(f"there is no image {path}.")
    try:
        with Image.open(path) as file:
            if file.mode.startswith(("I", "F")):  # Pillow would clip them to white
                raise ValueError("it has more than 8 bits a channel: convert it first")
            image = ImageOps.exif_transpose(file).convert(MODES[channels])
    except Image.UnidentifiedImageError:
        raise ValueError(f"{path} is not an image in a format that Pillow knows.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as an image: {error}.") from error
    return np.asarray(image)


def read_pixels(path: Path, what: str = "an image") -> tuple[np.ndarray, np.ndarray | None]:
    """Read the pixels of an image or mask as they are stored, turned as its EXIF orientation says.

    Args:
        path: File of any format that Pillow reads, or an array of NumPy (.npy).
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
        with Image.open(path) as file:
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
        raise ValueError(f"{path} is not an image in a format that Pillow knows.") from None
    except Exception as error:  # the decoders of Pillow raise many kinds on damaged files
        raise ValueError(f"{path} cannot be read as {what}: {error}.") from error


def _read_array(path: Path) -> np.ndarray:
    # Mapped first: the file's header may claim any size, and only what is there can be mapped.
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim not in (2, 3) or array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"an array {array.shape} of {array.dtype}, and not (H, W) or (H, W, C) numbers")
    return np.array(array)
