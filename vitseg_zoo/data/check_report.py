"""What a check of a data set found: numbers of its files and classes, and what is wrong with them."""

from dataclasses import dataclass, field

import numpy as np

from vitseg_zoo.data.description import DatasetDescription
from vitseg_zoo.data.survey import Record


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or that a person should know.

    Attributes:
        level: "error" (a training would stop at it), "warning", or "note".
        text: What, in one sentence.
        advice: What to do.
        files: Which files, relative to the data's folder.
    """

    level: str
    text: str
    advice: str
    files: tuple[str, ...] = ()


@dataclass
class Report:
    """What `check` found out.

    Attributes:
        description: Where the files are and what the masks mean, as dataset.yaml says it.
        records: What was measured of each pair.
        findings: The worst first.
        pixels: Split -> pixels of each class, and last of those without a label; of multi-label masks last of
            those of no class and of those of several.
        images: Split -> images that have the class.
        totals: Split -> pixels of all masks.
        weights: Suggested weight of each class in the loss: the median frequency over its own, by
            D. Eigen and R. Fergus, ICCV 2015 (section 6.3.2), of the first split; 0 where it has none.
        size: Median (height, width).
        smallest: Smallest height and width.
        largest: Largest height and width.
    """

    description: DatasetDescription
    records: list[Record]
    findings: list[Finding] = field(default_factory=list)
    pixels: dict[str, np.ndarray] = field(default_factory=dict)
    images: dict[str, np.ndarray] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    size: tuple[int, int] = (0, 0)
    smallest: tuple[int, int] = (0, 0)
    largest: tuple[int, int] = (0, 0)

    @property
    def has_errors(self) -> bool:
        """Whether a training on these data would stop."""
        return any(finding.level == "error" for finding in self.findings)

    @property
    def advice(self) -> str:
        """The size to train at, in a sentence."""
        height, width = self.size
        if max(height, width) > 1024:
            return (
                f"images are large (median {height} x {width}): train on parts at full resolution, and "
                "predict in tiles (vitseg train --crop)"
            )
        side = min(512, max(64, round(float(np.sqrt(height * width)) / 32) * 32))
        return f"a suggested image size is {side} (median {height} x {width}, height x width)"
