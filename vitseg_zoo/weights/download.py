"""Fetches weights to a local file, checked before anything uses them.

Files of the Hugging Face Hub go into its own cache, in its own layout, and `huggingface_hub` does the talking
(mirror in `HF_ENDPOINT`, tokens, proxies, offline mode, progress bar). What it leaves out is added here: the
SHA-256 is compared before a file gets its name, and a download that was interrupted goes on where it stopped
in a later process, too. For that, files come over plain HTTP.

A file in the folder that the variable VITSEG_ZOO_WEIGHTS names, filled by `vitseg download NAME --to DIR`,
comes first.
"""

import base64
import contextlib
import hashlib
import os
import re
import shutil
import time
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import url2pathname

from huggingface_hub import cached_assets_path, constants, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError
from huggingface_hub.file_download import get_hf_file_metadata, http_get, repo_folder_name
from huggingface_hub.utils import WeakFileLock, build_hf_headers, get_session

from vitseg_zoo import __version__
from vitseg_zoo.files import atomic_path
from vitseg_zoo.weights.catalog import get_entry
from vitseg_zoo.weights.check import check_file, find_fault, read_sha256, sha256_of
from vitseg_zoo.weights.download_errors import explained, without_password
from vitseg_zoo.weights.entry import WeightsEntry

FOLDER_VARIABLE = "VITSEG_ZOO_WEIGHTS"
CHECKPOINT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ETAG = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{7,127}")  # a hash, with the number of parts behind an S3's md5
_MOST_REDIRECTS = 10
_MOST_ATTEMPTS = 5
_ADDRESS = re.compile(r"(https?|file):|[A-Za-z][A-Za-z0-9+.-]*://")


def fetch(source: str | Path | WeightsEntry, cache_dir: str | Path | None = None) -> Path:
    """Give a local file with weights, downloaded if need be.

    Args:
        source: An entry of the catalog or its name, an https: or file: address, or a path.
        cache_dir: The Hub's cache to use instead of the user's own.

    Returns:
        Path of the file, whose size, checksum (where one is known) and format are right.

    Raises:
        ConnectionError: If there is no network, or a server fails.
        FileNotFoundError: If there is no such file.
        PermissionError: If a repository needs a login, or the cache cannot be written.
        OSError: If the disk is full, or the file is not the one that it should be; such a download is
            deleted.
        ValueError: If there are no weights of that name, or the address is malformed or neither https: nor
            file:.

    Example:
        >>> from vitseg_zoo.weights.download import fetch
        >>> path = fetch("segformer_b0.nv_ade20k_512")  # doctest: +SKIP
    """
    if isinstance(source, str) and _ADDRESS.match(source):
        return _fetch_url(source)
    entry = find_entry(source)
    if entry is None:
        return _local_file(Path(str(source)))
    if provided := _provided_file(entry):
        return provided
    if entry.url:
        return _fetch_url(entry.url, entry.sha256, entry.name)
    with explained(entry.name, cache_dir or constants.HF_HUB_CACHE):
        return _fetch_from_hub(entry, Path(cache_dir or constants.HF_HUB_CACHE))


def find_entry(source: str | Path | WeightsEntry) -> WeightsEntry | None:
    """Return the entry of the catalog that a source names; None if it is a path or an address.

    Raises:
        ValueError: If it looks like a name, and there are no weights of that name.
    """
    if isinstance(source, WeightsEntry):
        return source
    if _ADDRESS.match(str(source)) or Path(source).exists():
        return None
    return None if Path(source).suffix in CHECKPOINT_SUFFIXES else get_entry(str(source))


