"""A model and its metadata, from photographs to labels at their own size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from vitseg_zoo.data.transforms import resize
from vitseg_zoo.inference.predict_labels import predict_labels


def predict_image(model: nn.Module, image: np.ndarray, metadata: Mapping[str, Any]) -> np.ndarray:
    """Predicts the class of each pixel of one image.

    Args:
        model: maps images (1, C, h, w) to logits, as `vitseg_zoo.load_model` returns it.
        image: (H, W, 3) or (H, W) uint8.
        metadata: `mean` and `std` of images in [0, 1] (default 0 and 1), and `input_size` (h, w), to which
            the image is resized as in training; by default its own size, rounded up to a multiple of 32.

    Returns:
        (H, W) uint8 class indices, at the image's own size.

    Raises:
        ValueError: A predicted class is above 255.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = smp.Unet("resnet18", encoder_weights=None, classes=2)
        >>> predict_image(model, np.zeros((50, 70, 3), np.uint8), {"input_size": (64, 64)}).shape
        (50, 70)
    """
    height, width = image.shape[:2]
    size = metadata.get("input_size") or (-(-height // 32) * 32, -(-width // 32) * 32)
    resized = resize(tuple(size))(image=image)["image"].reshape(*size, -1)  # (h, w, C)
    device = next(model.parameters()).device
    pixels = torch.tensor(resized, device=device).permute(2, 0, 1)[None] / 255  # (1, C, h, w)
    mean, std = (
        torch.tensor(metadata.get(key) or [default], device=device).view(1, -1, 1, 1)
        for key, default in (("mean", 0.0), ("std", 1.0))
    )
    labels = predict_labels(model, (pixels - mean) / std, (height, width))[0]
    if labels.max() > 255:  # would become another class
        raise ValueError(
            f"a mask of 8 bits holds the classes 0 to 255, but the model predicts class {labels.max()}: "
            "use predict_labels, which returns all of them."
        )
    return labels.to("cpu", torch.uint8).numpy()


def palette_image(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> Image.Image:
    """A picture whose pixels are class indices, which viewers show in the palette's colors.

    Args:
        labels: (H, W) uint8.
        palette: one RGB color (0 to 255) for each class.
    """
    picture = Image.fromarray(labels).convert("P")
    picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    return picture
