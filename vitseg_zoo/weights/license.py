"""Says once that weights must not be used commercially, and puts a license beside those passed on."""

import logging
from functools import cache
from pathlib import Path

from vitseg_zoo.files import atomic_path
from vitseg_zoo.terminal import printable
from vitseg_zoo.weights.entry import NVIDIA_LICENSE

_logger = logging.getLogger("vitseg_zoo")


def license_notice(name: str, commercial_use: bool | None, license: str | None) -> str:
    """Return the sentence about a license that forbids commercial use; empty for others."""
    if commercial_use is not False:
        return ""
    return printable(
        f"{name}: the weights must not be used commercially. License: {license or 'not stated'}."
    )


def say_license(name: str, commercial_use: bool | None, license: str | None) -> None:
    """Log that notice as a warning, once in a process."""
    if notice := license_notice(name, commercial_use, license):
        _warn_once(notice)


@cache
def _warn_once(notice: str) -> None:
    _logger.warning(notice)


NVIDIA_NOTICE = """These weights are NVIDIA's, or were made from NVIDIA's.

They are under the NVIDIA Source Code License for SegFormer:

    https://github.com/NVlabs/SegFormer/blob/master/LICENSE

Its section 3.3 allows use for research and evaluation only, not commercially. Its section 3.1 allows to pass
them on only under the same license, with a complete copy of it: put the text of that page beside this file
before you give the weights to anybody else.
"""


def write_notice(path: Path, license: str | None) -> None:
    """Write what NVIDIA's license asks of whoever passes its weights on; nothing for other licenses.

    Args:
        path: The file to write.
        license: License of the weights that lie beside it.

    Raises:
        OSError: If the file cannot be written.
    """
    if license == NVIDIA_LICENSE:
        with atomic_path(path) as temporary:
            temporary.write_text(NVIDIA_NOTICE, encoding="utf-8")