def download_to(source: str | WeightsEntry, folder: str | Path) -> Path:
    """Download weights for a machine without network; there, set VITSEG_ZOO_WEIGHTS to the folder.

    The file is named like the weights, with its SHA-256 beside it in the form of `sha256sum`.

    Args:
        source: An entry of the catalog, or its name.
        folder: Where to; made if need be.

    Returns:
        Path of the weights.

    Raises:
        OSError: As `fetch`.
        ValueError: If there are no weights of that name.
    """
    entry = get_entry(source) if isinstance(source, str) else source
    folder = Path(folder)
    with explained(entry.name, folder, "choose another folder"):
        folder.mkdir(parents=True, exist_ok=True)
        present = None
        if entry.url:
            present = _fetch_url(entry.url, entry.sha256, entry.name)
        elif cached := _cached_file(entry, Path(constants.HF_HUB_CACHE)):
            present = cached
        if present:
            target = folder / f"{entry.name}{_suffix(present.name)}"
            _refuse_folder(target)
            _copy(present, target)
        else:
            filename, metadata = _hub_metadata(entry)
            target = folder / f"{entry.name}{_suffix(filename)}"
            _refuse_folder(target)
            with WeakFileLock(f"{target}.lock"):
                if not target.exists() or sha256_of(target) != _expected(entry, metadata.etag):
                    _download_hub_file(entry, metadata, target, filename)
            Path(f"{target}.lock").unlink(missing_ok=True)
        _write_atomically(Path(f"{target}.sha256"), f"{sha256_of(target)}  {target.name}\n")
        return target


def _suffix(filename: str) -> str:
    return ".safetensors" if filename.endswith(".safetensors") else ".pth"


def _provided_file(entry: WeightsEntry) -> Path | None:
    """Return an entry's file in the folder that the user names, checked against the SHA-256 beside it."""
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        return None
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{FOLDER_VARIABLE} names {folder}, which is no folder: correct or unset it.")
    for suffix in (".safetensors", ".pth", ".bin"):
        path = Path(folder) / f"{entry.name}{suffix}"
        if path.is_file():
            beside = Path(f"{path}.sha256")
            sha256 = read_sha256(beside) if beside.is_file() else entry.sha256
            check_file(path, sha256=sha256)
            return path
    return None


