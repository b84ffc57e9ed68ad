"""A model and its metadata, from images of any size to labels at their own size."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from segmentation_models_pytorch.base import SegmentationModel
from segmentation_models_pytorch.base.modules import Activation
from torch import nn

from vitseg_zoo.acceleration import accelerate
from vitseg_zoo.data.images import as_image, read_image, to_unit
from vitseg_zoo.inference.augmentation import TTA, augmented
from vitseg_zoo.inference.exported import is_exported, load_exported
from vitseg_zoo.inference.predict_labels import predict_labels
from vitseg_zoo.inference.tiles import ReadRows, blend_tiles
from vitseg_zoo.palette import distinct_colors
from vitseg_zoo.weights.metadata import FITS
from vitseg_zoo.weights.saving import load_model

ImageLike: TypeAlias = np.ndarray | torch.Tensor | Image.Image | str | Path


@dataclass(frozen=True)
class Prediction:
    """What a model says of an image, at the image's own size."""

    # (H, W) class indices, uint8 or, of more than 256 classes, uint16; of a multi-label model whether a pixel
    # has each class, (H, W, classes) bool.
    labels: np.ndarray
    probabilities: np.ndarray | None = None  # (classes, H, W) float32, if asked for
    confidence: np.ndarray | None = None  # float32, as large: the probability of each label, if asked for


