"""Many image files: which they are, and their prediction while others are read and written."""

import glob
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitseg_zoo.data.images import read_image
from vitseg_zoo.data.layouts import IMAGE_ENDINGS
from vitseg_zoo.inference.predictor import Predictor

Result = TypeVar("Result")

# Files that are read before their turn, and results that wait to be written.
_AHEAD = 2

# Labels that are counted at once: np.bincount makes 8 bytes of each.
_COUNTED = 2**20


def find_images(paths: Sequence[str | Path], without: Path | None = None) -> dict[Path, Path]:
    """Find the image files that files, folders and patterns stand for.

    Args:
        paths: Files, whatever their suffix; folders, with all below them that has the suffix of an image;
            and patterns, such as `"photos/**/*.jpg"`. A pattern that no file matches is taken for a file.
        without: Leave out what folders and patterns find in this folder, where results may be.

    Returns:
        File -> what results are called after: its name without suffix, of a folder's file below its folder.

    Raises:
        ValueError: If there is no image in a folder.

    Example:
        >>> find_images(["a/cat.jpg"])[Path("a/cat.jpg")].name
        'cat'
    """
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in IMAGE_ENDINGS]
            named = {file: file.relative_to(path).with_suffix("") for file in files}
        elif glob.has_magic(str(path)) and not path.exists():
            named = {
                Path(file): Path(Path(file).stem) for file in sorted(glob.glob(str(path), recursive=True))
            }
        else:
            found[path] = Path(path.stem)
            continue
        named = {
            file: name
            for file, name in named.items()
            if file.is_file() and not (without and file.resolve().is_relative_to(without.resolve()))
        }
        if not named and path.is_dir():
            raise ValueError(f"{path} has no images ({', '.join(IMAGE_ENDINGS)}).")
        found |= named or {path: Path(path.stem)}  # a file's name may look like a pattern
    return found


def predict_files(
    predictor: Predictor, files: Sequence[Path], use: Callable[[Path, np.ndarray, np.ndarray], Result]
) -> Iterator[tuple[Path, Result | ValueError]]:
    """Predict image files; the next are read and the last are written while the model runs.

    Args:
        predictor: The model.
        files: Image files.
        use: Called in another thread with file, image (H, W, C) or (H, W) and labels (H, W).

    Yields:
        Each file in its turn, and what `use` returned, or the error that reading or using it raised.
    """
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        reads: deque[Future[np.ndarray]] = deque()
        waiting: deque[tuple[Path, Future[Result] | ValueError]] = deque()
        for index, file in enumerate(files):
            while len(reads) <= _AHEAD and index + len(reads) < len(files):
                reads.append(reader.submit(read_image, files[index + len(reads)], predictor.channels))
            try:
                image = reads.popleft().result()
                labels = predictor(image).labels
                waiting.append((file, writer.submit(use, file, image, labels)))
                del image, labels
            except ValueError as error:
                waiting.append((file, error))
            if len(waiting) > _AHEAD:
                file, result = waiting.popleft()
                yield file, _finished(result)
        for file, result in waiting:
            yield file, _finished(result)


def _finished(result: Future[Any] | ValueError) -> Any:
    if isinstance(result, ValueError):
        return result
    try:
        return result.result()
    except ValueError as error:
        return error


def class_shares(labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the part of an image that each class has, counted in strips.

    Args:
        labels: (H, W) class indices.
        classes: Number of classes.

    Returns:
        (classes,) float64; their sum is 1.

    Example:
        >>> class_shares(np.array([[0, 1], [1, 1]], np.uint8), 3)
        array([0.25, 0.75, 0.  ])
    """
    rows = max(_COUNTED // labels.shape[1], 1)
    strips = (labels[top : top + rows] for top in range(0, len(labels), rows))
    counts = [np.bincount(strip.ravel(), minlength=classes) for strip in strips]
    return np.sum(counts, axis=0) / labels.size
