"""Labels as regions of one class, for programs in which people correct them: COCO JSON and Label Studio.

COCO: https://cocodataset.org/#format-data; CVAT imports it as "COCO 1.0". Label Studio: tasks with
`predictions`, https://labelstud.io/guide/predictions, for a labeling configuration of `PolygonLabels`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np


@dataclass(frozen=True)
class Region:
    """A connected region of one class."""

    label: int
    mask: np.ndarray  # (h, w) bool
    left: int
    top: int
    polygon: np.ndarray  # (N, 2) x and y in pixels of the image, along the outer edge
    has_holes: bool


def find_regions(
    labels: np.ndarray, skip: int | None = None, smallest: int = 16, tolerance: float = 1.0
) -> Iterator[Region]:
    """Find connected regions of one class, class by class.

    Args:
        labels: (H, W) class indices, or (H, W, classes) bool, where a pixel may have several.
        skip: A class to leave out, as the background.
        smallest: Regions of fewer pixels are left out.
        tolerance: Pixels by which a polygon may differ from the edge, so that it has few points to move.

    Example:
        >>> labels = np.zeros((20, 20), np.uint8)
        >>> labels[5:10, 5:15] = 1
        >>> [(region.label, int(region.mask.sum())) for region in find_regions(labels, skip=0)]
        [(1, 50)]
    """
    for label in range(labels.shape[2]) if labels.ndim == 3 else np.unique(labels).tolist():
        if label == skip:
            continue
        inside = labels[..., label] if labels.ndim == 3 else labels == label
        count, numbers, found, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=4)
        for number in range(1, count):
            left, top, width, height, pixels = found[number].tolist()
            if pixels < smallest:
                continue
            mask = numbers[top : top + height, left : left + width] == number
            # Twice as large, so that the contour runs along the pixels' edges and not their centers.
            doubled = np.repeat(np.repeat(mask.view(np.uint8), 2, 0), 2, 1)
            contours, levels = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
            outer = max(
                (c for c, h in zip(contours, levels[0], strict=True) if h[3] < 0), key=cv2.contourArea
            )
            outer = cv2.approxPolyDP(outer, 2 * tolerance, closed=True) if tolerance else outer
            polygon = (outer[:, 0] + 0.5) / 2 + (left, top)
            yield Region(label, mask, left, top, polygon, bool((levels[0][:, 3] >= 0).any()))


def coco_annotations(labels: np.ndarray, image_id: int, first_id: int, skip: int | None = None) -> list[dict]:
    """Describe an image's regions as COCO does: polygons, and run-length codes of what has holes.

    Args:
        labels: (H, W) class indices. The category of class 0 is 1.
        image_id: That of the image in the file.
        first_id: Annotations count on from this number.
        skip: A class to leave out, as the background.

    Raises:
        ModuleNotFoundError: If pycocotools (extra `annotations`) is missing.
    """
    from pycocotools import mask as codes

    annotations: list[dict] = []
    for region in find_regions(labels, skip):
        height, width = region.mask.shape
        segmentation: Any = [region.polygon.round(2).ravel().tolist()]
        if region.has_holes:
            whole = np.zeros(labels.shape[:2], np.uint8, order="F")
            whole[region.top : region.top + height, region.left : region.left + width] = region.mask
            code = codes.encode(whole)
            segmentation = {"size": code["size"], "counts": code["counts"].decode()}
        annotations.append(
            {
                "id": first_id + len(annotations),
                "image_id": image_id,
                "category_id": region.label + 1,
                "segmentation": segmentation,
                "area": int(region.mask.sum()),
                "bbox": [region.left, region.top, width, height],
                "iscrowd": int(region.has_holes),  # of COCO's two forms, that of a run-length code
            }
        )
    return annotations


def coco_categories(names: Sequence[str]) -> list[dict]:
    """List classes as COCO's categories, which count from 1."""
    return [{"id": index + 1, "name": name, "supercategory": ""} for index, name in enumerate(names)]


def label_studio_task(image: str, labels: np.ndarray, names: Sequence[str], skip: int | None = None) -> dict:
    """Describe an image and its regions as a task of Label Studio with a prediction.

    Args:
        image: Where Label Studio finds the image, such as `/data/local-files/?d=photos/a.jpg`.
        labels: (H, W) class indices.
        names: One a class, as in the labeling configuration.
        skip: A class to leave out, as the background.
    """
    height, width = labels.shape[:2]
    results = [
        {
            "id": f"region{index}",
            "type": "polygonlabels",
            "from_name": "label",
            "to_name": "image",
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {
                "points": (region.polygon * (100 / width, 100 / height)).round(4).tolist(),  # percent
                "closed": True,
                "polygonlabels": [names[region.label]],
            },
        }
        for index, region in enumerate(find_regions(labels, skip))
    ]
    return {"data": {"image": image}, "predictions": [{"model_version": "vitseg", "result": results}]}
