"""What may be wrong with a data set: each kind of finding, from what was read of its files."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from vitseg_zoo.data.check_report import Finding, Report
from vitseg_zoo.data.class_files import find_class_file, read_class_file
from vitseg_zoo.data.class_weights import median_frequency
from vitseg_zoo.data.description import DatasetDescription
from vitseg_zoo.data.duplicates import near_duplicates
from vitseg_zoo.data.layouts import Matched
from vitseg_zoo.data.masks import IGNORE_INDEX, MaskEncoding
from vitseg_zoo.data.outlines import is_background
from vitseg_zoo.data.survey import Record


def class_counts(record: Record, encoding: MaskEncoding) -> tuple[dict[int, int], list[int]]:
    """Count the pixels of each class in a mask, and list the values that are none."""
    values = record.values if encoding.kind != "multilabel" else record.label_pixels
    if encoding.kind == "colors" and not record.colored:
        if record.palette:
            merged: Counter[int] = Counter()
            for value, count in values.items():
                red, green, blue = record.palette[value]
                merged[red << 16 | green << 8 | blue] += count
            values = dict(merged)
        else:
            values = {(value & 255) * 0x010101: count for value, count in values.items()}
    elif encoding.kind == "gray" and record.colored:
        if any(value % 0x010101 for value in values):
            return {}, list(values)
        values = {value & 255: count for value, count in values.items()}
    strange = [value for value in values if value not in encoding.values]
    known = dict(encoding.values)
    if strange and encoding.snap:
        if encoding.kind == "gray":
            pixels = np.array(strange)[None]
        else:
            pixels = np.array([[(v >> 16, v >> 8 & 255, v & 255) for v in strange]], np.uint8)
        known.update(zip(strange, encoding.decode(pixels)[0].tolist(), strict=True))
        strange = []
    counts: Counter[int] = Counter()
    for value, count in values.items():
        if value in known:
            counts[known[value]] += count
    return dict(counts), strange


def files_alone(matched: dict[str, Matched]) -> list[Finding]:
    """Find images and masks without a partner, and names that two files have."""
    findings = []
    for split, found in matched.items():
        if found.images_alone:
            findings.append(
                Finding(
                    "warning",
                    f"{_number(found.images_alone, 'image')} of {split} without a mask.",
                    "They are left out: add the masks, empty ones where there is nothing, or take the images "
                    "away.",
                    tuple(found.images_alone),
                )
            )
        if found.masks_alone:
            findings.append(
                Finding(
                    "warning",
                    f"{_number(found.masks_alone, 'mask')} of {split} without an image.",
                    "They are left out: add the images, or take the masks away.",
                    tuple(found.masks_alone),
                )
            )
        if found.doubled:
            findings.append(
                Finding(
                    "error",
                    f"{_number(found.doubled, 'name')} of {split} with two files: the first is read.",
                    "Rename or remove one of each two.",
                    tuple(path for both in found.doubled for path in both),
                )
            )
        if found.unknown_names:
            findings.append(
                Finding(
                    "warning",
                    f"{_number(found.unknown_names, 'line')} of the list of {split} that name no image.",
                    "They are left out: mend the list.",
                    tuple(found.unknown_names),
                )
            )
    return findings


def other_labels(
    description: DatasetDescription, files: Sequence[str], records: Sequence[Record]
) -> list[Finding]:
    """Find labels of masks of one class each that the file of class names does not have, and the reverse."""
    class_file = find_class_file(files)
    if class_file is None or not any("{class}" in part.masks for part in description.parts.values()):
        return []
    names = read_class_file(description.root / class_file)[0]
    findings = []
    if strange := [label for label in description.labels if label not in names]:
        masks = (zip(record.pair.classes, record.pair.masks, strict=True) for record in records)
        findings.append(
            Finding(
                "warning",
                f"{class_file} does not name {_few(strange)}, of which there are masks.",
                "They become classes behind the others: rename the masks, or add the names.",
                tuple(path for some in masks for label, path in some if label in strange),
            )
        )
    if lacking := [name for name in names if name not in description.labels and not is_background(name)]:
        findings.append(
            Finding(
                "warning",
                f"{class_file} names {_few(lacking)}, of which there is no mask.",
                "They are left out of the classes: add masks, or take the names out.",
            )
        )
    return findings


def count_classes(report: Report) -> list[Finding]:
    """Fill in the classes' pixels, images and weights, and find what is odd about them."""
    description = report.description
    count = len(description.class_names)
    splits = list(dict.fromkeys(record.split for record in report.records))
    further = 2 if description.multilabel else 1
    report.pixels = {split: np.zeros(count + further, np.int64) for split in splits}
    report.images = {split: np.zeros(count + further, np.int64) for split in splits}
    report.totals = dict.fromkeys(splits, 0)
    present = np.zeros(count)  # pixels of the images of the first split that have the class
    undeclared: dict[str, list[int]] = {}
    unlabeled, single = [], []
    for record in report.records:
        if not record.values:
            continue
        counts, strange = class_counts(record, description.encoding)
        if strange:
            undeclared[_mask_file(record)] = strange
        total = sum(counts.values())
        if description.multilabel:
            total = sum(record.values.values())
            for at, pixels in ((count, record.values.get(0, 0)), (count + 1, record.overlaps)):
                report.pixels[record.split][at] += pixels
                report.images[record.split][at] += pixels > 0
        report.totals[record.split] += total
        for index, pixels in counts.items():
            at = count if index == IGNORE_INDEX and description.ignore_index is not None else index
            report.pixels[record.split][at] += pixels
            report.images[record.split][at] += 1
            if at < count and record.split == splits[0]:
                present[at] += total
        if counts and set(counts) == {IGNORE_INDEX} and description.ignore_index is not None:
            unlabeled.append(_mask_file(record))
        elif set(counts) == (set() if description.multilabel else {0}):
            single.append(_mask_file(record))
    first = report.pixels[splits[0]][:count]
    report.weights = median_frequency(first, present)
    findings = []
    if undeclared:
        values = sorted(set().union(*undeclared.values()))
        shown = ", ".join(map(description.encoding.name, values[:5])) + (", ..." if len(values) > 5 else "")
        findings.append(
            Finding(
                "error",
                f"{_number(undeclared, 'mask')} with values that are no class: {shown}.",
                "Give each value to a class or to `ignore` in what --write writes, and check that.",
                tuple(undeclared),
            )
        )
    if unlabeled:
        findings.append(
            Finding(
                "warning",
                f"{_number(unlabeled, 'mask')} without a single labeled pixel.",
                "Nothing is learned from them: label them, or take them away.",
                tuple(unlabeled),
            )
        )
    if single:
        findings.append(
            Finding(
                "note",
                f"{_number(single, 'image')} without a pixel of any class."
                if description.multilabel
                else f"{_number(single, 'mask')} with nothing but {description.class_names[0]}.",
                "Right if there is nothing else to see in the images.",
                tuple(single),
            )
        )
    for split in splits:
        lacking = [
            name for name, n in zip(description.class_names, report.pixels[split], strict=False) if not n
        ]
        if lacking:
            findings.append(
                Finding(
                    "warning",
                    f"no mask of {split} has a pixel of {_few(lacking)}.",
                    "It cannot be learned: add examples, or take the class out."
                    if split == splits[0]
                    else "Its score cannot be measured there: move some images, or divide anew.",
                )
            )
    return findings


