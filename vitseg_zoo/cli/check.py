"""`vitseg check`: what a folder of images and masks is, and what is wrong with it, before hours are lost."""

import argparse
from collections import Counter
from pathlib import Path

from vitseg_zoo.data.check import check
from vitseg_zoo.data.check_report import Finding, Report
from vitseg_zoo.data.description import write_description
from vitseg_zoo.data.layouts import Part
from vitseg_zoo.data.planes import has_planes
from vitseg_zoo.terminal import Progress, printable, say

_SHOWN = 5  # files of a finding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add = parser.add_argument
    add("data", type=Path, help="folder of images and masks in any layout, or its dataset.yaml")
    add("--write", type=Path, metavar="FILE", help="write what was understood, as dataset.yaml, for training")
    add("--html", type=Path, metavar="FILE", help="write a page with pictures of each class and finding")
    add("--convert", type=Path, metavar="DIR", help="write a copy in the plain layout into a new folder")


def run(args: argparse.Namespace) -> int:
    """Print the report; the exit code is 1 where a training would stop at something."""
    report = check(args.data, Progress("pairs read"))
    for line in _text(report).split("\n"):
        say(line)
    if args.write:
        write_description(report.description, args.write)
        say()
        say(f"written: {args.write}")
    if args.html:
        from vitseg_zoo.data.check_page import write_page

        write_page(report, args.html)
        say()
        say(f"written: {args.html}")
    if args.convert:
        from vitseg_zoo.data.convert import convert

        count = convert(report.description, args.convert)
        say()
        say(f"written: {count} images with masks in {args.convert}")
    return int(report.has_errors)


def _text(report: Report) -> str:
    description = report.description
    counts = {split: sum(record.split == split for record in report.records) for split in report.pixels}
    lines = [
        f"{description.root}: {len(report.records)} images with masks, "
        + ", ".join(f"{split} {count}" for split, count in counts.items())
    ]
    lines += [f"  {split}: {_part(part)}" for split, part in description.parts.items()]
    if set(description.parts) == {"all"}:
        lines.append(f"  divided at random, seed {description.seed}: {description.val:.0%} to measure on")
    kinds_of_masks = {
        "gray": "gray levels",
        "colors": "colors",
        "multilabel": "multi-label, one of each class, of which a pixel may have several",
    }
    kind = kinds_of_masks[description.encoding.kind]
    if not description.multilabel and has_planes(report.records[0].pair):
        kind = "a plane a class"
    elif description.encoding.is_plain:
        kind = "class numbers"
    lines.append(f"masks: {kind}")
    kinds = Counter((r.channels, r.dtype) for r in report.records if r.channels)
    lines.append(
        "images: "
        + ", ".join(f"{channels} x {dtype}" for channels, dtype in kinds)
        + f", read with {description.channels} channel{'s' * (description.channels > 1)}"
    )
    (low_h, low_w), (high_h, high_w) = report.smallest, report.largest
    lines.append(f"sizes (height x width): {low_h} x {low_w} to {high_h} x {high_w}")
    lines.append(f"{report.advice}\n")
    lines += _table(report)
    lines.append("")
    lines += [line for finding in report.findings for line in _finding(finding)]
    if not report.findings:
        lines.append("nothing is wrong.")
    return "\n".join(map(printable, "\n".join(lines).split("\n")))


def _part(part: Part) -> str:
    if part.table:
        return f"{part.table}, columns {part.images} and {part.masks}"
    listed = f", listed in {part.names}" if part.names else ""
    return f"{part.images} with {part.masks}{listed}"


def _table(report: Report) -> list[str]:
    """Format the classes with their values, shares of pixels, numbers of images, and suggested weights."""
    encoding, names = report.description.encoding, report.description.class_names
    values: dict[int, list[str]] = {}
    for value, index in encoding.values.items():
        values.setdefault(index, []).append(encoding.name(value))
    header = ["class", "values"]
    rows = [[name, ", ".join(values.get(index, [])[:4])] for index, name in enumerate(names)]
    if report.description.ignore_index is not None:
        rows.append(["(no label)", ", ".join(values.get(report.description.ignore_index, [])[:4])])
    if report.description.multilabel:
        rows += [["(no class)", ""], ["(several)", ""]]
    for split, pixels in report.pixels.items():
        header += [f"{split} pixels", "images"]
        total = max(1, report.totals[split])
        for row, count, images in zip(rows, pixels, report.images[split], strict=False):
            row += [f"{100 * count / total:.2f} %", str(images)]
    header.append("weight")
    for row, weight in zip(rows, [*report.weights, None, None], strict=False):
        row.append("" if weight is None else f"{weight:.3g}")
    widths = [max(len(row[at]) for row in [header, *rows]) for at in range(len(header))]
    return [
        "  ".join(f"{cell:{'<' if at < 2 else '>'}{widths[at]}}" for at, cell in enumerate(row)).rstrip()
        for row in [header, *rows]
    ]


def _finding(finding: Finding) -> list[str]:
    lines = [f"{finding.level}: {finding.text} {finding.advice}".rstrip()]
    if finding.files:
        more = len(finding.files) - _SHOWN
        shown = [repr(file)[1:-1] for file in finding.files[:_SHOWN]]
        lines.append("  " + ", ".join(shown) + (f" and {more} more" if more > 0 else ""))
    return lines
