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

# Threads that read files, at most: a GPU waits for one.
_READERS = 4


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
    """Predict image files; the next batch is read and the last is written while the model runs.

    Images of one size that follow each other go through the model together, `predictor.batch_size` at a time.

    Args:
        predictor: The model.
        files: Image files.
        use: Called in another thread with file, image (H, W, C) or (H, W) and labels (H, W).

    Yields:
        Each file in its turn, and what `use` returned, or the error that reading or using it raised.
    """
    ahead = predictor.batch_size
    with ThreadPoolExecutor(min(ahead, _READERS)) as reader, ThreadPoolExecutor(1) as writer:
        coming = iter(files)
        reads: deque[tuple[Path, Future[np.ndarray]]] = deque()
        waiting: deque[tuple[Path, Any]] = deque()
        batch: list[tuple[Path, np.ndarray]] = []

        def predict() -> None:
            try:
                results = predictor([image for _, image in batch])
                waiting.extend(
                    (file, writer.submit(use, file, image, result.labels))
                    for (file, image), result in zip(batch, results, strict=True)
                )
            except ValueError as error:
                waiting.extend((file, error) for file, _ in batch)
            batch.clear()

        while True:
            while len(reads) <= ahead and (file := next(coming, None)) is not None:
                reads.append((file, reader.submit(read_image, file, predictor.channels)))
            if not reads:
                break
            file, read = reads.popleft()
            try:
                image = read.result()
            except ValueError as error:
                if batch:
                    predict()
                waiting.append((file, error))
                continue
            finally:
                del read
            if batch and (batch[0][1].shape, batch[0][1].dtype) != (image.shape, image.dtype):
                predict()
            batch.append((file, image))
            del image
            if len(batch) == predictor.batch_size:
                predict()
            while len(waiting) > predictor.batch_size:
                file, result = waiting.popleft()
                yield file, _finished(result)
        if batch:
            predict()
        for file, result in waiting:
            yield file, _finished(result)


def _finished(result: Any) -> Any:
    """Wait for what `use` returns; an error is a result, too."""
    if isinstance(result, ValueError):
        return result
    try:
        return result.result()
    except ValueError as error:
        return error
