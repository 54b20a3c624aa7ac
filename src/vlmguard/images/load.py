"""From what a user names (a path, bytes, a ``data:`` URL) to a checked `Image`."""

from __future__ import annotations

import base64
import binascii
import os
import re
from pathlib import Path
from urllib.parse import unquote_to_bytes

from vlmguard.errors import InputError
from vlmguard.images.decode import DEFAULT_LIMITS, ImageLimits, decode
from vlmguard.images.formats import sniff
from vlmguard.types import Image

_URL = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+):(//)?")


def load_image(
    source: str | Path | bytes | Image, *, limits: ImageLimits = DEFAULT_LIMITS
) -> Image:
    """Load and check a picture. CPU-bound: in async code, call it in a thread.

    The picture is decoded completely, so that a damaged one is refused here and not later, in the
    middle of a conversation. Its media type comes from its bytes.

    Args:
        source: a path, the bytes of a file, a ``data:`` URL, or an `Image` to check. Remote URLs
            are not fetched here; see `vlmguard.images.fetch`.
        limits: caps on bytes, pixels and frames.

    Raises:
        InputError: names the source, what is wrong with it, and the fix.
    """
    if isinstance(source, Image):
        data, name = source.data, source.source
    elif isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "bytes"
    elif isinstance(source, Path):
        data, name = _read(source, limits), str(source)
    elif isinstance(source, str):
        data, name = _from_string(source, limits)
    else:
        raise InputError(
            f"an image is a path, bytes or a data: URL, not {type(source).__name__} {source!r:.60}"
        )
    image = Image(data=data, media_type=sniff(data, name).media_type, source=name)
    decode(image, limits)
    return image


def _from_string(source: str, limits: ImageLimits) -> tuple[bytes, str]:
    stripped = source.strip()
    if not stripped:
        raise InputError("an image source is empty; give a path, bytes or a data: URL")
    url = _URL.match(stripped)
    scheme = url[1].lower() if url else ""
    if scheme == "data":
        return parse_data_url(stripped, limits), "data: URL"
    if scheme in {"http", "https"}:
        raise InputError(
            f"{stripped:.200}: remote images are not fetched unless asked for; "
            "use --allow-remote, or vlmguard.images.fetch in Python"
        )
    if url and url[2]:
        raise InputError(
            f"{stripped:.200}: {scheme}: URLs are not read; give a path, bytes or a data: URL"
        )
    return _read(Path(source), limits), source


def parse_data_url(url: str, limits: ImageLimits = DEFAULT_LIMITS) -> bytes:
    """The bytes of a ``data:`` URL (RFC 2397), base64 or percent-encoded.

    Raises:
        InputError: malformed, wrong base64, or over the byte limit.
    """
    head, comma, payload = url.strip().partition(",")
    if not comma:
        raise InputError(
            f"data: URL: no comma after {head!r:.60}; it reads data:image/png;base64,…"
        )
    if len(payload) > 3 * limits.max_bytes:  # the worst case: every byte percent-encoded
        raise InputError(f"data: URL: over the limit of {limits.max_bytes:,} bytes")
    if not head.lower().replace(" ", "").endswith(";base64"):
        return unquote_to_bytes(payload)
    text = unquote_to_bytes(payload) if "%" in payload else payload.encode("utf-8", "replace")
    try:
        return base64.b64decode(b"".join(text.split()), validate=True)
    except binascii.Error as error:
        raise InputError(f"data: URL: its base64 is wrong: {error}") from None


def _read(path: Path, limits: ImageLimits) -> bytes:
    shown = f"{str(path)[:200]}"
    try:
        if not path.exists():
            raise InputError(f"{shown}: no such file")
        if path.is_dir():
            raise InputError(f"{shown}: is a directory; name a picture in it")
        if not path.is_file():  # a pipe or device may never end
            raise InputError(f"{shown}: not a regular file")
        size = path.stat().st_size
        if size > limits.max_bytes:
            raise InputError(
                f"{shown}: {size:,} bytes is over the limit of {limits.max_bytes:,}; scale it down"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # no permission, name too long, NUL in the name, …
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise InputError(f"{shown!r}: cannot be read: {reason}") from error
