"""Colors for classes that have none."""

import colorsys


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Return colors for classes that have none: the first black, then hues a golden angle apart.

    Example:
        >>> distinct_colors(2)
        [(0, 0, 0), (230, 57, 57)]
    """
    hues = [(index * 0.618034) % 1 for index in range(count - 1)]
    return [(0, 0, 0)] + [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(h, 0.75, 0.9)) for h in hues
    ]
