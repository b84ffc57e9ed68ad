"""Says once, plainly, that weights must not be used commercially."""

import logging
from functools import cache

from vitseg_zoo.weights.catalog import WeightsEntry

_logger = logging.getLogger("vitseg_zoo")


def license_notice(entry: WeightsEntry) -> str:
    """The sentence about a licence that forbids commercial use; empty for others."""
    if entry.commercial_use is not False:
        return ""
    return f"{entry.name}: the weights must not be used commercially. Licence: {entry.license}."


@cache  # once in a process
def say_license(notice: str) -> None:
    """Logs a notice as a warning."""
    _logger.warning(notice)
