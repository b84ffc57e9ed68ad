"""Every Python code block of the README and of docs runs, but those marked as needing the network.

A block runs in the names of those before it on its page. The mark, which no reader sees, is
`<!-- skip: next if(offline, reason="needs the network") -->` in the line above.
"""

import contextlib
import unittest
from pathlib import Path

import pytest
from huggingface_hub import constants
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

from vitseg_zoo.data import synthetic

ROOT = Path(__file__).parents[1]


PAGES = ["README.md", *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
_SLOW = {"docs/how_to/export.md"}  # as exporting is


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=[pytest.mark.slow] * (page in _SLOW)) for page in PAGES]
)
def test_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = synthetic.SyntheticPets  # thousands of pictures take minutes
    monkeypatch.setattr(synthetic, "SyntheticPets", lambda count, *args, **kwargs: draw(3, *args, **kwargs))
    monkeypatch.chdir(tmp_path)
    document = Sybil([PythonCodeBlockParser(), SkipParser()]).parse(ROOT / page)
    document.namespace["offline"] = constants.HF_HUB_OFFLINE
    for example in document.examples():
        with contextlib.suppress(unittest.SkipTest):
            example.evaluate()
