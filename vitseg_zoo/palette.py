"""Colors for classes that have none."""

import colorsys


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """Return colors for classes that have none: the first black, then hues a golden angle apart.

    Example:
        >>> distinct_colors(2)
        [(0, 0, 0), (230, 57, 57)]
    """
    hues = [(index * 0.618034) % 1 for index in range(count - 1)]
    colors = (colorsys.hsv_to_rgb(hue, 0.75, 0.9) for hue in hues)
    return [(0, 0, 0), *((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in colors)]
