"""Draws docs/images/speed.svg and its like from the tables of docs/how_to/speed.md and docs/how_to/gpu.md.

python .ci/site/plots.py
"""

import math
import re
from html import escape
from pathlib import Path
from typing import NamedTuple

DOCS = Path(__file__).parents[2] / "docs"
IMAGES = DOCS / "images"
# Okabe and Ito's colors, which color-blind people can tell apart; the shapes say the same.
COLORS = {"here": "#0072b2", "SMP": "#d55e00", "Hugging Face": "#cc79a7"}
WIDTH, LEFT, RIGHT, TOP, LINE, BOTTOM = 600, 220, 70, 66, 24, 34


class Row(NamedTuple):
    """A line of a plot: what was measured, what each took, and how many times more the slowest took."""

    name: str
    values: dict[str, float]
    ratio: str


def main() -> None:
    """Draw all plots."""
    measured = _tables((DOCS / "how_to" / "speed.md").read_text(encoding="utf-8"), "against, what")
    for name, machine, table in zip(("", "_amx"), ("AVX2", "AMX"), measured, strict=True):
        memory = [_pair(cells) for cells in table if "memory" in cells[1]]
        times = [_pair(cells) for cells in table if "memory" not in cells[1]]
        _plot(f"speed{name}", f"SegFormer, two cores with {machine}: seconds, less is better", times)
        _plot(f"memory{name}", f"SegFormer, two cores with {machine}: MB of memory, less is better", memory)
    # The first of the page is counted, the others are for a card to fill.
    counted, *_ = _tables((DOCS / "how_to" / "gpu.md").read_text(encoding="utf-8"), "predict, batch 16")
    rows = [row for cells in counted if "SMP" in cells[2] for row in _counted(cells)]
    _plot("gpu", "SegFormer on an H100: milliseconds, counted and not measured", rows)


def _tables(page: str, heading: str) -> list[list[list[str]]]:
    """Find the tables whose first line has a heading, as rows of cells."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", page, re.M):
        rows = [[cell.strip(" *`") for cell in line.strip("|").split("|")] for line in block.splitlines()]
        if heading in rows[0]:
            found.append(rows[2:])
    return found


def _pair(cells: list[str]) -> Row:
    """Read `| B0 | SMP, logits, 512 | 633 ms | 159 ms | ...`, as seconds or MB."""
    peer, what = cells[1].split(", ", 1)
    what = what.removeprefix("memory, ")
    return Row(f"{cells[0]}, {what}", {peer: _value(cells[2]), "here": _value(cells[3])}, cells[4])


def _value(text: str) -> float:
    number, unit = text.split()
    return float(number) * {"ms": 0.001, "s": 1, "MB": 1}[unit]


def _counted(cells: list[str]) -> list[Row]:
    """Read `| SegFormer B0 | 4.8 | SMP 9.6, Hugging Face 6.9 | 10.5 | SMP 15.8, ...`."""
    rows = []
    for what, here, peers in (("predict, batch 16", *cells[1:3]), ("train, batch 8", *cells[3:5])):
        others = dict(peer.rsplit(" ", 1) for peer in peers.split(", "))
        values = {**{name: float(value) for name, value in others.items()}, "here": float(here)}
        ratio = f"{max(values.values()) / values['here']:.1f}"
        rows.append(Row(f"{cells[0].split()[-1]}, {what}", values, ratio))
    return rows


def _plot(name: str, title: str, rows: list[Row]) -> None:
    """Draw a line a row: a mark for each party on a logarithmic axis, and how far they are apart."""
    height = TOP + LINE * len(rows) + BOTTOM
    everything = [value for row in rows for value in row.values.values()]
    low, high = math.log10(min(everything)) - 0.08, math.log10(max(everything)) + 0.08

    def across(value: float) -> float:
        return round(LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT), 1)

    steps = (1, 2, 5) if high - low < 2.4 else (1,)
    ticks = [step * 10.0**power for power in range(math.floor(low), math.ceil(high)) for step in steps]
    ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
    parts = [_text(14, 22, title, 14, "start", weight="600")]
    parties = [party for party in COLORS if any(party in row.values for row in rows)]
    for party, x in zip(parties, range(LEFT, WIDTH, 70), strict=False):
        parts += [_mark(party, x, 44), _text(x + 12, 48, party, 13, "start")]
    floor = height - BOTTOM
    for tick in ticks:
        parts.append(f'<path d="M{across(tick)} {TOP - 6} V{floor}" stroke="#ddd"/>')
        parts.append(_text(across(tick), floor + 18, f"{tick:,g}", 13))
    for number, row in enumerate(rows):
        y = TOP + LINE * (number + 0.5)
        ends = sorted(across(value) for value in row.values.values())
        parts.append(_text(LEFT - 14, y + 4, row.name, 13, "end"))
        parts.append(f'<path d="M{ends[0]} {y} H{ends[-1]}" stroke="#999" stroke-width="2"/>')
        parts += [_mark(party, across(value), y) for party, value in row.values.items()]
        parts.append(_text(WIDTH - 12, y + 4, f"{row.ratio} x", 13, "end"))
    said = f"{title}. " + "; ".join(
        f"{row.name}: " + ", ".join(f"{party} {value:g}" for party, value in row.values.items())
        for row in rows
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" role="img" '
        f'font-family="sans-serif"><title>{escape(said)}</title>'
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>\n'
    )
    (IMAGES / f"{name}.svg").write_text(head + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


def _mark(party: str, x: float, y: float) -> str:
    """Draw a circle, a square or a diamond."""
    color = COLORS[party]
    if party == "here":
        return f'<circle cx="{x}" cy="{y}" r="6" fill="{color}"/>'
    turn = f' transform="rotate(45 {x} {y})"' if party == "Hugging Face" else ""
    return f'<rect x="{x - 5}" y="{y - 5}" width="10" height="10" fill="{color}"{turn}/>'


def _text(x: float, y: float, text: str, size: int, anchor: str = "middle", weight: str = "400") -> str:
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" '
        f'fill="#222">{escape(text)}</text>'
    )


if __name__ == "__main__":
    main()
