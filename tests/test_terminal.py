"""What is printed of names and files cannot act on a terminal, and has a form in every code page."""

import io

from vitseg_zoo.terminal import printable, say


def test_what_a_terminal_would_obey_is_shown() -> None:
    hostile = "\x1b[2J\x1b]0;title\x07\r\n\t\x9b31m\u202egnp.exe\u2028\x7f\udcff"
    assert printable(hostile) == (r"\x1b[2J\x1b]0;title\x07\r\n\t\x9b31m\u202egnp.exe\u2028\x7f\udcff")
    assert printable("Straße, vélo, 犬 (3.5 %)") == "Straße, vélo, 犬 (3.5 %)"


def test_a_line_in_a_code_page_that_lacks_a_letter() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252", newline="\n")
    say("日本 é", file=stream, flush=True)
    assert stream.buffer.getvalue() == b"\\u65e5\\u672c \xe9\n"
