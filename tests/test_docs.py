"""Every Python code block of the README and of docs runs, but those marked as needing the network.

A block runs in the names of those before it on its page. The mark, which no reader sees, is
`<!-- skip: next if(offline, reason="needs the network") -->` in the line above. Drawings and plots are
those of their scripts, and so of the tables that they show.
"""

import contextlib
import runpy
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


@pytest.mark.parametrize("script", ["drawings", "plots"])
def test_pictures_are_those_that_their_script_draws(script: str, tmp_path: Path) -> None:
    module = runpy.run_path(str(ROOT / ".ci" / "site" / f"{script}.py"))
    module["main"].__globals__["IMAGES"] = tmp_path
    module["main"]()
    for path in tmp_path.iterdir():
        drawn = (ROOT / "docs" / "images" / path.name).read_text(encoding="utf-8")
        assert path.read_text(encoding="utf-8") == drawn, f"Run python .ci/site/{script}.py"
    assert len(list(tmp_path.iterdir())) >= 5