def unreadable_files(records: Sequence[Record]) -> list[Finding]:
    """Find files that cannot be read, and masks of another size than their image."""
    findings = []
    broken = [record for record in records if record.errors]
    if broken:
        reasons = [error for record in broken for error in record.errors]
        files = tuple(path for record in broken for path in (record.pair.image, _mask_file(record)))
        files = tuple(path for path in dict.fromkeys(files) if any(path in reason for reason in reasons))
        findings.append(
            Finding(
                "error",
                f"{_number(reasons, 'file')} that cannot be read; the first: {reasons[0]}",
                "Fetch or export them anew, or take them away with their partners.",
                files,
            )
        )
    sizes = [
        (record, *record.image_size, *record.mask_size)
        for record in records
        if record.image_size and record.mask_size and record.image_size != record.mask_size
    ]
    if sizes:
        _, height, width, mask_height, mask_width = sizes[0]
        findings.append(
            Finding(
                "error",
                f"{_number(sizes, 'mask')} of another size than the image; the first is "
                f"{mask_height} x {mask_width}, its image {height} x {width} (height x width).",
                "Export them at the image's size; if sides are swapped, an EXIF orientation was lost.",
                tuple(_mask_file(record) for record, *_ in sizes),
            )
        )
    return findings


def odd_images(report: Report) -> list[Finding]:
    """Fill in the sizes, and find images that are far from the rest."""
    read = [record for record in report.records if record.image_size]
    if not read:
        return []
    sizes = np.array([record.image_size for record in read])
    height, width = np.median(sizes, axis=0).astype(int).tolist()
    report.size = (height, width)
    report.smallest, report.largest = (tuple(side(sizes, axis=0).tolist()) for side in (np.min, np.max))
    findings = _channels(report.description, read)
    brightness = np.array([record.brightness for record in read])
    sharpness = np.log(np.array([record.sharpness for record in read]) + 1e-3)
    if len(read) >= 10:
        usual = np.median(brightness)
        dark = brightness < min(usual / 3, 0.15) if usual > 0 else np.zeros(len(read), bool)
        spread = 1.4826 * np.median(np.abs(sharpness - np.median(sharpness)))  # of a normal distribution
        blurred = sharpness < np.median(sharpness) - max(4 * spread, np.log(8))
        for chosen, measure, text, advice in (
            (dark, brightness, "far darker than the rest", "Look at them: exposure, or an empty file?"),
            (blurred, sharpness, "far blurrier than the rest", "Look at them: out of focus, or empty?"),
        ):
            if chosen.any():
                worst = [i for i in np.argsort(measure).tolist() if chosen[i]]
                files = tuple(read[index].pair.image for index in worst)
                findings.append(Finding("warning", f"{_number(files, 'image')} {text}.", advice, files))
    overlapping = [r for r in report.records if r.overlaps]
    if overlapping and not report.description.multilabel:
        labels = report.description.labels
        claimed = sum(record.overlaps for record in overlapping)
        labeled = sum(count for r in report.records for value, count in r.values.items() if value)
        findings.append(
            Finding(
                "warning",
                f"{_number(overlapping, 'image')} with pixels of several classes, "
                f"{claimed} in all ({100 * claimed / labeled:.2g} % of those that have one).",
                f"A pixel is trained as one class, the later of {_few(labels)}: where another should lie on "
                "top, reorder `labels` in what --write writes, with their values; for several classes a "
                "pixel write `masks: multilabel` there.",
                tuple(record.pair.image for record in overlapping),
            )
        )
    noisy = [r for r in report.records if r.mask_size and r.specks > max(10, 1e-4 * np.prod(r.mask_size))]
    if noisy:
        noisy.sort(key=lambda record: -record.specks)
        findings.append(
            Finding(
                "warning",
                f"{_number(noisy, 'mask')} with single pixels of another class than all around them, "
                f"{sum(record.specks for record in noisy)} in all.",
                "Such noise comes from JPEG, interpolation or thresholds: export the masks anew.",
                tuple(_mask_file(record) for record in noisy),
            )
        )
    return findings


