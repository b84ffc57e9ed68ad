"""What the package imports is what it declares."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# OpenCV comes with albumentations; transformers is only accelerated where it is installed.
NOT_OURS = {"opencv-python-headless", "transformers"}


def test_every_import_is_declared():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    ours = ("train", "annotations", "geo", "video", "demo", "export", "openvino")
    lines = project["dependencies"] + [line for name in ours for line in extras[name]]
    declared = {re.match(r"[\w-]+", line)[0].lower().replace("_", "-") for line in lines}
    imported = set()
    for path in (ROOT / "vitseg_zoo").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(node.module.partition(".")[0])
    packages = importlib.metadata.packages_distributions()
    for module in imported - sys.stdlib_module_names - {"vitseg_zoo"}:
        names = {name.lower().replace("_", "-") for name in packages.get(module, [module])}
        assert names & (declared | NOT_OURS), module


def test_ci_tests_the_lowest_versions_that_are_declared():
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    constraints = ROOT / ".ci" / "lowest.txt"
    if not constraints.exists():
        pytest.skip("no checkout")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = project["dependencies"] + project["optional-dependencies"]["train"]
    lowest = dict(re.findall(r"^([\w-]+)==([\d.]+)$", constraints.read_text(), re.MULTILINE))
    for name, version in lowest.items():
        (line,) = (line for line in lines if re.match(r"[\w-]+", line)[0] == name)
        declared = re.search(r">=([\d.]+)", line)[1]
        assert version == declared or version == f"{declared}.0", line
