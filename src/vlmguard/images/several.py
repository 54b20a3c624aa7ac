"""All pictures of a request at once, local or remote."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from vlmguard.images.load import load_image
from vlmguard.types import Image

_REMOTE = re.compile(r"\s*https?:", re.IGNORECASE)


async def load_images(
    sources: Sequence[Image | str | Path | bytes], *, allow_remote: bool = False
) -> tuple[Image, ...]:
    """Load and check pictures without blocking the event loop.

    Args:
        sources: as `load_image` takes them; with ``allow_remote`` also http(s) URLs.
        allow_remote: fetch http(s) URLs, safely (see `vlmguard.images.fetch`).

    Raises:
        InputError: names the first source that cannot be used.
    """
    fetcher = None
    if allow_remote:
        from vlmguard.images.fetch import Fetcher  # noqa: PLC0415  # brings the HTTP client

        fetcher = Fetcher()

    async def load(source: Image | str | Path | bytes) -> Image:
        if fetcher and isinstance(source, str) and _REMOTE.match(source):
            return await fetcher.fetch_image(source)
        return await asyncio.to_thread(load_image, source)

    return tuple(await asyncio.gather(*(load(source) for source in sources)))
