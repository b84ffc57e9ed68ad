"""What the recipes' command lines share: numbers in range, a folder to write to, mistakes in one line."""

import math
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn


def positive_int(text: str) -> int:
    """A whole number of 1 or more, as a type for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"should be a whole number of 1 or more, got {text}")
    return int(text)


def natural_int(text: str) -> int:
    """A whole number of 0 or more, as a type for argparse."""
    if not text.isdecimal():
        raise ArgumentTypeError(f"should be a whole number of 0 or more, got {text}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0, as a type for argparse."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ArgumentTypeError(f"should be a number above 0, got {text}")
    return number


def make_writable(folder: Path) -> None:
    """Makes a folder if need be, and sees whether it can be written to.

    Raises:
        OSError: it cannot; one sentence names it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error.strerror}): give another --out.") from error


@torch.no_grad()
def try_size(module: nn.Module, size: int, option: str) -> None:
    """Sees whether a model takes images (B, 3, size, size).

    Raises:
        ValueError: it does not; one sentence names the option.
    """
    module.eval()
    try:
        module(torch.zeros(1, 3, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:  # SMP's, ours and timm's
        raise ValueError(
            f"{option} {size} does not fit the model, give another, as {-(-size // 32) * 32}: {error}"
        ) from error
    module.train()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line for a user's mistake. For what is done before a training alone.

    Example:
        >>> with one_line_errors():
        ...     raise ValueError("--epochs is too small.")
        Traceback (most recent call last):
        SystemExit: --epochs is too small.
    """
    try:
        yield
    # TypeError: an argument that a model does not take, or Lightning's for --devices.
    except (OSError, KeyError, ValueError, TypeError, RuntimeError, MisconfigurationException) as error:
        message = str(error.args[0] if isinstance(error, KeyError) else error)
        # SMP would list hundreds of encoders; some libraries' messages have several lines.
        raise SystemExit(" ".join(message.partition(", supported encoders")[0].split())) from error
