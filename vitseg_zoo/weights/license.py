"""Says once, plainly, that weights must not be used commercially."""

import logging
from functools import cache

from vitseg_zoo.terminal import printable

_logger = logging.getLogger("vitseg_zoo")


def license_notice(name: str, commercial_use: bool | None, license: str | None) -> str:
    """The sentence about a license that forbids commercial use; empty for others."""
    if commercial_use is not False:
        return ""
    return printable(
        f"{name}: the weights must not be used commercially. License: {license or 'not stated'}."
    )


def say_license(name: str, commercial_use: bool | None, license: str | None) -> None:
    """Logs that notice as a warning, once in a process."""
    if notice := license_notice(name, commercial_use, license):
        _warn_once(notice)


@cache
def _warn_once(notice: str) -> None:
    _logger.warning(notice)
