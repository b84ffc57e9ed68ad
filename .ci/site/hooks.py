"""What the site adds to its pages: references, and a look at images and at links out of docs."""

import argparse
import inspect
import re
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
    """Ask mkdocstrings for all that `import vitseg_zoo` gives; a name without a docstring ends the build."""
    names = [name for name in vitseg_zoo.__all__ if not name.startswith("_")]
    for name in names:
        if not inspect.getdoc(getattr(vitseg_zoo, name)):
            raise PluginError(f"vitseg_zoo.{name} has no docstring.")
    return "\n\n".join(f"::: {vitseg_zoo._PUBLIC[name]}.{name}" for name in names)


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
    return subparsers.choices[name].format_help().strip()
