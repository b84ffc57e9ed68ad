"""The albumentations pipelines, and the only place that imports albumentations.

albumentations 2.0 is its last MIT release. Everything else in the package sees plain callables
``f(image=..., mask=...) -> {"image": ..., "mask": ...}``, so that a replacement is a change of this file.
"""

import os

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks the network for its newest version on import

import albumentations as A
import cv2


def resize(image_size: int | tuple[int, int], interpolation: int = cv2.INTER_AREA) -> A.Compose:
    """Resize to a fixed size, aspect ratio not kept: images by area, masks by nearest neighbor.

    Args:
        image_size: side of the square, or (height, width), in pixels.
        interpolation: OpenCV's number of another one, as cv2.INTER_LINEAR for what is enlarged.

    Returns:
        Pipeline for uint8 images (H, W, C) and integer masks (H, W).

    Example:
        >>> import numpy as np
        >>> resize(128)(image=np.zeros((200, 300, 3), np.uint8))["image"].shape
        (128, 128, 3)
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return A.Compose(
        [A.Resize(height, width, interpolation=interpolation, mask_interpolation=cv2.INTER_NEAREST)]
    )


def flip() -> A.Compose:
    """Flip every second image horizontally.

    Returns:
        Pipeline for uint8 images (H, W, C) and integer masks (H, W).
    """
    return A.Compose([A.HorizontalFlip(p=0.5)])


def flip_and_jitter() -> A.Compose:
    """Return the augmentation of the ViT-seg article: horizontal flip and color jitter.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W); sizes do not change.

    Example:
        >>> import numpy as np
        >>> out = flip_and_jitter()(image=np.zeros((8, 8, 3), np.uint8), mask=np.zeros((8, 8), np.uint8))
        >>> out["image"].shape, out["mask"].shape
        ((8, 8, 3), (8, 8))
    """
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(
                brightness=(0.7, 1.3), contrast=(0.7, 1.3), saturation=(0.7, 1.3), hue=(-0.05, 0.05), p=1.0
            ),
        ]
    )


def crop_flip_jitter(image_size: int | tuple[int, int]) -> A.Compose:
    """Return a stronger augmentation for few images: a random part at a random scale, flip, jitter.

    The part has 30 to 100 % of the area and a ratio of sides from 3:4 to 4:3, and is resized to the image's
    size, so that a training sees objects up to twice as large.

    Args:
        image_size: side of the square, or (height, width), in pixels, of what comes out.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).

    Example:
        >>> import numpy as np
        >>> augment = crop_flip_jitter(32)
        >>> augment(image=np.zeros((48, 48, 3), np.uint8), mask=np.zeros((48, 48), np.uint8))["mask"].shape
        (32, 32)
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    return A.Compose(
        [
            A.RandomResizedCrop(size, scale=(0.3, 1.0), mask_interpolation=cv2.INTER_NEAREST),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(
                brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.6, 1.4), hue=(-0.05, 0.05), p=0.8
            ),
            A.ToGray(p=0.05),
        ]
    )


def light(image_size: int | tuple[int, int]) -> A.Compose:
    """Return scale from 0.75 to 1.33, a random part, a flip and a little brightness: for many images.

    Args:
        image_size: side of the square, or (height, width), in pixels, of what comes out. Like all presets,
            this one keeps the ratio of sides: it cuts a part out, and mirrors the border of small images.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).

    Example:
        >>> import numpy as np
        >>> out = light((32, 64))(image=np.zeros((48, 48, 3), np.uint8), mask=np.zeros((48, 48), np.uint8))
        >>> out["image"].shape, out["mask"].shape
        ((32, 64, 3), (32, 64))
    """
    return A.Compose([*_scale_and_crop(image_size, 0.75, 1.33), A.HorizontalFlip(), _jitter(0.15, 0.0)])


def standard(image_size: int | tuple[int, int]) -> A.Compose:
    """Return scale from 0.5 to 2, a random part, a flip and color jitter: the usual one for photographs.

    Args:
        image_size: as for `light`.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).
    """
    return A.Compose([*_scale_and_crop(image_size, 0.5, 2.0), A.HorizontalFlip(), _jitter(0.3, 0.03)])


def heavy(image_size: int | tuple[int, int]) -> A.Compose:
    """Return `standard` with turns, stronger colors, gray, blur, noise and JPEG artifacts: for few images.

    Args:
        image_size: as for `light`.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).
    """
    return A.Compose(
        [
            A.Rotate((-20, 20), border_mode=cv2.BORDER_REFLECT_101, p=0.5),
            *_scale_and_crop(image_size, 0.5, 2.0),
            A.HorizontalFlip(),
            _jitter(0.45, 0.06),
            A.ToGray(p=0.1),
            A.OneOf(
                [A.GaussianBlur(), A.GaussNoise((0.02, 0.1)), A.ImageCompression(quality_range=(30, 80))],
                p=0.3,
            ),
        ]
    )


def aerial(image_size: int | tuple[int, int]) -> A.Compose:
    """Return quarter turns and flips, scale from 0.75 to 1.33, and color jitter: for images seen from above.

    Args:
        image_size: as for `light`.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).
    """
    return A.Compose([A.D4(p=1.0), *_scale_and_crop(image_size, 0.75, 1.33), _jitter(0.25, 0.03)])


def microscopy(image_size: int | tuple[int, int]) -> A.Compose:
    """Return quarter turns, flips, elastic bending, varying stains, blur and noise: for cells and tissue.

    Args:
        image_size: as for `light`.

    Returns:
        Pipeline for uint8 images (H, W, 3) and integer masks (H, W).
    """
    return A.Compose(
        [
            A.D4(p=1.0),
            *_scale_and_crop(image_size, 0.75, 1.33),
            A.ElasticTransform(alpha=60, sigma=8, border_mode=cv2.BORDER_REFLECT_101, p=0.3),
            _jitter(0.25, 0.05),
            A.OneOf([A.GaussianBlur(), A.GaussNoise((0.02, 0.08))], p=0.3),
        ]
    )


PRESETS = {preset.__name__: preset for preset in (light, standard, heavy, aerial, microscopy)}


def _scale_and_crop(image_size: int | tuple[int, int], smallest: float, largest: float) -> list:
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    return [
        A.RandomScale((smallest - 1, largest - 1), mask_interpolation=cv2.INTER_NEAREST, p=1.0),
        # Mirrored and not filled: a filled border would be a class of its own.
        A.RandomCrop(height, width, pad_if_needed=True, border_mode=cv2.BORDER_REFLECT_101),
    ]


def _jitter(strength: float, hue: float) -> A.ColorJitter:
    span = (1 - strength, 1 + strength)
    return A.ColorJitter(brightness=span, contrast=span, saturation=span, hue=(-hue, hue), p=0.8)
