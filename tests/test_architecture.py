"""Imports within the package show its layers, and never lead back to where they came from."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitseg_zoo"
NETWORKS = {"ops", "encoders", "decoders", "architectures", "acceleration"}
# What each folder may import of the others; modules beside the folders are free to all but `ops`.
MAY_IMPORT = {
    "ops": set(),
    "encoders": {"ops"},
    "decoders": {"ops"},
    "architectures": {"ops", "encoders", "decoders"},
    "acceleration": {"ops", "decoders", "architectures"},
    "data": set(),
    "weights": set(),
    "training": {*NETWORKS, "data", "weights"},
    "inference": {*NETWORKS, "data", "weights"},
    "comparison": {*NETWORKS, "data", "weights", "training", "inference"},
    "cli": {*NETWORKS, "data", "weights", "training", "inference", "comparison"},
}
# The doors from networks to files and the network.
DOORS = {"encoders.pretrained": {"weights"}, "architectures.hub": {"weights"}}
# Names of tensors in other libraries' checkpoints, beside the network as in timm, which know no network.
CHECKPOINTS = {"encoders.mix_checkpoints", "decoders.segnet_checkpoints"}


def imports() -> dict[str, set[str]]:
    """What each module imports of the package, anywhere in its code; names without the package's."""
    paths = {".".join(p.relative_to(PACKAGE).with_suffix("").parts): p for p in PACKAGE.rglob("*.py")}
    modules = {name.removesuffix(".__init__"): path for name, path in paths.items()}
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vitseg_zoo"):
                base = node.module.removeprefix("vitseg_zoo").removeprefix(".")
                for alias in node.names:
                    full = f"{base}.{alias.name}".removeprefix(".")
                    found.add(full if full in modules else base)
            elif isinstance(node, ast.Import):
                found |= {
                    alias.name.removeprefix("vitseg_zoo.")
                    for alias in node.names
                    if alias.name.startswith("vitseg_zoo.")
                }
        graph[name] = found - {""}
    return graph


def test_no_module_imports_what_imports_it() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, with the circle


def test_ops_know_torch_only() -> None:
    for path in (PACKAGE / "ops").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            roots = {name.partition(".")[0] for name in names}
            assert roots <= {"torch", "vitseg_zoo", *sys.stdlib_module_names}, f"{path.name}: {roots}"


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_layers(folder: str) -> None:
    for module, found in imports().items():
        if module.partition(".")[0] != folder:
            continue
        allowed = {folder} | MAY_IMPORT[folder] | DOORS.get(module, set())
        for name in found - (CHECKPOINTS if folder == "weights" else set()):
            room = name.partition(".")[0]
            assert room in allowed or (room not in MAY_IMPORT and folder != "ops"), f"{module} imports {name}"
