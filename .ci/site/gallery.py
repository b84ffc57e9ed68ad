"""Draws docs/images/models.jpg and gallery_*: packaged models on held-out photographs, each with its score.

python .ci/site/gallery.py DATA      # DATA holds the folders oxford-iiit-pet and clothing
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

import vitseg_zoo
from vitseg_zoo.counts import count_pixels, scores
from vitseg_zoo.data.oxford_pets import OxfordPets
from vitseg_zoo.data.segmentation_folder import SegmentationFolder

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIDE, LINE, LEFT = 150, 20, 100  # of a picture, of a line of text, of the names of the rows
_FONT = ImageFont.load_default(13)


def main(data: Path) -> None:
    """Draw all of them."""
    pets = OxfordPets(data, "test")
    segformer, vit = vitseg_zoo.Predictor("segformer_b0.pets"), vitseg_zoo.Predictor("vitseg_tiny.pets")
    some = [pets[index] for index in range(0, len(pets), 21)]
    _sheet(some, {"SegFormer-B0": segformer, "ViT-seg": vit}).save(
        IMAGES / "models.jpg", quality=80, optimize=True
    )
    for name, predictor in {"segformer_b0_pets": segformer, "vitseg_tiny_pets": vit}.items():
        ranked = _by_score(pets, predictor)
        halves = [_sheet(ranked[start : start + 7], {"model": predictor}) for start in (0, 7)]
        _below(halves).save(IMAGES / f"gallery_{name}.jpg", quality=75, optimize=True)
    # No photographs of this one: the rights in them are unclear, in its masks they are not.
    clothing = SegmentationFolder(data / "clothing", "val")
    predictor = vitseg_zoo.Predictor("segformer_b0.clothing")
    sheet = _sheet(_by_score(clothing, predictor)[::2], {"model": predictor}, photographs=False)
    sheet.quantize(32).save(IMAGES / "gallery_segformer_b0_clothing.png", optimize=True)


def _miou(prediction: np.ndarray, truth: np.ndarray, classes: int) -> float:
    """Give the mean IoU of one image, over the classes that it or its prediction has, in percent."""
    return 100 * float(scores(count_pixels(prediction, truth, classes))["miou"])


def _by_score(pairs: Sequence, predictor: Callable, count: int = 14) -> list[tuple[np.ndarray, np.ndarray]]:
    """Take images at equal steps from the worst score to the best, both included."""
    found = [_miou(predictor(image).labels, mask, len(predictor.class_names)) for image, mask in pairs]
    order = np.argsort(found)
    return [pairs[order[step]] for step in np.linspace(0, len(order) - 1, count).round().astype(int)]


def _sheet(pairs: Sequence, predictors: dict[str, Callable], photographs: bool = True) -> Image.Image:
    """Put images in columns: photograph, truth, and each model's mask over its score."""
    height = round(SIDE * 1.5) if not photographs else SIDE  # people stand upright
    rows = ["image"] * photographs + ["truth", *predictors]
    sheet = Image.new("RGB", (LEFT + SIDE * len(pairs), len(rows) * height + LINE * len(predictors)), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row in rows:
        draw.text((8, top + height / 2), row, fill="black", font=_FONT, anchor="lm")
        predictor = predictors.get(row) or next(iter(predictors.values()))
        for column, (image, mask) in enumerate(pairs):
            labels = predictor(image).labels if row in predictors else mask
            palette = np.asarray(predictor.palette, np.uint8)
            pixels = image if row == "image" else palette[labels]
            left = LEFT + column * SIDE
            # The middle of the picture; colors of classes are not mixed.
            how = Image.Resampling.LANCZOS if row == "image" else Image.Resampling.NEAREST
            sheet.paste(ImageOps.fit(Image.fromarray(pixels), (SIDE, height), how), (left, top))
            if row in predictors:
                score = f"mIoU {_miou(labels, mask, len(palette)):.0f}"
                middle = (left + SIDE / 2, top + height + LINE / 2)
                draw.text(middle, score, fill="black", font=_FONT, anchor="mm")
        top += height + LINE * (row in predictors)
    return sheet


def _below(sheets: Sequence[Image.Image]) -> Image.Image:
    """Put sheets of one size below each other."""
    return Image.fromarray(np.concatenate([np.asarray(sheet) for sheet in sheets]))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
