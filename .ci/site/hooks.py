"""What the site adds to its pages: references, and a look at docstrings, images and links out of docs."""

import argparse
import contextlib
import inspect
import io
import pkgutil
import re
import textwrap
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

import vitseg_zoo
from vitseg_zoo import cli

# A link to what is not part of the site: its text and, below the repository, its path.
_OUTSIDE = re.compile(r"\[([^]]*)\]\((?:\.\./)+((?:recipes|vitseg_zoo|tests|README|LICENSE|\.\w+)[^)]*)\)")

_PAGE = re.compile(r'href="(\.\./[\w/]+)\.md(#[^"]*)?"')


def on_page_markdown(markdown: str, config: Any, **kwargs: Any) -> str:
    """Write references where a page asks for them; link what is outside to the repository, if known."""
    markdown = markdown.replace("<!-- public names -->", public_names())
    markdown = markdown.replace("<!-- commands -->", commands())
    check_docstrings(markdown)
    link = rf"[\1]({config.repo_url}/blob/main/\2)" if config.repo_url else r"\1"
    return _OUTSIDE.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, **kwargs: Any) -> str:
    """Refuse an image that says nothing to who cannot see it; turn notebooks' links from files to pages."""
    if page.file.src_path.endswith(".ipynb"):
        for path in _PAGE.findall(html):
            if not (Path(config.docs_dir) / page.file.src_path).parent.joinpath(f"{path[0]}.md").exists():
                raise PluginError(f"{page.file.src_path} links to {path[0]}.md, which is not there.")
        html = _PAGE.sub(r'href="../\1/\2"', html)
    for image in re.findall(r"<img [^>]*>", html):
        if not re.search(r'alt="[^"]+"', image):
            raise PluginError(f"{page.file.src_path}: {image} needs an alternative text.")
    return html


def public_names() -> str:
    """Ask mkdocstrings for all that `import vitseg_zoo` gives."""
    names = [name for name in vitseg_zoo.__all__ if not name.startswith("_")]
    return "\n\n".join(f"::: {vitseg_zoo._PUBLIC[name]}.{name}" for name in names)


def check_docstrings(markdown: str) -> None:
    """Refuse a name of the reference, or a public one in it, that has no docstring."""
    for path in re.findall(r"^::: ([\w.]+)", markdown, re.M):
        _check_docstring(path, pkgutil.resolve_name(path))


def _check_docstring(path: str, shown: Any) -> None:
    if not shown.__doc__:  # its own: a class without one would have its base's
        raise PluginError(f"{path} has no docstring.")
    for name, member in vars(shown).items() if inspect.ismodule(shown) or inspect.isclass(shown) else ():
        if name.startswith("_") or name == "forward":
            continue
        if inspect.ismodule(shown) and getattr(member, "__module__", "") == path and callable(member):
            _check_docstring(f"{path}.{name}", member)
        # A method may have that of the method that it stands for, as Lightning's hooks do.
        is_method = callable(member) or isinstance(member, property | classmethod | staticmethod)
        if inspect.isclass(shown) and is_method and not inspect.getdoc(getattr(shown, name)):
            raise PluginError(f"{path}.{name} has no docstring.")


def commands() -> str:
    """Give all commands by group, each with the help that it prints."""
    parts = []
    for group, names in cli.COMMANDS.items():
        parts.append(f"## {group.capitalize()}")
        for name, text in names.items():
            parts.append(f"### vitseg {name}\n\n{text[0].upper()}{text[1:]}.\n\n```text\n{_help(name)}\n```")
    return "\n\n".join(parts)


def _help(name: str) -> str:
    parser = cli._make_parser(name)
    subparsers = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        subparsers.choices[name].print_help()  # what --help does: `vitseg train` shows its recipe's options
    lines = text.getvalue().strip().splitlines()
    return "\n".join(textwrap.fill(line, 80) if len(line) > 110 else line.rstrip() for line in lines)
