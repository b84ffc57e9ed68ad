"""`vitseg train`: the recipe own_data as it is."""

import argparse

from vitseg_zoo.recipes import own_data
from vitseg_zoo.training.config import from_command_line


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `vitseg train`; all but the folder are the recipe's own."""
    parser.usage = "vitseg train DIR --out RUN [OPTION ...]"
    parser.add_argument("data", metavar="DIR", help="folder of images and masks")
    parser.add_argument("options", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    parser.print_help = lambda file=None: _read(["--help"])  # type: ignore[method-assign]  # of the recipe


def run(args: argparse.Namespace) -> int:
    """Train."""
    own_data.main(_read(["--data", args.data, *args.options]))
    return 0


def _read(words: list[str]) -> own_data.Config:
    return from_command_line(own_data.Config, own_data.__doc__, words, "vitseg train")
