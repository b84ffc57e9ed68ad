"""Pictures of a training: truth next to prediction, the GIF over epochs, and the curves."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from vitseg_zoo.data.images import to_picture
from vitseg_zoo.files import atomic_path

COLUMNS = 7  # 21 images make three rows, as in figure 8 of the article
_MARGIN = 24
_IGNORED = (255, 255, 255)


def color(labels: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """Color class indices.

    Args:
        labels: (..., H, W) class indices; indices beyond the palette (ignored pixels) become white.
        palette: one RGB color (0 to 255) for each class.

    Returns:
        (..., H, W, 3) uint8.
    """
    table = np.full((256, 3), _IGNORED, np.uint8)
    table[: len(palette)] = palette
    return table[np.clip(labels, 0, 255)]


def from_tensors(images: torch.Tensor) -> np.ndarray:
    """Make pictures (N, H, W, 3) uint8 of (N, C, H, W): RGB in [0, 1] as it is, other images stretched."""
    pixels = images.permute(0, 2, 3, 1).numpy()
    if pixels.shape[3] == 3 and pixels.min() >= 0 and pixels.max() <= 1:
        return (pixels * 255).round().astype(np.uint8)
    return np.stack([to_picture(image) for image in pixels])


def comparison(images: np.ndarray, truth: np.ndarray, predictions: Mapping[str, np.ndarray]) -> Image.Image:
    """Make one picture: for each block of seven images, rows of images, of truth, and of each prediction.

    Args:
        images: (N, H, W, 3) uint8.
        truth: (N, H, W, 3) colored masks.
        predictions: name -> (N, H, W, 3) colored masks; one row each.

    Returns:
        RGB picture with the names of the rows at the left.
    """
    rows = {"image": images, "truth": truth, **predictions}
    height, width = images.shape[1:3]
    font = ImageFont.load_default(size=max(10, height // 9))
    left = _MARGIN + max(int(font.getlength(name)) for name in rows)
    blocks = range(0, len(images), COLUMNS)
    block_height = len(rows) * height + _MARGIN
    columns = min(COLUMNS, len(images))
    canvas = Image.new("RGB", (left + columns * width, len(blocks) * block_height - _MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for block, first in enumerate(blocks):
        for row, (name, tiles) in enumerate(rows.items()):
            top = block * block_height + row * height
            draw.text((_MARGIN // 2, top + height // 2), name, fill="black", font=font, anchor="lm")
            for column, tile in enumerate(tiles[first : first + COLUMNS]):
                canvas.paste(Image.fromarray(tile), (left + column * width, top))
    return canvas


def frame(tiles: np.ndarray, caption: str) -> Image.Image:
    """Make one frame of the GIF: colored masks (N, H, W, 3), seven in a row, under a caption."""
    count, height, width, _ = tiles.shape
    font = ImageFont.load_default(size=16)
    canvas = Image.new("RGB", (COLUMNS * width, _MARGIN + -(-count // COLUMNS) * height), "white")
    ImageDraw.Draw(canvas).text((6, _MARGIN // 2), caption, fill="black", font=font, anchor="lm")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        canvas.paste(Image.fromarray(tile), (column * width, _MARGIN + row * height))
    return canvas


def save_gif(frames: Sequence[Image.Image], path: Path, milliseconds: int = 300) -> None:
    """Write an endless GIF of RGB frames; the last one stays for two seconds."""
    small = [picture.quantize(64, dither=Image.Dither.NONE) for picture in frames]
    durations = [milliseconds] * (len(small) - 1) + [2000]
    options = dict(save_all=True, append_images=small[1:], duration=durations, loop=0)
    with atomic_path(path) as partial:
        small[0].save(partial, format="GIF", **options)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, of which a reader never sees half."""
    with atomic_path(path) as partial:
        picture.save(partial, format="PNG")


def read_metrics(path: Path) -> dict[str, list[float]]:
    """Read a metrics.csv: column name -> one value for each epoch."""
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: [float(row[name] or "nan") for row in rows] for name in (rows[0] if rows else ())}


def save_curves(metrics: Mapping[str, list[float]], path: Path) -> None:
    """Plot loss, pixel accuracy and mIoU over epochs: training dashed, validation solid.

    Args:
        metrics: What `read_metrics` gives.
        path: PNG to write.
    """
    from matplotlib.figure import Figure  # not pyplot: no window system, no global state

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    panels = {"loss": "loss", "pixel_accuracy": "pixel accuracy", "miou": "mIoU"}
    for axes, (metric, title) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        epochs = [epoch + 1 for epoch in metrics.get("epoch", [])]
        for stage, style, label in (("train", "--", "train"), ("val", "-", "validation")):
            values = metrics.get(f"{stage}_{metric}", [])
            points = [pair for pair in zip(epochs, values, strict=False) if math.isfinite(pair[1])]
            if points:
                marker = "." if len(points) < 3 else ""
                axes.plot(*zip(*points, strict=True), style, color="C0", label=label, marker=marker)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
