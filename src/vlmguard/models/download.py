"""Fetch a large file so that nothing is lost when the line breaks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import httpx
import stamina

from vlmguard.errors import ModelStoreError
from vlmguard.models import notices
from vlmguard.models.index import NotFetched, redact

_CHUNK = 1 << 20
_ATTEMPTS = 4
_IDLE_S = 30.0


class _TryAgain(Exception):
    """The same request may succeed a moment later: 429, 5xx, a transfer cut short."""


def fetch(url: str, part: Path, *, size: int, what: str) -> None:
    """Fetch ``url`` into ``part``, going on after what is already there.

    Whether the bytes are the right ones is the caller's to check.

    Args:
        url: ``https:``, ``http:`` or ``file:``.
        part: the file to fill; kept when the transfer breaks, for the next attempt.
        size: how many bytes there must be in the end.
        what: what to call it beside the progress bar.

    Raises:
        NotFetched: the server cannot be reached or refuses.
        ModelStoreError: it sends another size.
    """
    if _size(part) > size:
        part.unlink()
    if (done := _size(part)) == size:
        return
    with notices.transfer(what, total=size, done=done) as at:
        if urlsplit(url).scheme == "file":
            _copy(url, part, at=at)
        else:
            _download(url, part, size=size, at=at)
    if (found := _size(part)) != size:
        part.unlink()
        raise ModelStoreError(
            f"{redact(url)} has the wrong size: {found:,} bytes or more in place of {size:,}. "
            "The package index offers another file than the pinned one"
        )


def _copy(url: str, part: Path, *, at: Callable[[int], None]) -> None:
    path = Path(url2pathname(urlsplit(url).path))
    if not path.is_file():
        raise NotFetched(f"{unquote(url)} is not there any more")
    with path.open("rb") as source, part.open("wb") as target:
        while chunk := source.read(_CHUNK):
            target.write(chunk)
            at(target.tell())


def _download(url: str, part: Path, *, size: int, at: Callable[[int], None]) -> None:
    # The environment's proxies and certificates hold: trust_env is httpx's default.
    with httpx.Client(follow_redirects=True, timeout=_IDLE_S) as client:
        while _size(part) < size:
            before = _size(part)
            try:
                for attempt in stamina.retry_context(
                    on=(httpx.TransportError, _TryAgain), attempts=_ATTEMPTS, timeout=None
                ):
                    with attempt:
                        _append(client, url, part, size=size, at=at)
            except (httpx.HTTPError, httpx.InvalidURL, _TryAgain) as error:
                if _size(part) <= before:  # a bad line is fine as long as it moves
                    why = redact(str(error)) or type(error).__name__
                    raise NotFetched(f"cannot fetch {redact(url)}: {why}") from error


def _append(
    client: httpx.Client, url: str, part: Path, *, size: int, at: Callable[[int], None]
) -> None:
    """One request for the bytes that are missing."""
    done = _size(part)
    # Ranges count encoded bytes, so the body must not be compressed.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        if status == httpx.codes.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()
            raise _TryAgain("the partial file is longer than the server's")
        if status == httpx.codes.TOO_MANY_REQUESTS or status >= 500:
            raise _TryAgain(f"HTTP {status} {response.reason_phrase}".rstrip())
        if status not in {httpx.codes.OK, httpx.codes.PARTIAL_CONTENT}:
            raise NotFetched(
                f"cannot fetch {redact(url)}: HTTP {status} {response.reason_phrase}".rstrip()
            )
        resumed = status == httpx.codes.PARTIAL_CONTENT and response.headers.get(
            "Content-Range", ""
        ).startswith(f"bytes {done}-")
        with part.open("ab" if resumed else "wb") as target:
            for chunk in response.iter_raw():  # as they come: a fixed size would hold bytes back
                target.write(chunk)
                at(target.tell())
                if target.tell() > size:
                    return
    if _size(part) < size:
        raise _TryAgain("the connection closed early")


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
