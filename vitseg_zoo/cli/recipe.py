"""`vitseg recipe`: the recipes that come with the package, for copying."""

import argparse
import ast
from importlib.resources import files
from pathlib import Path

from vitseg_zoo.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg recipe`."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="copy this one here; without, all are listed")


def run(args: argparse.Namespace) -> int:
    """List the recipes, or copy one into the working folder, never over a file."""
    recipes = {
        entry.name.removesuffix(".py"): entry
        for entry in files("vitseg_zoo.recipes").iterdir()
        if entry.name.endswith(".py") and entry.name != "__init__.py"
    }
    if args.name is None:
        width = max(map(len, recipes))
        for name in sorted(recipes):
            docstring = ast.get_docstring(ast.parse(recipes[name].read_text(encoding="utf-8"))) or ""
            say(f"{name:{width}}  {docstring.splitlines()[0]}")
        return 0
    name = args.name.removesuffix(".py")
    if name not in recipes:
        raise ValueError(f"there is no recipe {name!r}, only {', '.join(sorted(recipes))}.")
    target = Path(f"{name}.py")
    try:
        with open(target, "x", encoding="utf-8") as file:
            file.write(recipes[name].read_text(encoding="utf-8"))
    except FileExistsError:
        raise FileExistsError(f"{target} is here already: rename it, or copy into another folder.") from None
    say(f"{target}: edit it, and run `python {target} --help`.")
    return 0
