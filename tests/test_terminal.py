"""What is printed of names and files cannot act on a terminal, and has a form in every code page."""

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

import vitseg_zoo
from vitseg_zoo.terminal import end_with_the_reader, printable, say


def test_what_a_terminal_would_obey_is_shown() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\r\n\t\x9b31m\u202egnp.exe\u2028\x7f\udcff"
    assert printable(hostile) == (r"\x1b[2J\x1b]0;title\x07\r\n\t\x9b31m\u202egnp.exe\u2028\x7f\udcff")
    assert printable("Straße, vélo, 犬 (3.5 %)") == "Straße, vélo, 犬 (3.5 %)"


def test_a_line_in_a_code_page_that_lacks_a_letter() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    say("日本 é", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"\\u65e5\\u672c \xe9\n"


def test_ends_without_a_trace_when_nobody_reads_on() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "vitseg_zoo.recipes.camvid", "--help"]  # `vitseg list` does the same
    ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, timeout=100, check=False)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (1, b"")


def test_another_broken_pipe_is_an_error_as_before() -> None:
    with pytest.raises(BrokenPipeError, match="of a worker"), end_with_the_reader():
        raise BrokenPipeError("of a worker")


def test_the_package_prints_by_say_alone() -> None:
    folder = Path(vitseg_zoo.__file__).parent
    printing = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    # `say` and `Progress` themselves, and what registration says where warnings fail.
    assert printing <= {"terminal.py", "_importing.py"}
