"""The command `vitseg`: one subcommand a module, imported when it is called."""

import argparse
import importlib
import os
import sys

# Name -> (module with `add_arguments(parser)` and `run(args) -> int`, what `vitseg --help` says of it).
COMMANDS = {
    "quickstart": ("vitseg_zoo.cli.quickstart", "train ViT-seg next to a CNN in minutes, without a download"),
    "predict": ("vitseg_zoo.cli.predict", "write masks and overlays of images, at their own size"),
    "list": ("vitseg_zoo.cli.list", "list models, encoders and architectures of the zoo"),
    "info": ("vitseg_zoo.cli.info", "show all that is known of a model or an encoder"),
    "download": ("vitseg_zoo.cli.download", "fetch weights, also for a machine without network"),
    "convert": (
        "vitseg_zoo.cli.convert",
        "turn a foreign checkpoint into one self-describing file",
    ),
    "bench": ("vitseg_zoo.cli.bench", "measure SegFormer here against SMP and Hugging Face"),
    "trace": ("vitseg_zoo.cli.trace", "show how a tensor's shape changes step by step through a model"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs `vitseg COMMAND ...`; user errors end with one line and exit code 1, or 2 for bad arguments."""
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="vitseg", description="Transformer segmentation for timm and SMP.")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (module_name, help_text) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=help_text, description=help_text)
        if name in argv[:1]:  # only the command that is called is imported
            try:
                module = importlib.import_module(module_name)
            except ModuleNotFoundError as error:
                print(
                    f"vitseg {name} needs {error.name}, which is not installed: "
                    'pip install "vitseg-zoo[train]" brings what training and its pictures need.',
                    file=sys.stderr,
                )
                return 1
            module.add_arguments(subparser)
            subparser.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        code = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `vitseg list | head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        return 1
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        message = error.args[0] if isinstance(error, KeyError) else error
        message = str(message).partition(", supported encoders")[0]  # SMP would list hundreds
        print(f"vitseg {args.command}: {message}", file=sys.stderr)
        return 1