class Predictor:
    """Segment images of any size as the weights' metadata say the model was trained.

    How an image comes to the model is `fit`:

    - `"squeeze"`: resized to `input_size`, its ratio of sides not kept; the default where there is an
      `input_size` and nothing else is said, as for the models that this package trains.
    - `"shorter_side"`: resized so that its shorter side is that of `input_size`, as on ADE20K.
    - `"tiles"`: at its own size, in overlapping tiles of `input_size` or `tile`, whose logits are blended, as
      on Cityscapes.
    - `"whole"`: at its own size, rounded up to multiples of 32; the default without an `input_size`.

    Of a model whose metadata say `mode="multilabel"` each class is there or not, by a sigmoid above 0.5.

    Args:
        model: A model of `smp.create_model`, of Hugging Face, or any module that maps images to logits
            (B, classes, h, w); or what `load_model` takes: a file, a folder, a name of the catalog. It is
            moved to the device and switched to evaluation mode. A file of `export_model`, `.onnx` or `.xml`,
            is run by its own runtime.
        device: `"auto"` is CUDA, else MPS, else the CPU.
        metadata: `mean` and `std` of images in [0, 1] (default 0 and 1), `input_size` (height, width), `fit`,
            `mode`, `class_names` and so on, in place of those of the file or of `model.pretrained_cfg`.
        fit: How an image comes to the model, in place of what the metadata say.
        tile: Side of the tiles in pixels, a multiple of 32; means `fit="tiles"`.
        overlap: Part of a tile that its neighbor covers, too, in [0, 1).
        batch_size: Tiles, or images of one size, that the model is given at once; 1 on a CPU and 8 elsewhere
            by default.
        tta: Test-time augmentation: `"flips"`, `"scales"` or both, whose logits are averaged; see
            `vitseg_zoo.inference.augmentation`.

    Raises:
        ValueError: If `fit`, `tile`, `overlap` or `tta` is none of these; see also `load_model`.

    Example:
        >>> predictor = Predictor("segformer_b0.pets", device="cpu")
        >>> image = np.zeros((50, 70, 3), np.uint8)
        >>> predictor(image).labels.shape
        (50, 70)
        >>> predictor([image, image[:20]], confidence=True)[1].confidence.shape
        (20, 70)
    """

    def __init__(
        self,
        model: nn.Module | str | Path,
        device: str | torch.device = "auto",
        *,
        metadata: Mapping[str, Any] | None = None,
        fit: str | None = None,
        tile: int | None = None,
        overlap: float = 0.25,
        batch_size: int | None = None,
        tta: Sequence[str] = (),
    ) -> None:
        if isinstance(model, nn.Module):
            known = dict(getattr(model, "pretrained_cfg", {}))
        elif is_exported(model):
            model, known = load_exported(model)
        else:
            model, known = load_model(model)
            with warnings.catch_warnings():  # of other models there is nothing to replace
                warnings.simplefilter("ignore")
                accelerate(model)
        self.metadata: dict[str, Any] = known | dict(metadata or {})
        # What the metadata do not say, an SMP model knows of itself.
        config = dict(getattr(model, "config", {})) if hasattr(model, "segmentation_head") else {}
        arguments = config | self.metadata.get("arguments", {})
        self.channels: int = arguments.get("in_channels", 3)
        self.multilabel = self.metadata.get("mode") == "multilabel"
        names = self.metadata.get("class_names") or ()
        self.classes: int | None = arguments.get("classes") or len(names) or None

        size = self.metadata.get("input_size")
        self.fit = "tiles" if tile else fit or self.metadata.get("fit") or ("squeeze" if size else "whole")
        if self.fit not in FITS:
            raise ValueError(f"fit should be one of {', '.join(FITS)}, got {self.fit!r}.")
        if tile and fit not in (None, "tiles"):
            raise ValueError(f"tile goes with fit='tiles', and not with fit={fit!r}.")
        if self.fit != "whole" and not (size or tile):
            raise ValueError(f"The metadata have no input_size for {self.fit}: say a tile, or fit='whole'.")
        if tile is not None and (tile < 32 or tile % 32):
            raise ValueError(f"tile should be a multiple of 32 pixels, got {tile}.")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap should be in range [0, 1), got {overlap}.")
        self.size: tuple[int, int] | None = (tile, tile) if tile else tuple(size) if size else None
        if unknown := [name for name in tta if name not in TTA]:
            raise ValueError(f"tta should be of {', '.join(TTA)}, got {', '.join(unknown)}.")
        self.overlap, self.tta = overlap, tuple(dict.fromkeys(tta))

        if device == "auto":
            mps = torch.backends.mps.is_available()
            device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
        self.device = torch.device(device)
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.model = model.to(self.device).eval()
        # Convolutions are up to 1.5 times as fast so. Other modules may count on the usual order.
        self._order = torch.contiguous_format
        if isinstance(model, SegmentationModel) and self.device.type in ("cpu", "cuda"):
            self._order = torch.channels_last
            self.model.to(memory_format=self._order)
        self._mean, self._std = (
            torch.tensor(self.metadata.get(key) or [default], dtype=torch.float32, device=self.device).view(
                1, -1, 1, 1
            )
            for key, default in (("mean", 0.0), ("std", 1.0))
        )

    @property
    def class_names(self) -> list[str]:
        """Return the name of each label; of a model of one class or none, `background` and that one."""
        names = list(
            self.metadata.get("class_names") or [f"class {index}" for index in range(self.classes or 1)]
        )
        return ["background", *names] if len(names) == 1 and not self.multilabel else names

    @property
    def palette(self) -> list[tuple[int, ...]]:
        """Return an RGB color (0 to 255) for each of `class_names`."""
        palette = [tuple(color) for color in self.metadata.get("palette") or ()]
        names = self.class_names
        if len(palette) + 1 == len(names):
            palette = [(0, 0, 0), *palette]
        without_black = int(self.multilabel)  # it is for pixels of no class
        return palette or list(distinct_colors(len(names) + without_black)[without_black:])

    def describe(self) -> str:
        """Say in one line how an image comes to the model."""
        height, width = self.size or (0, 0)
        return {
            "squeeze": f"images are squeezed to {width} x {height} pixels",
            "shorter_side": f"the images' shorter side is resized to {min(height, width)} pixels",
            "tiles": f"images are cut into tiles of {width} x {height} pixels that overlap by "
            f"{self.overlap:.0%}",
            "whole": "images keep their own size, rounded up to multiples of 32 pixels",
        }[self.fit]

    def __call__(
        self,
        images: ImageLike | Sequence[ImageLike],
        *,
        probabilities: bool = False,
        confidence: bool = False,
    ) -> Any:
        """Predict the class of each pixel of one image or of many.

        Args:
            images: One image or a list of them: a path, a PIL image, an array (H, W, C) or (H, W), or a
                tensor (C, H, W), of whole numbers of 8 or 16 bits, which are divided by the largest of their
                type, or floats as the training's, of photographs from 0 to 1. Arrays (B, H, W, C)
                and tensors (B, C, H, W) are many images.
            probabilities: Give the probabilities of all classes, too. Of a model of one class, that of it.
            confidence: Give the probability of each pixel's label, too.

        Returns:
            A `Prediction`, or a list of them. Of a model of one class, the label 1 is its presence; of a
            multi-label model there is a mask a class.

        Raises:
            ValueError: If an image cannot be read, or has other channels than the model takes.
        """
        is_many = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        every: Any = images if is_many else [images]
        arrays = [self._as_array(image) for image in every]
        results: list[Prediction] = []
        while len(results) < len(arrays):
            first = len(results)
            last = first + 1  # images of one size go through the model together
            while (
                last < min(len(arrays), first + self.batch_size)
                and arrays[last].shape == arrays[first].shape
                and arrays[last].dtype == arrays[first].dtype
            ):
                last += 1
            results += self._predict(arrays[first:last], probabilities, confidence)
        return results if is_many else results[0]

    @torch.inference_mode()
    def label_rows(self, read: ReadRows, size: tuple[int, int], first_row: int = 0) -> Iterator[np.ndarray]:
        """Predict an image in tiles from top to bottom, with memory for one row of tiles.

        Args:
            read: Gives rows of the image: `read(top, bottom)` is (bottom - top, W, C) or (bottom - top, W).
            size: Height and width of the image.
            first_row: Go on from this row, down to which an earlier call came.

        Yields:
            Labels (rows, W) of the next rows, uint8 or uint16, or (rows, W, classes) bool.
        """
        rows: list[np.ndarray] = []
        blocks = blend_tiles(
            lambda tiles: self._logits(self._to_pixels(tiles)),
            read,
            size,
            self._size(),
            self.overlap,
            self.batch_size,
            first_row,
        )
        for _, left, logits in blocks:
            rows.append(self._labels(nn.Identity(), logits[None], None)[0])
            if left + rows[-1].shape[1] == size[1]:
                yield np.concatenate(rows, axis=1)
                rows = []

    @torch.inference_mode()
    def _predict(
        self, images: Sequence[np.ndarray], probabilities: bool, confidence: bool
    ) -> list[Prediction]:
        size = images[0].shape[:2]
        if self.fit == "tiles" and not (probabilities or confidence):
            return [
                Prediction(np.concatenate(list(self.label_rows(lambda a, b, image=image: image[a:b], size))))
                for image in images
            ]
        if self.fit == "tiles":
            logits = torch.cat([self._blended(image) for image in images])
        else:
            fitted = self._fitted(*size)
            pixels = self._to_pixels(np.stack([_resized(image, fitted) for image in images]))
            if not (probabilities or confidence or self.tta or self.multilabel):
                return [Prediction(labels) for labels in self._labels(self.model, pixels, size)]
            logits = self._logits(pixels)
            if self.multilabel and not (probabilities or confidence):  # a class at a time, in less memory
                some = [F.interpolate(part, size, mode="bilinear") > 0 for part in logits.split(1, 1)]
                return [Prediction(labels) for labels in torch.cat(some, 1).movedim(1, -1).cpu().numpy()]
            logits = F.interpolate(logits, size, mode="bilinear")
        labels = self._labels(nn.Identity(), logits, None)
        by_class = logits.shape[1] > 1 and not self.multilabel
        chances = logits.softmax(1) if by_class else logits.sigmoid()
        largest = chances.amax(1) if by_class else torch.maximum(chances, 1 - chances)
        largest = largest.movedim(1, -1) if self.multilabel else largest.reshape(len(images), *size)
        return [
            Prediction(
                labels[index],
                chances[index].float().cpu().numpy() if probabilities else None,
                largest[index].float().cpu().numpy() if confidence else None,
            )
            for index in range(len(images))
        ]

    def _fitted(self, height: int, width: int) -> tuple[int, int]:
        """Return the size at which the model sees an image."""
        if self.fit == "squeeze":
            return self._size()
        if self.fit == "shorter_side":
            scale = min(self._size()) / min(height, width)
            height, width = (max(round(side * scale / 32), 1) * 32 for side in (height, width))
            return height, width
        return -(-height // 32) * 32, -(-width // 32) * 32

    def _size(self) -> tuple[int, int]:
        assert self.size is not None  # of every `fit` but "whole"
        return self.size

    def _to_pixels(self, images: np.ndarray) -> torch.Tensor:
        """Bring (B, h, w, C) or (B, h, w) to (B, C, h, w), normalized, on the device."""
        images = images.reshape(*images.shape[:3], -1)
        if images.dtype != np.uint8:
            images = to_unit(images)
        pixels = torch.from_numpy(images)
        if self.device.type == "cuda":  # copied while the processor goes on
            pixels = pixels.pin_memory().to(self.device, non_blocking=True)
        pixels = pixels.to(self.device).permute(0, 3, 1, 2)
        pixels = pixels.contiguous(memory_format=self._order)
        pixels = pixels if pixels.is_floating_point() else pixels / 255
        return (pixels - self._mean) / self._std

    def _logits(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, h, w) of the model, averaged over `tta`."""
        return augmented(self._logits_once, pixels, self.tta)

    def _logits_once(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits (B, classes, h, w) of one run, before its activation if it has one."""
        output = self.model(pixels)
        logits = output.logits if hasattr(output, "logits") else output
        logits = logits[0] if isinstance(logits, tuple) else logits
        if logits.ndim == 3:
            raise ValueError("the model gives labels, but tiles blend logits: export it without labels.")
        head = getattr(self.model, "segmentation_head", None)
        activations = [part for part in head.modules() if isinstance(part, Activation)] if head else []
        activation = activations[-1].activation if activations else None
        if isinstance(activation, nn.Sigmoid):
            logits = logits.logit(eps=1e-7)
        elif isinstance(activation, nn.Softmax):
            logits = logits.clamp(min=1e-30).log()
        if logits.shape[2:] != pixels.shape[2:]:  # Hugging Face's are smaller
            logits = F.interpolate(logits, pixels.shape[2:], mode="bilinear")
        return logits

    def _blended(self, image: np.ndarray) -> torch.Tensor:
        """Return logits (1, classes, H, W) of an image in tiles."""
        whole = None
        for top, left, block in blend_tiles(
            lambda tiles: self._logits(self._to_pixels(tiles)),
            lambda top, bottom: image[top:bottom],
            (image.shape[0], image.shape[1]),
            self._size(),
            self.overlap,
            self.batch_size,
        ):
            if whole is None:
                whole = block.new_empty(1, len(block), *image.shape[:2])
            whole[0, :, top : top + block.shape[1], left : left + block.shape[2]] = block
        return whole

    def _labels(self, model: nn.Module, pixels: torch.Tensor, size: tuple[int, int] | None) -> np.ndarray:
        """Label (B, H, W), as small numbers as hold all classes; multi-label (B, H, W, classes) bool."""
        if self.multilabel:
            return (model(pixels) > 0).movedim(1, -1).cpu().numpy()
        is_small = self.classes is not None and self.classes <= 256
        labels = predict_labels(model, pixels, size, torch.uint8 if is_small else torch.int32)
        return labels.cpu().numpy().astype(np.uint8 if is_small else np.uint16, copy=False)

    def _as_array(self, image: ImageLike) -> np.ndarray:
        """Return an image as (H, W, C) or (H, W), uint8 or float32."""
        if isinstance(image, str | Path):
            return read_image(Path(image), self.channels)
        if isinstance(image, Image.Image):
            try:
                return as_image(np.asarray(_plain_mode(ImageOps.exif_transpose(image))), self.channels)
            except ValueError as error:
                raise ValueError(f"the image {error}.") from None
        if isinstance(image, torch.Tensor):
            array = np.moveaxis(image.detach().cpu().numpy(), 0, -1) if image.ndim == 3 else image.numpy()
        else:
            array = np.asarray(image)
        channels = array.shape[2] if array.ndim == 3 else 1
        if array.ndim not in (2, 3) or channels != self.channels:
            what = "(C, H, W)" if isinstance(image, torch.Tensor) else "(H, W, C)"
            raise ValueError(
                f"an image should be {what} of {self.channels} channels, got {tuple(image.shape)}."
            )
        if np.issubdtype(array.dtype, np.floating):
            return array.astype(np.float32, copy=False)
        if array.dtype not in (np.uint8, np.uint16):
            raise ValueError(
                "an image should have whole numbers of 8 or 16 bits without sign, or floats, "
                f"got {array.dtype}."
            )
        return array


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (H, W, C) or (H, W) by area, as `vitseg_zoo.data.transforms.resize` does for a training."""
    if image.shape[:2] == size:
        return image
    if image.ndim == 3 and image.shape[2] > 4:  # the most that OpenCV resizes at once
        parts = (_resized(image[..., first : first + 4], size) for first in range(0, image.shape[2], 4))
        return np.concatenate([part.reshape(*size, -1) for part in parts], axis=2)
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)


def _plain_mode(image: Image.Image) -> Image.Image:
    return image.convert("RGB") if image.mode in ("P", "PA", "CMYK", "YCbCr", "LAB", "HSV") else image


def predict_image(model: nn.Module, image: np.ndarray, metadata: Mapping[str, Any]) -> np.ndarray:
    """Predict the class of each pixel of one image, with the model where it is.

    Args:
        model: Maps images (1, C, h, w) to logits, as `vitseg_zoo.load_model` returns it.
        image: (H, W, 3) or (H, W) uint8.
        metadata: See `Predictor`.

    Returns:
        (H, W) uint8 class indices, at the image's own size; of a multi-label model 0 and 1 (H, W, classes).

    Raises:
        ValueError: If a predicted class is above 255.

    Example:
        >>> import segmentation_models_pytorch as smp
        >>> model = smp.Unet("resnet18", encoder_weights=None, classes=2)
        >>> predict_image(model, np.zeros((50, 70, 3), np.uint8), {"input_size": (64, 64)}).shape
        (50, 70)
    """
    device = next(model.parameters(), torch.empty(0)).device  # an exported file has no parameters
    labels = Predictor(model, device, metadata=metadata)(image).labels
    if labels.max() > 255:  # would become another class
        raise ValueError(
            f"a mask of 8 bits holds the classes 0 to 255, but the model predicts class {labels.max()}: "
            "use predict_labels, which returns all of them."
        )
    return labels.astype(np.uint8, copy=False)
