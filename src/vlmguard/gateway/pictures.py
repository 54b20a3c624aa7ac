"""The pictures of a request, loaded and checked once, and known again in the next turn."""

from __future__ import annotations

import asyncio
import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vlmguard.errors import InputError
from vlmguard.gateway.drafts import Picture
from vlmguard.gateway.errors import ApiError
from vlmguard.images import DEFAULT_LIMITS, ImageLimits, load_image
from vlmguard.images.fetch import Fetcher
from vlmguard.types import Image

_REMOTE = re.compile(r"\s*https?:", re.IGNORECASE)
_DATA = re.compile(r"\s*data:", re.IGNORECASE)
_QUICK = 128 * 1024  # characters of a URL that are hashed in less time than a thread takes
_REMOTE_KEPT_S = 300.0


@dataclass(frozen=True, slots=True)
class _Loaded:
    """A checked picture, and its ``data:`` URL as it is sent."""

    image: Image
    url: str
    until: float

    @property
    def cost(self) -> int:
        return len(self.image.data) + len(self.url)


class Pictures:
    """Loads the pictures of requests. May be used by many requests at once.

    A conversation sends its pictures again with every turn, so the last ones are kept; a remote
    one for five minutes, so that a conversation does not fetch it anew each time.

    Args:
        fetcher: for http(s) URLs; ``None`` refuses them.
        limits: caps on bytes, pixels and frames.
        kept_bytes: memory for pictures that were seen lately.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        fetcher: Fetcher | None,
        *,
        limits: ImageLimits = DEFAULT_LIMITS,
        kept_bytes: int = 64 * 1024 * 1024,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetcher = fetcher
        self._limits = limits
        self._kept_bytes = kept_bytes
        self._clock = clock
        self._kept: OrderedDict[bytes, _Loaded] = OrderedDict()
        self._size = 0

    async def load(self, pictures: Sequence[Picture], *, most: int) -> dict[int, Image]:
        """Load all pictures of a request, and write each back as the ``data:`` URL of its bytes.

        Args:
            pictures: of a draft.
            most: more of them are refused before any is looked at.

        Returns:
            ``id`` of the `Picture` → the picture.

        Raises:
            ApiError: names the picture that cannot be used, and why.
        """
        if not pictures:
            return {}
        if len(pictures) > most:
            raise ApiError(
                400,
                f"{len(pictures)} pictures are more than the policy's max_images of {most}",
                code="too_many_images",
                param=pictures[most].where,
            )
        loaded = await asyncio.gather(*(self._load(picture) for picture in pictures))
        for picture, found in zip(pictures, loaded, strict=True):
            if picture.url != found.url:
                picture.put(found.url, found.image)
        return {id(picture): found.image for picture, found in zip(pictures, loaded, strict=True)}

    async def _load(self, picture: Picture) -> _Loaded:
        url = picture.url
        quick = len(url) <= _QUICK
        key = _digest(url) if quick else await asyncio.to_thread(_digest, url)
        found = self._kept.get(key)
        if found is not None and self._clock() < found.until:
            self._kept.move_to_end(key)
            return found
        try:
            found = await self._read(url)
        except InputError as error:
            raise ApiError(
                400, f"{picture.where}: {error}", code="invalid_image", param=picture.where
            ) from None
        self._keep(key, found)
        return found

    async def _read(self, url: str) -> _Loaded:
        if _DATA.match(url):
            return await asyncio.to_thread(self._check, url)
        if not _REMOTE.match(url):
            raise InputError(f"{url:.60}: give a data: URL, or an http or https URL")
        if self._fetcher is None:
            raise InputError("pictures from http(s) URLs are switched off here; send a data: URL")
        image = await self._fetcher.fetch_image(url)
        return _Loaded(image, image.data_url(), self._clock() + _REMOTE_KEPT_S)

    def _check(self, url: str) -> _Loaded:
        image = load_image(url, limits=self._limits)
        sent = image.data_url()
        return _Loaded(image, url if url == sent else sent, float("inf"))

    def _keep(self, key: bytes, loaded: _Loaded) -> None:
        if loaded.cost > self._kept_bytes:
            return
        old = self._kept.pop(key, None)
        self._size += loaded.cost - (old.cost if old else 0)
        self._kept[key] = loaded
        while self._size > self._kept_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._size -= dropped.cost


def _digest(url: str) -> bytes:
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).digest()
