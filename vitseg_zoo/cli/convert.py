"""`vitseg convert IN OUT.safetensors`: a foreign checkpoint as one file that says what model it is of."""

import argparse

from vitseg_zoo.terminal import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "source", metavar="IN", help="checkpoint of any kind, a folder of `save_pretrained`, or a name"
    )
    parser.add_argument("target", metavar="OUT.safetensors", help="file to write")
    parser.add_argument("--license", metavar="NAME", help="of the weights, where the file does not say it")


def run(args: argparse.Namespace) -> int:
    """Convert; print what was recognized and what was left over."""
    from pathlib import Path

    from vitseg_zoo.weights.metadata import METADATA
    from vitseg_zoo.weights.saving import convert_file

    if not args.target.endswith(".safetensors"):
        raise ValueError(f"The file to write should end in .safetensors, got {args.target}.")
    known = {} if args.license is None else {"license": args.license}
    report, metadata = convert_file(args.source, args.target, **known)
    say(report)
    arguments = ", ".join(f"{key}={value!r}" for key, value in metadata["arguments"].items())
    say(f"model: smp.create_model({metadata['architecture']!r}, {arguments})")
    say(f"source: {metadata['source']}")
    unknown = [key for key in METADATA[:4] if key not in metadata]
    if metadata["license"] == "unknown":
        unknown.append("license")
    if assumed := metadata.get("assumed"):
        say(f"assumed, as nothing says them: {' and '.join(assumed)} of ImageNet")
    if unknown:
        say(f"not known, and not in the file: {', '.join(unknown)}")
    say(f"written: {Path(args.target)} ({Path(args.target).stat().st_size / 1e6:.1f} MB)")
    return 0
