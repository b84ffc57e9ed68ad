"""Files that hold what was predicted in all images: areas, COCO's annotations, Label Studio's tasks."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vitseg_zoo.files import atomic_path, file_names
from vitseg_zoo.inference.outputs import areas, count_classes
from vitseg_zoo.inference.rasters import pixel_area, read_labels
from vitseg_zoo.inference.regions import coco_annotations, coco_categories, label_studio_task

# What can be made of all images together, beside what is made of each.
ALL = {"areas": "areas.csv", "coco": "coco.json", "label-studio": "label_studio.json"}


def write_tables(
    out: Path,
    asked: list[str],
    images: Mapping[Path, Path],
    masks: Mapping[Path, Path],
    names: list[str],
    skip: int | None,
    multilabel: bool,
) -> None:
    """Write the files that are asked for, from the masks, so that those of earlier runs are in them, too.

    Args:
        out: The folder to write to.
        asked: Of `ALL`.
        images: Image -> its name in the files, without the suffix.
        masks: Image -> its mask, in a multi-label model's case a folder or a GeoTIFF.
        names: The classes.
        skip: The class that is left out of outlines, the background.
        multilabel: Whether a pixel may have several classes.
    """
    rows: list[dict] = []
    tasks: list[dict] = []
    pictures: list[dict] = []
    annotations: list[dict] = []
    for number, (path, mask) in enumerate(masks.items(), 1):
        if multilabel and mask.suffix == ".tif":
            labels = np.atleast_3d(read_labels(mask)) == 1
        elif multilabel:
            labels = np.stack([read_labels(mask / f"{name}.png") > 0 for name in file_names(names)], axis=2)
        else:
            labels = read_labels(mask)
        name = images[path].with_name(images[path].name + path.suffix).as_posix()
        if "areas" in asked:
            total = labels.shape[0] * labels.shape[1] if multilabel else None
            rows += areas(name, count_classes(labels, len(names)), names, pixel_area(path), total)
        if "coco" in asked:
            height, width = labels.shape[:2]
            pictures.append({"id": number, "file_name": name, "width": width, "height": height})
            annotations += coco_annotations(labels, number, len(annotations) + 1, skip)
        if "label-studio" in asked:
            tasks.append(label_studio_task(f"/data/local-files/?d={name}", labels, names, skip))
    if "areas" in asked:
        columns = list(dict.fromkeys(key for row in rows for key in row))
        with (
            atomic_path(out / "areas.csv") as whole,
            open(whole, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        _write_json(out / "areas.json", rows)
    if "coco" in asked:
        categories = coco_categories(names)
        content = {"images": pictures, "annotations": annotations, "categories": categories}
        _write_json(out / ALL["coco"], content)
    if "label-studio" in asked:
        _write_json(out / ALL["label-studio"], tasks)


def _write_json(path: Path, content: Any) -> None:
    with atomic_path(path) as whole:
        whole.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
