"""Draws docs/images/augment.jpg: what each preset of augmentations makes of an image and its mask.

python .ci/site/sheets.py
"""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from vitseg_zoo.data.synthetic import SyntheticPets
from vitseg_zoo.data.transforms import PRESETS

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIDE, LINE, VIEWS = 150, 22, 5


def main() -> None:
    """Draw a row for each preset: the image as it is, and views."""
    image, mask = SyntheticPets(40, "train", image_size=SIDE)[13]
    sheet = Image.new("RGB", (SIDE * (VIEWS + 1), (SIDE + LINE) * len(PRESETS)), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, preset) in enumerate(PRESETS.items()):
        top = row * (SIDE + LINE)
        text = f"{name}: the image as it is, and five views" if row == 0 else name
        draw.text((4, top + LINE / 2), text, fill="black", font=ImageFont.load_default(14), anchor="lm")
        augment = preset(SIDE)
        augment.set_random_seed(0)
        views = [{"image": image, "mask": mask}, *(augment(image=image, mask=mask) for _ in range(VIEWS))]
        for column, view in enumerate(views):
            sheet.paste(Image.fromarray(_outlined(**view)), (column * SIDE, top + LINE))
    sheet.save(IMAGES / "augment.jpg", quality=70, optimize=True)


def _outlined(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Draw the contour of the animal over its image."""
    contours, _ = cv2.findContours((mask == 0).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(image.copy(), contours, -1, (255, 255, 255), 1)


if __name__ == "__main__":
    main()
