"""The one reader of photographs, for training as for prediction."""

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
