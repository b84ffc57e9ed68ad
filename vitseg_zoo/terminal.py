"""Text for a terminal: what files, names and servers say is shown, and never obeyed."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def end_with_the_reader() -> Iterator[None]:
    """End the program with status 1 and no trace where nobody reads its output any more, as behind `| head`.

    Example:
        >>> with end_with_the_reader():
        ...     print("mIoU")
        mIoU
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        try:
            say(flush=True)  # it may have been another pipe, as a worker's
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
            raise SystemExit(1) from None
        raise


class Progress:
    """One line on the terminal, with the time left; nothing where errors go to a file.

    Args:
        what: Of which there are so many, as "images".

    Example:
        >>> progress = Progress("images")
        >>> progress(1, 10)
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.start = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say how many are done, five times a second at most."""
        now = time.monotonic()
        if not sys.stderr.isatty() or (now - self.last < 0.2 and done < total):
            return
        self.last = now
        left = (now - self.start) / done * (total - done)
        line = f"{done} of {total} {self.what}, {left:.0f} s left" if done < total else ""
        print(f"\r{line:60}", end="" if line else "\r", file=sys.stderr, flush=True)
