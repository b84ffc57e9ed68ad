"""What a data set is made of and what is wrong with it, found by reading every file once."""

from collections.abc import Callable
from pathlib import Path

from vitseg_zoo.data.check_report import Finding, Report
from vitseg_zoo.data.description import FILE_NAME, DatasetDescription, read_description
from vitseg_zoo.data.findings import (
    count_classes,
    duplicates,
    files_alone,
    odd_images,
    other_labels,
    unreadable_files,
)
from vitseg_zoo.data.layouts import list_files
from vitseg_zoo.data.segmentation_folder import describe, find_parts
from vitseg_zoo.data.survey import survey


def check(path: str | Path, progress: Callable[[int, int], None] | None = None) -> Report:
    """Read all images and masks of a folder, on all cores, and find what is wrong with them.

    Args:
        path: The folder of images and masks, or a dataset.yaml.
        progress: Called with the number of pairs that were read and of all.

    Raises:
        FileNotFoundError: If there are no images with masks.
        ValueError: If the masks cannot be understood at all, or dataset.yaml cannot be read.

    Example:
        >>> report = check("camvid")  # doctest: +SKIP
        >>> [finding.text for finding in report.findings if finding.level == "error"]  # doctest: +SKIP
        []
    """
    path = Path(path).expanduser()
    if path.is_dir() and (path / FILE_NAME).is_file():
        path = path / FILE_NAME
    if path.is_file():
        known = read_description(path)
        description: DatasetDescription | None = known
        root, files = known.root, list_files(known.root)
        matched = known.match(files)
    else:
        description = None
        root, parts, matched, files = find_parts(path)
    pairs = [(split, pair) for split, found in matched.items() for pair in found.pairs]
    if not pairs:
        raise FileNotFoundError(f"{path} has no images with masks: none of the files' names agree.")
    records = []
    for record in survey(root, pairs):
        records.append(record)
        if progress is not None:
            progress(len(records), len(pairs))
    findings: list[Finding] = []
    if description is None:
        if all(not record.values for record in records):
            raise ValueError(f"no mask of {path} can be read: {records[0].errors[-1]}")
        description, notes, _ = describe(root, parts, files, records)
        findings += [
            Finding("warning" if "pixels (" in n or "are these" in n else "note", f"{n}.", "")
            for n in notes.notes
        ]
        findings += other_labels(description, files, records)
    report = Report(description, records)
    findings += files_alone(matched)
    findings += count_classes(report)
    findings += unreadable_files(records)
    findings += odd_images(report)
    findings += duplicates(records)
    order = {"error": 0, "warning": 1, "note": 2}
    report.findings = sorted(findings, key=lambda finding: order[finding.level])
    return report
