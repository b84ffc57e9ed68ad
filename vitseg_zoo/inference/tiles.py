"""Images of any size in overlapping tiles: windows, their weights, and logits that are finished as they come.

The windows and the Gaussian weights are those of MONAI's `sliding_window_inference` (`mode="gaussian"`); the
windows are those of mmsegmentation's `slide_inference`, too, with which SegFormer was measured on Cityscapes.
Unlike both, no sum of the whole image is held: what no other tile reaches is given away at once.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch

# Standard deviation of the Gaussian, as a part of the tile's side, and the least weight: MONAI's defaults.
_SIGMA = 0.125
_LEAST_WEIGHT = 1e-3

# Rows `top` to `bottom` of an image, (bottom - top, W) or (bottom - top, W, C).
ReadRows = Callable[[int, int], np.ndarray]


def window_starts(length: int, tile: int, overlap: float) -> list[int]:
    """Say where the tiles along one side of an image begin; the last one ends with the image.

    Args:
        length: Pixels of the side, at least `tile`.
        tile: Pixels of a tile.
        overlap: Part of a tile that the next one covers too, in [0, 1).

    Example:
        >>> window_starts(2048, 1024, 0.25)
        [0, 768, 1024]
    """
    step = max(int(tile * (1 - overlap)), 1)
    return [*range(0, length - tile, step), length - tile]


def gaussian_weights(height: int, width: int) -> torch.Tensor:
    """Return weights (height, width) of a tile's pixels: 1 in the middle, falling off towards the edges.

    Example:
        >>> gaussian_weights(3, 3)[1, 1].item()
        1.0
    """
    rows, columns = (
        torch.exp(-0.5 * ((torch.arange(side) - (side - 1) / 2) / (_SIGMA * side)) ** 2)
        for side in (height, width)
    )
    weights = rows[:, None] * columns
    return weights.clamp(min=max(weights.min().item(), _LEAST_WEIGHT))


def blend_tiles(
    logits: Callable[[np.ndarray], torch.Tensor],
    read: ReadRows,
    size: tuple[int, int],
    tile: tuple[int, int],
    overlap: float = 0.25,
    batch_size: int = 1,
    first_row: int = 0,
) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Run a model on overlapping tiles and blends its logits, with memory for one row of tiles.

    A side that is smaller than the tile is reflected to the next multiple of 32, and one tile covers it.

    Args:
        logits: The model: tiles (B, h, w) or (B, h, w, C) to logits (B, classes, h, w).
        read: Gives rows of the image. Asked from top to bottom, some of them twice.
        size: Height and width of the image.
        tile: Height and width of a tile.
        overlap: Part of a tile that its neighbor covers too, in [0, 1).
        batch_size: Tiles that the model is given at once.
        first_row: Leave out the blocks above this row, which has to be the top of one; to go on where an
            earlier run ended.

    Yields:
        Top row, left column and logits (classes, rows, columns), at least float32, of blocks that tile the
        image, from left to right and from top to bottom.

    Example:
        >>> image = np.random.rand(100, 90, 3).astype(np.float32)
        >>> def identity(tiles):
        ...     return torch.from_numpy(tiles).permute(0, 3, 1, 2)
        >>> blended = torch.zeros(3, 100, 90)
        >>> for top, left, block in blend_tiles(identity, lambda a, b: image[a:b], (100, 90), (64, 64)):
        ...     blended[:, top : top + block.shape[1], left : left + block.shape[2]] = block
        >>> torch.allclose(blended, torch.from_numpy(image).permute(2, 0, 1))
        True
    """
    tile_height, tile_width = (
        min(side, -(-length // 32) * 32) for side, length in zip(tile, size, strict=True)
    )
    tile = (tile_height, tile_width)
    pad_top, pad_left = (max(side - length, 0) // 2 for side, length in zip(tile, size, strict=True))
    padded = [max(side, length) for side, length in zip(tile, size, strict=True)]
    tops, lefts = (window_starts(length, side, overlap) for length, side in zip(padded, tile, strict=True))
    next_tops, next_lefts = [*tops[1:], padded[0]], [*lefts[1:], padded[1]]
    weights = gaussian_weights(*tile)
    carried: dict[int, torch.Tensor] = {}  # by left edge: sums for rows that the tiles below reach, too

    for top, next_top in zip(tops, next_tops, strict=True):
        if top + tile[0] <= first_row + pad_top:
            continue
        rows = _reflected(read(top, min(top + tile[0], size[0])), tile[0], padded[1])
        done = next_top - top
        sums = None  # of logits times weights, and of weights, under the tile
        for index, (left, next_left) in enumerate(zip(lefts, next_lefts, strict=True)):
            if index % batch_size == 0:
                windows = [rows[:, x : x + tile[1]] for x in lefts[index : index + batch_size]]
                batch = logits(np.stack(windows))
                batch = batch.to(torch.promote_types(batch.dtype, torch.float32))  # of half ones, too
                weights = weights.to(batch)
            weighted = torch.cat([batch[index % batch_size] * weights, weights[None]])
            if sums is not None:
                weighted[:, :, : sums.shape[2]] += sums
            finished, sums = weighted[:, :, : next_left - left], weighted[:, :, next_left - left :]
            if left in carried:
                finished[:, : carried[left].shape[1]] += carried[left]
            carried[left] = finished[:, done:].clone()
            if top >= first_row:
                # Without what was reflected.
                y, x = max(top - pad_top, 0), max(left - pad_left, 0)
                block = (finished[:-1, :done] / finished[-1:, :done])[:, pad_top if top == 0 else 0 :]
                block = block[:, : size[0] - y, pad_left if left == 0 else 0 :]
                yield y, x, block[:, :, : size[1] - x]


def _reflected(rows: np.ndarray, height: int, width: int) -> np.ndarray:
    """Return rows of an image, with reflected ones around them where they are smaller than a tile."""
    if rows.shape[:2] == (height, width):
        return rows
    missing = [(height - rows.shape[0]), (width - rows.shape[1])]
    around = [(part // 2, part - part // 2) for part in missing] + [(0, 0)] * (rows.ndim - 2)
    return np.pad(rows, around, mode="reflect")
