"""check.html: what `check` found, as one self-contained page with pictures of each class and finding."""

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from vitseg_zoo.data.check_report import Finding, Report
from vitseg_zoo.data.class_files import Color
from vitseg_zoo.data.findings import class_counts
from vitseg_zoo.data.images import read_pixels, to_picture
from vitseg_zoo.data.segmentation_folder import read_classes
from vitseg_zoo.data.survey import Record, read_masks
from vitseg_zoo.files import atomic_path
from vitseg_zoo.palette import mix_colors

_SIDE = 256  # pixels of a picture's longer side
_PICTURES = 8  # of a class or finding
_MOST_CLASSES = 40  # with pictures; the page stays small enough to send
_HIGHLIGHT: Color = (255, 60, 160)  # of classes whose own color is too dark to be seen


def write_page(report: Report, path: str | Path) -> None:
    """Write the page.

    Args:
        report: What `check` returned.
        path: The file.
    """
    from jinja2 import Environment, PackageLoader

    # Names of files and classes are anybody's: autoescape.
    environment = Environment(loader=PackageLoader("vitseg_zoo", "data"), autoescape=True)
    description = report.description
    totals = {split: max(1, total) for split, total in report.totals.items()}
    classes = [
        {
            "name": name,
            "color": "#{:02x}{:02x}{:02x}".format(*description.palette[index]),
            "shares": [
                (f"{100 * report.pixels[split][index] / total:.2f} %", int(report.images[split][index]))
                for split, total in totals.items()
            ],
            "weight": f"{report.weights[index]:.3g}",
            "pictures": _class_pictures(report, index) if index < _MOST_CLASSES else [],
        }
        for index, name in enumerate(description.class_names)
    ]
    findings = [
        {"finding": finding, "pictures": _finding_pictures(report, finding), "shown": finding.files[:50]}
        for finding in report.findings
    ]
    text = environment.get_template("check.html.jinja").render(
        root=description.root.resolve().name,
        count=len(report.records),
        splits={split: sum(r.split == split for r in report.records) for split in totals},
        report=report,
        classes=classes,
        findings=findings,
    )
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def overlay(image: np.ndarray, mask: np.ndarray, palette: tuple[Color, ...]) -> np.ndarray:
    """Lay the colors of classes over an image, of class numbers all but the first class's.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) class numbers, or 0 and 1 (H, W, classes).
        palette: Color of each class.

    Returns:
        (H, W, 3) uint8.
    """
    if mask.ndim == 3:
        mixed = image // 2 + mix_colors(mask, palette[: mask.shape[2]]) // 2
        return np.where(mask.max(2, keepdims=True) > 0, mixed, image)
    colors = np.full((256, 3), 128, np.uint8)
    colors[: len(palette)] = palette
    mixed = image // 2 + colors[np.minimum(mask, 255)] // 2
    return np.where((mask == 0)[..., None], image, mixed)


def _class_pictures(report: Report, index: int) -> list[dict]:
    """List the images with the class, from those with most of it to those with least."""
    found = []
    for record in report.records:
        counts, _ = class_counts(record, report.description.encoding)
        if counts.get(index) and record.image_size == record.mask_size and not record.errors:
            found.append((counts[index] / sum(record.values.values()), record))
    found.sort(key=lambda item: -item[0])
    chosen = np.unique(np.linspace(0, len(found) - 1, min(_PICTURES, len(found))).astype(int))
    pictures: list[dict] = []
    for at in chosen.tolist():
        share, record = found[at]
        image, mask = _small(report, record)
        if mask is None:
            continue
        inside = (mask[..., index] > 0 if mask.ndim == 3 else mask == index)[..., None]
        color = np.array(report.description.palette[index], np.uint8)
        if color.max() < 90:
            color = np.array(_HIGHLIGHT, np.uint8)
        dim = (image.mean(2, keepdims=True) * 0.45).astype(np.uint8).repeat(3, 2)
        shown = np.where(inside, image // 2 + color // 2, dim)
        pictures.append({"url": _url(shown), "caption": f"{record.pair.image}: {100 * share:.3g} %"})
    return pictures


def _finding_pictures(report: Report, finding: Finding) -> list[dict]:
    by_path = {path: record for record in report.records for path in (record.pair.image, *record.pair.masks)}
    pictures: list[dict] = []
    for path in finding.files:
        if len(pictures) == _PICTURES:
            break
        record = by_path.get(path)
        try:
            if (
                record is not None
                and not record.errors
                and (path != record.pair.image or record.pair.is_shared)
            ):
                image, mask = _small(report, record)
                palette = (*report.description.palette, _HIGHLIGHT)  # the last of what is no class
                shown = image if mask is None else overlay(image, mask, palette)
            else:
                shown = _shrink(_visible(report.description.root / path))
        except ValueError:
            continue  # it cannot be read, as the finding says
        pictures.append({"url": _url(shown), "caption": path})
    return pictures


def _small(report: Report, record: Record) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the image and mask of a pair, shrunk; no mask where it does not fit."""
    image = _shrink(_visible(report.description.root / record.pair.image))
    try:
        mask = read_classes(report.description, record.pair)
    except ValueError:
        if report.description.multilabel:
            return image, None
        try:  # only what is no class
            encoding = report.description.encoding
            pixels = read_masks(report.description.root, record.pair, encoding.kind == "colors")
            mask = np.where(encoding.knows(pixels), 0, len(report.description.class_names))
        except ValueError:
            return image, None
    if mask.shape[:2] != record.image_size:
        return image, None
    rows = (np.arange(image.shape[0]) * mask.shape[0]) // image.shape[0]
    columns = (np.arange(image.shape[1]) * mask.shape[1]) // image.shape[1]
    return image, mask[rows[:, None], columns]


def _visible(path: Path) -> np.ndarray:
    """Make (H, W, 3) uint8 of any image."""
    pixels, palette = read_pixels(path)
    return to_picture(pixels if palette is None else palette[pixels])


def _shrink(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((_SIDE, _SIDE))
    return np.asarray(picture)


def _url(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=72)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
