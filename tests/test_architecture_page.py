"""docs/project/architecture.md names every file, with the first paragraph of its docstring."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def _tree() -> str:
    """Draw the package and the recipes, a line a file."""
    lines = []
    for top in ("vitseg_zoo", "recipes"):
        folders = sorted({path.parent for path in (ROOT / top).rglob("*.py")})
        for folder in folders:
            lines.append(f"{folder.relative_to(ROOT).as_posix()}/")
            for path in sorted(folder.glob("*.py")):
                text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
                summary = " ".join(text.split("\n\n")[0].split())
                lines.append(f"  {path.name:26} {summary}")
    return "\n".join(lines)


def test_the_page_has_the_tree() -> None:
    page = (ROOT / "docs" / "project" / "architecture.md").read_text(encoding="utf-8")
    tree = _tree()
    assert tree in page, f"docs/project/architecture.md should hold this:\n{tree}"
