"""`vitseg download NAME`: fetch weights into the cache, or into a folder for a machine without network."""

import argparse

from vitseg_zoo.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("names", nargs="+", metavar="NAME", help="name of weights, as `vitseg list` shows it")
    parser.add_argument(
        "--to", metavar="DIR", help="folder to put files into instead of the cache, made if need be"
    )


def run(args: argparse.Namespace) -> int:
    """Download; print where each file is."""
    from vitseg_zoo.weights.catalog import get_entry
    from vitseg_zoo.weights.download import FOLDER_VARIABLE, download_to, fetch
    from vitseg_zoo.weights.license import license_notice

    for entry in [get_entry(name) for name in args.names]:
        if notice := license_notice(entry.name, entry.commercial_use, entry.license):
            say(notice)
        say(download_to(entry, args.to) if args.to else fetch(entry))
    if args.to:
        say(f"On the other machine, set {FOLDER_VARIABLE} to where you copy {args.to}.")
    return 0
