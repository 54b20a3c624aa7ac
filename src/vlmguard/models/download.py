"""Fetch a large file so that nothing is lost when the line breaks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import httpx
import stamina

from vlmguard.errors import ModelStoreError
from vlmguard.models import notices
from vlmguard.models.index import redact

_CHUNK = 1 << 20
_ATTEMPTS = 4


class NotFetched(ModelStoreError):
    """The server cannot be reached or does not hand the file out to us."""


class _TryAgain(Exception):
    """429 or 5xx: the same request may succeed a moment later."""


def fetch(url: str, part: Path, *, size: int, what: str) -> None:
    """Fetch ``url`` into ``part``, going on after what is already there.

    Whether the bytes are the right ones is the caller's to check.

    Args:
        url: ``https:``, ``http:`` or ``file:``.
        part: the file to fill; kept when the transfer breaks, for the next attempt.
        size: how many bytes there must be in the end.
        what: what to call it beside the progress bar.

    Raises:
        NotFetched: the server cannot be reached, refuses, or sends another size.
    """
    if part.exists() and part.stat().st_size > size:
        part.unlink()
    done = part.stat().st_size if part.exists() else 0
    if done == size:
        return
    with notices.transfer(what, total=size, done=done) as at:
        if urlsplit(url).scheme == "file":
            _copy(url, part, size=size, at=at)
        else:
            _download(url, part, size=size, at=at)


def _copy(url: str, part: Path, *, size: int, at: Callable[[int], None]) -> None:
    path = Path(url2pathname(urlsplit(url).path))
    try:
        with path.open("rb") as source, part.open("wb") as target:
            while chunk := source.read(_CHUNK):
                target.write(chunk)
                at(target.tell())
    except FileNotFoundError as error:
        raise NotFetched(f"{unquote(url)} is gone: {error}") from error
    _check_size(url, part, size)


def _download(url: str, part: Path, *, size: int, at: Callable[[int], None]) -> None:
    # The environment's proxies and certificates hold (trust_env is httpx's default).
    timeout = httpx.Timeout(30.0)
    with httpx.Client(follow_redirects=True, timeout=timeout) as client:
        while True:
            before = _size(part)
            try:
                for attempt in stamina.retry_context(
                    on=(httpx.TransportError, _TryAgain), attempts=_ATTEMPTS, timeout=None
                ):
                    with attempt:
                        _append(client, url, part, size=size, at=at)
                break
            except (httpx.HTTPError, httpx.InvalidURL, _TryAgain) as error:
                if _size(part) > before:
                    continue  # a bad line, but it moves: as long as it does, go on
                why = str(error) or type(error).__name__
                raise NotFetched(f"cannot fetch {redact(url)}: {redact(why)}") from error
    _check_size(url, part, size)


def _append(
    client: httpx.Client, url: str, part: Path, *, size: int, at: Callable[[int], None]
) -> None:
    """One request for the bytes that are missing."""
    done = _size(part)
    # Ranges count encoded bytes, so the body must not be compressed.
    headers = {"Accept-Encoding": "identity"}
    if done:
        headers["Range"] = f"bytes={done}-"
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _TryAgain(f"HTTP {status} {response.reason_phrase}")
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise _TryAgain(f"HTTP {status}: the partial file does not fit the server's")
        if status not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
            raise NotFetched(
                f"cannot fetch {redact(url)}: HTTP {status} {response.reason_phrase}".rstrip()
            )
        resumed = status == httpx.codes.PARTIAL_CONTENT and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {done}-")
        with part.open("ab" if resumed else "wb") as target:
            for chunk in response.iter_raw(_CHUNK):
                target.write(chunk)
                at(target.tell())
                if target.tell() > size:
                    break
    if _size(part) < size:
        raise httpx.RemoteProtocolError("the connection closed early")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _check_size(url: str, part: Path, size: int) -> None:
    if (found := _size(part)) != size:
        part.unlink()
        raise NotFetched(
            f"{redact(url)} has the wrong size: {found:,} bytes in place of {size:,}. "
            "The index offers another file than the pinned one"
        )


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