def _local_file(path: Path) -> Path:
    if path.is_dir():
        raise FileNotFoundError(f"{path} is a folder, not a file with weights.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    return path


def _fetch_from_hub(entry: WeightsEntry, cache_dir: Path) -> Path:
    if cached := _cached_file(entry, cache_dir):
        return cached
    filename, metadata = _hub_metadata(entry)
    storage = repo_folder_name(repo_id=entry.repo_id, repo_type="model")
    blob = cache_dir / storage / "blobs" / metadata.etag
    lock = cache_dir / ".locks" / storage / f"{metadata.etag}.lock"  # the one that `hf_hub_download` takes
    blob.parent.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        _refuse_folder(blob)
        if not blob.exists():
            _download_hub_file(entry, metadata, blob, filename)
    # The contents are there: this only gives them their name.
    path = Path(hf_hub_download(entry.repo_id, filename, revision=entry.revision, cache_dir=cache_dir))
    sha256 = _expected(entry, metadata.etag) or sha256_of(path)
    check_file(path, sha256=sha256, delete=_lies_in(path, cache_dir / storage))
    with contextlib.suppress(OSError):  # a cache that cannot be written
        _write_atomically(_sha256_beside(path), f"{sha256}  {path.name}\n")
    return path


def _cached_file(entry: WeightsEntry, cache_dir: Path) -> Path | None:
    """Return the entry's file in the Hub's cache, compared at every use with the SHA-256 that is known of it.

    That is the catalog's, or the name of the contents that the file links to; where it is a copy, or the
    server names contents otherwise, the one that was written beside it after the download.
    """
    storage = cache_dir / repo_folder_name(repo_id=entry.repo_id, repo_type="model")
    for filename in entry.filenames:
        found = try_to_load_from_cache(entry.repo_id, filename, cache_dir=cache_dir, revision=entry.revision)
        if isinstance(found, str):
            path = Path(found)
            sha256 = _expected(entry, path.resolve().name)
            if sha256 is None and _sha256_beside(path).is_file():
                sha256 = read_sha256(_sha256_beside(path))
            check_file(path, sha256=sha256, delete=_lies_in(path, storage))
            return path
    return None


def _expected(entry: WeightsEntry, etag: str) -> str | None:
    """Return the SHA-256 of an entry's file: the catalog's, or the one that its ETag is."""
    return entry.sha256 or (etag.lower() if _SHA256.fullmatch(etag) else None)


def _sha256_beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _lies_in(path: Path, folder: Path) -> bool:
    """Tell whether a file, with all links followed, is the folder's and no other file of the user."""
    return path.resolve().is_relative_to(folder.resolve())


def _refuse_folder(path: Path) -> None:
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder where a file should be: move it away.")


def _hub_metadata(entry: WeightsEntry):
    """Return the first of the entry's file names that its repository has, and what the Hub says of it."""
    for filename in entry.filenames:
        url = hf_hub_url(entry.repo_id, filename, revision=entry.revision)
        try:
            metadata = get_hf_file_metadata(url, headers=_headers())
        except EntryNotFoundError:
            continue
        # Both become parts of paths, so that they have to be what they should be.
        if not _ETAG.fullmatch(metadata.etag or "") or not _COMMIT.fullmatch(metadata.commit_hash or ""):
            raise ConnectionError(
                f"{without_password(constants.ENDPOINT)} does not answer like the Hugging Face Hub (ETag "
                f"{metadata.etag!r}, commit {metadata.commit_hash!r}): check HF_ENDPOINT."
            )
        return filename, metadata
    raise FileNotFoundError(
        f"{entry.repo_id} has no {' and no '.join(entry.filenames)} at {entry.revision} (404): the weights "
        "were moved or removed by their owner; `vitseg list` shows others."
    )


def _download_hub_file(entry: WeightsEntry, metadata, destination: Path, filename: str) -> None:
    url = hf_hub_url(entry.repo_id, filename, revision=metadata.commit_hash)
    headers = _headers()
    if urlsplit(metadata.location).netloc != urlsplit(url).netloc:
        headers.pop("authorization", None)  # contents lie with another host, which the token is not for
    _refuse_downgrade(url, metadata.location)
    sha256 = _expected(entry, metadata.etag)
    _download(metadata.location, destination, filename, metadata.size, sha256, headers)


def _headers() -> dict[str, str]:
    return build_hf_headers(library_name="vitseg_zoo", library_version=__version__)


def _fetch_url(url: str, sha256: str | None = None, name: str | None = None) -> Path:
    parts = _split_address(url)
    if parts.scheme == "file":
        path = _local_file(Path(url2pathname(parts.path)))
        check_file(path, sha256=sha256)
        return path
    if parts.scheme != "https" and not _on_this_machine(parts):
        raise ValueError(f"Weights come from https: or file: addresses, not from {without_password(url)!r}.")
    # A name of the network's, made one of a file in this folder.
    filename = re.sub(r"[^\w.-]", "_", PurePosixPath(parts.path).name)[-100:].lstrip(".") or "weights"
    headers = {}
    if parts.username is not None:  # as a header, which no message and no log repeats
        account = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["authorization"] = f"Basic {base64.b64encode(account.encode()).decode()}"
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    with explained(name or shown, constants.HF_ASSETS_CACHE):
        # A folder for each address: two addresses may end in the same name.
        folder = cached_assets_path("vitseg_zoo", "weights", hashlib.sha256(url.encode()).hexdigest()[:16])
        path = folder / filename
        beside = _sha256_beside(path)
        if not path.exists():
            with WeakFileLock(folder / f"{filename}.lock"):
                if not path.exists():
                    _download(shown, path, filename, None, sha256, headers)
                    _write_atomically(beside, f"{sha256 or sha256_of(path)}  {filename}\n")
        _refuse_folder(path)
        known = sha256 or (read_sha256(beside) if beside.is_file() else None)
        check_file(path, sha256=known, delete=_lies_in(path, folder))
    return path


def _split_address(url: str) -> SplitResult:
    """Return the parts of an address whose host and port could exist."""
    try:
        parts = urlsplit(url)
        if parts.port == 0:
            raise ValueError("Port out of range 0-65535")
        if parts.hostname and not parts.hostname.isascii():
            parts.hostname.encode("idna")
    except ValueError as error:
        raise ValueError(f"{without_password(url)!r} is no address ({error}): correct it.") from None
    if parts.scheme in ("http", "https") and not parts.hostname:
        raise ValueError(
            f"{without_password(url)!r} names no host: an address is like "
            "https://example.org/model.safetensors."
        )
    return parts


def _on_this_machine(parts: SplitResult) -> bool:
    return parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")


def _refuse_downgrade(url: str, target: str) -> None:
    if urlsplit(url).scheme == "https" and _split_address(target).scheme != "https":
        raise ConnectionError(
            f"{without_password(url)} redirects to {without_password(target)}, which anybody on the way "
            "could alter: it was not followed; ask its owner for an address with https."
        )


def _follow(url: str, headers: dict[str, str]) -> tuple[str, dict[str, str]]:
    """Where an address redirects to in the end, and the headers that are for it; https stays https."""
    session: Any = get_session()
    for _ in range(_MOST_REDIRECTS):
        if hasattr(session, "build_request"):  # of httpx
            with session.stream("GET", url, headers=headers, follow_redirects=False) as response:
                location = response.headers.get("location")
        else:  # huggingface_hub before 1.0
            with session.get(url, headers=headers, allow_redirects=False, stream=True) as response:
                location = response.headers.get("location")
        if not 300 <= response.status_code < 400 or not location:
            break
        target = urljoin(url, location)
        _refuse_downgrade(url, target)
        if urlsplit(target).netloc != urlsplit(url).netloc:
            headers = {key: value for key, value in headers.items() if key != "authorization"}
        url = target
    return url, headers


def _download(
    url: str, destination: Path, filename: str, size: int | None, sha256: str | None, headers: dict[str, str]
) -> None:
    """Download to a file beside `destination`, going on where that ends; rename it when it was checked."""
    partial = destination.with_name(f"{destination.name}.incomplete")
    start = partial.stat().st_size if partial.exists() else 0
    if start and (sha256 is None or (size is not None and start > size)):
        partial.unlink()  # without a checksum nothing would show that its parts fit
        start = 0
    free = shutil.disk_usage(destination.parent).free
    if size is not None and size - start > free:
        raise OSError(28, f"{(size - start) / 1e6:.1f} MB are needed and {free / 1e6:.1f} MB are free")
    if size is not None and size > constants.MAX_HTTP_DOWNLOAD_SIZE:
        raise OSError(
            f"{filename} is announced with {size / 1e9:.1f} GB, more than weights have: not downloaded."
        )
    try:
        if sha256 is None:  # nothing would show what somebody on the way has altered
            url, headers = _follow(url, headers)
        with partial.open("ab") as file:
            _get(url, file, filename, size, headers, resumes=sha256 is not None)
    except HfHubHTTPError as error:
        # A refusal says nothing of what has been received, except that there is no more of it.
        if error.response is None or error.response.status_code != 416:
            raise
        raise _wrong_length(url, filename, partial, size) from error
    except OSError as error:
        # A broken connection is no bare OSError; a wrong length is one without a number.
        if type(error) is OSError and error.errno is None:
            raise _wrong_length(url, filename, partial, size) from error
        if error.errno is not None:  # a full disk: give the space back
            partial.unlink(missing_ok=True)
        raise
    else:
        if fault := find_fault(partial, sha256, size, filename):
            partial.unlink()
            raise OSError(
                f"What {url} sent as {filename} {fault}: it was deleted; try again, or tell its owner."
            )
        os.replace(partial, destination)
    finally:
        # What cannot be gone on with is not kept.
        if partial.exists() and (sha256 is None or not partial.stat().st_size):
            partial.unlink()


def _get(
    url: str, file: BinaryIO, filename: str, size: int | None, headers: dict[str, Any], resumes: bool
) -> None:
    """Download to the end of a file, and take a cut connection up again.

    `http_get` of huggingface_hub 1.0 and newer does; older ones give up where a response is shorter than it
    said, and append the whole file where a server ignores which part was asked for.
    """
    for left in reversed(range(_MOST_ATTEMPTS)):
        start = file.tell()
        try:
            return http_get(
                url,
                file,
                resume_size=start,
                headers=headers,
                expected_size=size,
                displayed_filename=filename,
            )
        except OSError as error:
            cut = type(error).__name__ == "ChunkedEncodingError"
            too_long = type(error) is OSError and error.errno is None and size is not None and start > 0
            if not left or not (cut or (too_long and file.tell() == start + (size or 0))):
                raise
            if too_long or not resumes:
                file.seek(0)
                file.truncate()
            time.sleep(1)


def _wrong_length(url: str, filename: str, partial: Path, size: int | None) -> OSError:
    received = partial.stat().st_size if partial.exists() else 0
    partial.unlink(missing_ok=True)
    expected = "as many as were announced" if size is None else f"the {size} that were announced"
    return OSError(
        f"{url} sent {received} bytes as {filename}, not {expected}: they were deleted; try again, or tell "
        "its owner."
    )


def _copy(path: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(path, partial)


def _write_atomically(path: Path, text: str) -> None:
    with atomic_path(path) as partial:
        partial.write_text(text)
