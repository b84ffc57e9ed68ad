"""Files that are whole or not there, and their names."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which takes its name when the block ends without an error.

    Whoever reads `path` sees the old file or the new one, never a part of it. After an error the temporary
    file is gone and `path` is as it was.

    Args:
        path: Where the file shall be; its folder is made if need be.

    Yields:
        A path in the same folder, with the same suffix, for one file that the block writes.

    Raises:
        OSError: If the folder or the file cannot be written.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "scores.txt"
        >>> with atomic_path(target) as partial:
        ...     _ = partial.write_text("0.9")
        >>> target.read_text()
        '0.9'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A folder of its own: no name is taken, two writers do not meet, and one file is all that may be left.
    folder = Path(tempfile.mkdtemp(prefix=".partial-", dir=path.parent))
    partial = folder / f"file{path.suffix}"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder, which takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=path.parent) as outer:
        folder = Path(outer) / "folder"
        folder.mkdir()
        yield folder
        shutil.rmtree(path, ignore_errors=True)
        os.replace(folder, path)


def file_names(texts: Sequence[str]) -> list[str]:
    """Make of any texts, as the names of classes, as many names for files, all different and none a path.

    Example:
        >>> file_names(["cat", "../a:b"]), file_names(["Cat", "cat"])
        (['cat', 'a_b'], ['0 Cat', '1 cat'])
    """
    names = [re.sub(r"[^\w .-]+", "_", text).strip(" ._")[:100] or "class" for text in texts]
    if len({name.casefold() for name in names}) == len(names):
        return names
    return [f"{index} {name}" for index, name in enumerate(names)]
