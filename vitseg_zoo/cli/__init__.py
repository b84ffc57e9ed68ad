"""The command `vitseg`: `vitseg NAME` is the module `vitseg_zoo.cli.NAME`, imported when it is called.

Each has `add_arguments(parser)` and `run(args) -> int`, the exit code.
"""

import argparse
import importlib
import importlib.metadata
import re
import sys
from types import ModuleType

from vitseg_zoo.terminal import end_with_the_reader, say

# Group -> command -> what `vitseg --help` says of it.
COMMANDS = {
    "look": {
        "list": "list models, encoders and architectures of the zoo",
        "info": "show all that is known of a model or an encoder",
        "trace": "show how a tensor's shape changes step by step through a model",
        "bench": "measure models that take turns: time, throughput, memory, operations",
    },
    "train": {
        "augment": "show what a training will see of an image, by a preset of augmentations",
        "check": "look through images and masks of your own: layout, classes, what is wrong",
        "quickstart": "train ViT-seg next to a CNN in minutes, without a download",
        "train": "train a model on your own images and masks",
        "compare": "put trainings side by side in one report, and train what is missing",
        "recipe": "list the training recipes, or copy one here to edit it",
    },
    "use": {
        "evaluate": "measure a model on images with masks: scores, errors, confidence",
        "predict": "write masks and overlays of images, at their own size",
        "demo": "serve a page on which an image is dropped and segmented",
        "export": "write a model for ONNX Runtime, OpenVINO or torch.export, compared with PyTorch",
    },
    "weights": {
        "download": "fetch weights, also for a machine without network",
        "convert": "turn a foreign checkpoint into one self-describing file",
    },
}


def main(argv: list[str] | None = None) -> int:
    """Run `vitseg COMMAND ...`; user errors end with one line and exit code 1, or 2 for bad arguments."""
    argv = sys.argv[1:] if argv is None else argv
    name = argv[0] if argv else ""
    try:
        with end_with_the_reader():
            parser = _make_parser(name)
            args = parser.parse_args(argv)
            return args.run(args)
    except ModuleNotFoundError as error:
        say(f"vitseg {name}: {_what_to_install(error)}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        message = str(message).partition(", supported encoders")[0]  # SMP would list hundreds
        message = message.replace("\n", " ")
        say(f"vitseg {name}: {message}", file=sys.stderr)
        return 1


def load_command(name: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"{__name__}.{name}")


def _make_parser(called: str) -> argparse.ArgumentParser:
    """Make the parser of all commands; only the one that is called is imported and has its arguments."""
    width = max(len(name) for commands in COMMANDS.values() for name in commands)
    groups = [
        "\n".join([f"{group}:", *(f"  {name:{width}}  {text}" for name, text in commands.items())])
        for group, commands in COMMANDS.items()
    ]
    parser = argparse.ArgumentParser(
        prog="vitseg",
        usage="vitseg [-h] COMMAND ...",
        description="Transformer segmentation for timm and SMP.",
        epilog="\n\n".join([*groups, "`vitseg COMMAND --help` shows a command's options."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(
        prog="vitseg", metavar="COMMAND", required=True, help=argparse.SUPPRESS
    )
    for commands in COMMANDS.values():
        for name, text in commands.items():
            subparser = subparsers.add_parser(name, description=text)
            if name == called:
                command = load_command(name)
                command.add_arguments(subparser)
                subparser.set_defaults(run=command.run)
    return parser


def _what_to_install(error: ModuleNotFoundError) -> str:
    """Name the missing package, and the extra of this one that brings it."""
    module = (error.name or "").partition(".")[0]
    if module in ("", "vitseg_zoo"):  # not a package that could be installed: a defect, to be seen whole
        raise error
    distribution = re.escape(module.replace("_", "-"))
    for requirement in importlib.metadata.requires("vitseg-zoo") or ():
        if found := re.match(rf"{distribution}(?![\w.-]).*extra == \W(\w+)", requirement, re.IGNORECASE):
            return f'needs {module}, which is not installed: pip install "vitseg-zoo[{found[1]}]" brings it.'
    return f"needs {module}, which is not installed."
