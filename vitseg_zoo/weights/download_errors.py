"""Turns what can go wrong in a download or an upload into one sentence that says what to do."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)


def without_password(text: str) -> str:
    """Leave out the user and the password of addresses, which no message should repeat.

    Example:
        >>> without_password("https://me:secret@example.org/model.safetensors")
        'https://example.org/model.safetensors'
    """
    return re.sub(r"(?<=://)[^/?#\s]*@", "", text)


@contextlib.contextmanager
def explained(
    name: str, folder: str | Path, instead: str = "set HF_HOME to a folder of your own"
) -> Iterator[None]:
    """Explain the errors of a download.

    Args:
        name: What is downloaded: the name of an entry, or an address.
        folder: Where it is stored.
        instead: What to do where it cannot be stored there.
    """
    elsewhere = (
        "on a machine with network, download it and pass its path"
        if ":" in name
        else f"run `vitseg download {name} --to DIR` on a machine with network, copy DIR here and set "
        "VITSEG_ZOO_WEIGHTS=DIR"
    )
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{name} is not in the cache and HF_HUB_OFFLINE forbids to download it: unset that, or "
            f"{elsewhere}."
        ) from error
    except GatedRepoError as error:
        raise PermissionError(
            f"{name}: its owner gives access on request: ask for it on {_page(error)}, then set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: the Hub has no such revision any more (404, {_page(error)})."
        ) from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"{name}: the Hub has no such repository (404, {_page(error)}), or it is private and needs "
            "HF_TOKEN."
        ) from error
    except HfHubHTTPError as error:
        raise _refused(name, error, elsewhere) from error
    except (HTTPError, LocalEntryNotFoundError) as error:
        # Of huggingface_hub before 1.0 an error that the server states may be an HTTPError alone.
        answered = getattr(error, "response", None) is not None
        raise (_refused if answered else _unreachable)(name, error, elsewhere) from error
    except OSError as error:
        if type(error).__module__.startswith("requests."):  # what huggingface_hub was built on before 1.0
            raise _unreachable(name, error, elsewhere) from error
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                error.errno,
                f"{name} could not be stored, the disk of {folder} is full ({error.strerror}): free some "
                f"space, or {instead} on another disk.",
            ) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise PermissionError(
                f"{name} could not be stored, {folder} cannot be written ({error.strerror}): {instead}, or "
                f"{elsewhere}."
            ) from error
        if error.errno is not None and error.strerror:  # too large for the disk, a folder in a file's place
            where = f" of {error.filename}" if error.filename else ""
            raise OSError(
                error.errno,
                f"{name} could not be stored in {folder} ({error.strerror}{where}): {instead}, or "
                f"{elsewhere}.",
            ) from error
        raise
    except Exception as error:  # an address or a header that the HTTP client cannot take
        if isinstance(error, ValueError) or type(error).__name__ == "InvalidURL":
            raise ConnectionError(
                f"{name}: no answer that could be used ({_first_line(error)}): check the address"
                f"{'' if ':' in name else ' in HF_ENDPOINT'}, or {elsewhere}."
            ) from error
        raise


@contextlib.contextmanager
def explained_upload(repo_id: str) -> Iterator[None]:
    """Explain the errors of publishing a model.

    Args:
        repo_id: The repository that it goes to.
    """
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise ConnectionError(
            f"{repo_id} cannot be published, HF_HUB_OFFLINE forbids it: unset that."
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise PermissionError(
                f"{repo_id}: {_endpoint()} does not let you write there ({status}): log in with "
                "`hf auth login`, or set HF_TOKEN to a token that may write."
            ) from error
        raise ConnectionError(
            f"{repo_id} was not published, {_endpoint()} answers with an error ({status}): "
            f"{_first_line(error)}."
        ) from error
    except HTTPError as error:
        raise _unpublished(repo_id, error) from error
    except OSError as error:
        if type(error).__module__.startswith("requests."):
            raise _unpublished(repo_id, error) from error
        raise


def _unpublished(repo_id: str, error: Exception) -> ConnectionError:
    return ConnectionError(
        f"{repo_id} was not published: no connection, or a broken one, to {_endpoint()} "
        f"({_first_line(error)}): run this again where there is a network."
    )


def _endpoint() -> str:
    return without_password(constants.ENDPOINT)


def _page(error: HfHubHTTPError) -> str:
    return without_password(str(error.response.url)).partition("/resolve/")[0]


def _first_line(error: Exception) -> str:
    return without_password((str(error) or type(error).__name__).splitlines()[0]).rstrip(".")


def _unreachable(name: str, error: Exception, elsewhere: str) -> ConnectionError:
    host = urlsplit(name).hostname or _endpoint()
    # Parts are kept of what has a checksum to show that they fit: entries of the catalog.
    again = "run this again" if ":" in name else "run this again to go on where it stopped"
    return ConnectionError(
        f"{name}: no connection, or a broken one, to {host} ({_first_line(error)}): {again}, or {elsewhere}."
    )


def _refused(name: str, error: Any, elsewhere: str) -> OSError:
    status, url = error.response.status_code, without_password(str(error.response.url))
    if status == 404:
        return FileNotFoundError(f"{name}: there is no such file (404, {url}).")
    if status in (401, 403):
        return PermissionError(f"{name}: {url} needs a login ({status}): set HF_TOKEN.")
    return ConnectionError(
        f"{name}: {url} answers with an error ({status}): try again later, or {elsewhere}."
    )