def _channels(description: DatasetDescription, records: Sequence[Record]) -> list[Finding]:
    """Find images that cannot be read with the channels of the others, or have another type."""
    findings = []
    channels, kinds = description.channels, Counter((r.channels, r.dtype) for r in records)
    shown = ", ".join(f"{count} of {number} x {dtype}" for (number, dtype), count in kinds.most_common(6))
    gray_or_color = (1, 3) if channels in (1, 3) else ()
    strange = [
        r.pair.image
        for r in records
        if not {r.channels, r.channels - r.has_alpha} & {channels, *gray_or_color}
    ]
    if strange:
        findings.append(
            Finding(
                "error",
                f"{_number(strange, 'image')} of other channels than the {channels} that are read "
                f"({shown}; channels x type).",
                "Take them away, or correct `channels` in what --write writes.",
                tuple(strange),
            )
        )
    elif len({number for number, _ in kinds}) > 1:
        few = min(kinds, key=lambda kind: kinds[kind])
        odd = tuple(r.pair.image for r in records if (r.channels, r.dtype) == few)
        text = f"{_number(odd, 'image')} of {few[0]} channel{'s' * (few[0] > 1)} among others."
        findings.append(Finding("note", text, f"All are read with {channels} channels.", odd))
    if len({dtype for _, dtype in kinds}) > 1:
        few_type = min(kinds, key=lambda kind: kinds[kind])[1]
        odd = tuple(r.pair.image for r in records if r.dtype == few_type)
        findings.append(
            Finding(
                "warning",
                f"{_number(odd, 'image')} of {few_type} among others ({shown}; channels x type).",
                "Whole numbers are divided by the largest of their type, so these may be far darker or "
                "brighter: store all alike.",
                odd,
            )
        )
    deep = tuple(r.pair.image for r in records if r.dtype == "uint16")
    largest = max((r.largest for r in records), default=0)
    if deep and 0 < largest < 2**15:
        findings.append(
            Finding(
                "warning",
                f"{_number(deep, 'image')} of 16 bits without a number above {largest}, as of "
                f"{largest.bit_length()} bits: nearly black, as 65535 is white.",
                "A training here measures mean and deviation, and loses nothing; for other programs, "
                f"multiply the numbers by {65535 // largest}.",
                deep,
            )
        )
    return findings


def duplicates(records: Sequence[Record]) -> list[Finding]:
    """Find images that are the same or nearly so, in one split or in several."""
    groups: dict[bytes, list[Record]] = defaultdict(list)
    for record in records:
        if record.digest:
            groups[record.digest].append(record)
    exact = [group for group in groups.values() if len(group) > 1]
    firsts = [group[0] for group in groups.values()]
    near = [[firsts[at] for at in group] for group in near_duplicates([r.difference_hash for r in firsts])]
    findings = []
    for kind, found in (("the same", exact), ("nearly the same", near)):
        across = [group for group in found if len({record.split for record in group}) > 1]
        within = [group for group in found if len({record.split for record in group}) == 1]
        if across:
            findings.append(
                Finding(
                    "warning",
                    f"{_number(across, 'group')} of {kind} images in more than one split.",
                    "Scores will be too good: keep each group in one split.",
                    tuple(record.pair.image for group in across for record in group),
                )
            )
        if within:
            findings.append(
                Finding(
                    "note",
                    f"{_number(within, 'group')} of {kind} images within a split.",
                    "They count several times: keep one of each group.",
                    tuple(record.pair.image for group in within for record in group),
                )
            )
    return findings


def _mask_file(record: Record) -> str:
    """Return the file that names a mask: the image's where one file is on all masks."""
    return record.pair.image if record.pair.is_shared else record.pair.masks[0]


def _number(things: Iterable, noun: str) -> str:
    count = len(list(things))
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
