"""Checks that a file with weights is the one that it should be, without reading the weights themselves."""

import contextlib
import hashlib
import re
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return (
            hashlib.file_digest(file, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else _sha256(file)
        )


def _sha256(file) -> str:  # Python 3.10 has no `file_digest`
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


_SHA256 = re.compile(r"(?<![0-9A-Fa-f])[0-9A-Fa-f]{64}(?![0-9A-Fa-f])")


def read_sha256(path: Path) -> str:
    """Read the SHA-256 that a file beside weights states, as `sha256sum` or an editor writes it.

    Raises:
        OSError: If there is no SHA-256 in it, or it cannot be read.
    """
    with path.open("rb") as file:
        content = file.read(1 << 16)
    encoding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    found = _SHA256.search(content.decode(encoding, "replace"))
    if found is None:
        raise OSError(f"{path} holds no SHA-256 of 64 hexadecimal digits: write it again, or delete it.")
    return found[0].lower()


# PyTorch stores tensors as they are; what it does compress, the code of TorchScript, is small.
_INFLATED_BESIDES = 64 * 2**20


def archive_fault(path: Path) -> str:
    """Says what is wrong with a zip archive, as the end of a sentence, before anything in it is inflated."""
    try:
        with zipfile.ZipFile(path) as archive:
            inflated = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError):  # damaged, of another kind, odd names
        return "is damaged, no complete PyTorch checkpoint"
    size = path.stat().st_size
    if inflated > size + _INFLATED_BESIDES:
        return f"has {size / 1e6:.0f} MB and would be inflated to {inflated / 1e6:.0f} MB"
    return ""


def find_fault(path: Path, sha256: str | None, size: int | None, filename: str) -> str:
    """Say what is wrong with a file, as the end of a sentence; empty if nothing is.

    Args:
        path: The file.
        sha256: What its SHA-256 should be; None if unknown.
        size: What its length in bytes should be; None if unknown.
        filename: What it will be called; the ending tells its format.
    """
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"has {actual} bytes instead of {size}"
    if sha256 is not None and (digest := sha256_of(path)) != sha256:
        return f"was altered or is another file (SHA-256 {digest[:12]}... instead of {sha256[:12]}...)"
    if filename.endswith(".safetensors"):
        return _safetensors_fault(path)
    with path.open("rb") as file:
        start = file.read(2)
    # PyTorch's files are zip archives, before 1.6 bare pickles.
    if start == b"PK":
        return archive_fault(path)
    return "" if start[:1] == b"\x80" else "is no PyTorch checkpoint"


def _safetensors_fault(path: Path) -> str:
    try:
        # Reads and checks the header: its length, its JSON, and that all tensors lie within the file.
        with safe_open(path, framework="numpy"):
            return ""
    except SafetensorError as error:
        return f"is no complete safetensors file ({str(error).rstrip('.')})"


def check_file(path: Path, sha256: str | None = None, delete: bool = False) -> None:
    """Raise if a file is not what it should be.

    Args:
        path: The file.
        sha256: What its SHA-256 should be; None if unknown.
        delete: Delete a wrong file: one of a cache, which can be downloaded again.

    Raises:
        OSError: If it is wrong.
    """
    fault = find_fault(path, sha256, None, path.name)
    if not fault:
        return
    if delete:
        with contextlib.suppress(OSError):  # a cache that cannot be written
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
    ending = (
        "it was deleted, so that running this again downloads it anew" if not path.exists() else "replace it"
    )
    raise OSError(f"{path} {fault}: {ending}.")
