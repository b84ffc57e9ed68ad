"""Pictures of a comparison: worst images, errors, where models disagree, and how predictions came about."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitseg_zoo.comparison.evaluation import Evaluation, shrink
from vitseg_zoo.comparison.runs import Run
from vitseg_zoo.data.images import open_image, to_picture
from vitseg_zoo.palette import mix_colors
from vitseg_zoo.training.pictures import COLUMNS, color

# Vermilion of the palette of Okabe and Ito: on gray it is seen by color-blind people, too.
_WRONG = (213, 94, 0)
_TILES = 5  # pictures of an epoch in the GIF
_FRAMES = 40  # at most
_CAPTION = 24  # pixels above the pictures of an epoch, as `training.pictures.frame` makes them


def show_errors(image: np.ndarray, labels: np.ndarray, truth: np.ndarray, ignore: int | None) -> np.ndarray:
    """Paint what is wrong on a pale gray image: (H, W, 3) uint8 of three arrays of one size.

    Of labels (H, W, classes) a pixel is wrong where any of them is.
    """
    pale = (150 + image.mean(2, keepdims=True) * (105 / 255)).astype(np.uint8).repeat(3, 2)
    wrong = labels != truth
    if ignore is not None:
        wrong &= truth != ignore
    wrong = wrong.any(2) if wrong.ndim == 3 else wrong
    return np.where(wrong[..., None], np.array(_WRONG, np.uint8), pale)


def show_margins(margins: np.ndarray) -> np.ndarray:
    """Color how sure a model is, from dark (two classes alike) to light (sure): (H, W, 3) uint8."""
    from matplotlib import colormaps

    return (255 * colormaps["cividis"](margins)[..., :3]).round().astype(np.uint8)


def disagreement(labels: Sequence[np.ndarray]) -> float:
    """Return the share of pixels in which two models differ, on the average over all pairs of models.

    Args:
        labels: Of each model the predicted classes (H, W) of one image, or (H, W, classes).

    Example:
        >>> disagreement([np.array([[0, 1]]), np.array([[0, 0]])])
        0.5
    """
    stacked = np.stack(labels)
    pairs = [(i, j) for i in range(len(stacked)) for j in range(i)]
    return float(np.mean([(stacked[i] != stacked[j]).mean() for i, j in pairs]))


def most_disputed(evaluations: Sequence[Evaluation], count: int) -> list[tuple[int, float]]:
    """Return the numbers of the images on which models disagree most, and by how much."""
    if len(evaluations) < 2:
        return []
    shares = [disagreement(parts) for parts in zip(*(e.labels for e in evaluations), strict=True)]
    order = np.argsort(-np.array(shares), kind="stable")[:count]
    return [(int(index), shares[index]) for index in order]


def worst(evaluations: Sequence[Evaluation], count: int) -> list[tuple[int, float]]:
    """Return the numbers of the images with the lowest mIoU, mean over seeds, and that mIoU."""
    miou = np.mean([evaluation.image_scores()["miou"] for evaluation in evaluations], axis=0)
    order = [index for index in np.argsort(miou, kind="stable") if np.isfinite(miou[index])][:count]
    return [(int(index), float(miou[index])) for index in order]


class Tiles:
    """Images of a data set and what belongs to them, shrunk to what evaluations keep, as data URIs.

    Args:
        pairs: Images and masks, with `palette` and `ignore_index`.
    """

    def __init__(self, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
        self.pairs = pairs
        self.palette = pairs.palette  # type: ignore[attr-defined]
        self.ignore_index = pairs.ignore_index  # type: ignore[attr-defined]
        self._kept: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        if index not in self._kept:
            image, mask = self.pairs[index]
            mask = shrink(mask)
            picture = Image.fromarray(to_picture(image)).resize(mask.shape[1::-1], Image.Resampling.BOX)
            self._kept[index] = np.asarray(picture), mask
        return self._kept[index]

    def image(self, index: int) -> str:
        """Give the photograph."""
        return data_uri(self._read(index)[0])

    def truth(self, index: int) -> str:
        """Give the mask in the classes' colors."""
        return self.labels(self._read(index)[1])

    def labels(self, labels: np.ndarray) -> str:
        """Give predicted classes in their colors."""
        colored = mix_colors(labels, self.palette) if labels.ndim == 3 else color(labels, self.palette)
        return data_uri(colored, "PNG")

    def errors(self, index: int, labels: np.ndarray) -> str:
        """Give what is wrong on the pale image."""
        image, truth = self._read(index)
        return data_uri(show_errors(image, labels, truth, self.ignore_index))


def data_uri(pixels: np.ndarray, kind: str = "JPEG") -> str:
    """Return (H, W, 3) uint8 as an address that holds the picture itself."""
    buffer = io.BytesIO()
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    if kind == "PNG":  # few colors
        picture = picture.convert("P", palette=Image.Palette.ADAPTIVE)
    picture.save(buffer, kind, quality=76)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def training_gif(runs: Mapping[str, Run]) -> bytes | None:
    """Put what models predicted after each epoch below each other, as an endless GIF.

    Args:
        runs: A training by its name, with the pictures of its epochs; those without are left out.

    Returns:
        The file's bytes; None without such pictures.
    """
    epochs = {name: sorted((run.folder / "epochs").glob("[0-9]*.png")) for name, run in runs.items()}
    epochs = {name: files for name, files in epochs.items() if files}
    if not epochs:
        return None
    count = min(_FRAMES, max(map(len, epochs.values())))
    first = next(iter(epochs.values()))[0].parent
    above = {
        name: _first_tiles(first / f"{name}.png")
        for name in ("image", "truth")
        if (first / f"{name}.png").is_file()
    }
    frames = []
    for moment in np.linspace(0, 1, count):
        rows = above | {
            f"{name}, epoch {int(files[at].stem) + 1 if files[at].stem.isdigit() else at + 1}": _first_tiles(
                files[at]
            )
            for name, files in epochs.items()
            for at in [round(moment * (len(files) - 1))]
        }
        frames.append(_captioned_rows(rows).quantize(48, dither=Image.Dither.NONE))
    buffer = io.BytesIO()
    durations = [300] * (count - 1) + [2500]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _first_tiles(path: Path) -> Image.Image:
    """Cut the first pictures out of one of an epoch, whose rows have `COLUMNS` square ones."""
    with open_image(path) as picture:
        side = picture.width // COLUMNS
        return picture.convert("RGB").crop((0, _CAPTION, _TILES * side, _CAPTION + side))


def _captioned_rows(rows: Mapping[str, Image.Image]) -> Image.Image:
    font = ImageFont.load_default(size=15)
    height = sum(row.height + _CAPTION for row in rows.values())
    canvas = Image.new("RGB", (max(row.width for row in rows.values()), height), "white")
    draw, top = ImageDraw.Draw(canvas), 0
    for caption, row in rows.items():
        draw.text((4, top + _CAPTION // 2), caption, fill="black", font=font, anchor="lm")
        canvas.paste(row, (0, top + _CAPTION))
        top += _CAPTION + row.height
    return canvas
