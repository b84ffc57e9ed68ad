"""Text for a terminal: what files, names and servers say is shown, and never obeyed."""

import sys
from typing import TextIO


def printable(text: object) -> str:
    r"""Escape what a terminal would act on instead of showing: control characters, line ends, text direction.

    Args:
        text: Anything; what `str` makes of it.

    Example:
        >>> print(printable("cat\x1b]0;title\x07\ndog, 犬"))
        cat\x1b]0;title\x07\ndog, 犬
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(text)
    )


def say(line: object = "", file: TextIO | None = None, flush: bool = False) -> None:
    """Print one line, with everything in it `printable` and in the code page of the terminal.

    Args:
        line: Its text.
        file: `sys.stdout` by default.
        flush: As of `print`.
    """
    file = file or sys.stdout
    encoding = getattr(file, "encoding", None) or "utf-8"
    print(printable(line).encode(encoding, "backslashreplace").decode(encoding), file=file, flush=flush)
