"""A Redis that may go away: short timeouts, one line in the log, and back when it is back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar
from urllib.parse import urlsplit

from vlmguard.errors import ConfigError, MissingExtra
from vlmguard.gateway.breaker import Breaker

try:
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff
    from redis.exceptions import RedisError
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("sharing state in Redis", "serve") from error

Answer = TypeVar("Answer")
_log = logging.getLogger(__name__)

TIMEOUT_S = 0.05
"""For a command, connecting included. What takes longer is not worth waiting for."""
_OPEN_S = 1.0
"""For the first connection, before there are requests that wait."""
PAUSE_S = 1.0
"""After a failure Redis is left alone for so long, so that not every request waits in vain."""


class RedisLink:
    """Asks Redis, and goes on without it when it does not answer.

    Nothing connects before `open` or the first command. Bound to the event loop that it is first
    used in.

    Args:
        url: ``redis://``, ``rediss://`` (TLS) or ``unix://``, with user and password where needed.
        timeout_s: for one command, connecting included.
        pause_s: seconds without it after a failure.

    Raises:
        ConfigError: not such a URL.
    """

    def __init__(self, url: str, *, timeout_s: float = TIMEOUT_S, pause_s: float = PAUSE_S) -> None:
        try:
            parts = urlsplit(url)
            self._where = parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port}"
            # One try each: a second one would double the wait of a request that can do without.
            self._redis: Redis = Redis.from_url(url, retry=Retry(NoBackoff(), 0))
        except ValueError as error:
            # Not the URL itself: it may hold a password.
            raise ConfigError(f"the Redis URL is not valid: {error}") from None
        self._timeout_s = timeout_s
        self._breaker = Breaker(failures=1, pause_s=pause_s)

    @property
    def up(self) -> bool:
        """Whether the last command was answered (``True`` before the first)."""
        return self._breaker.state == "closed"

    async def open(self) -> None:
        """Connect now, so that the first request need not; says so in the log if that fails."""
        await self._ask(lambda redis: redis.ping(), _OPEN_S)

    async def ask(self, command: Callable[[Redis], Awaitable[Answer]]) -> Answer | None:
        """The answer of ``command``, or ``None`` when Redis did not give one. Never raises for it.

        Args:
            command: gets the client. One that may answer ``None`` itself looks the same as none.
        """
        return await self._ask(command, self._timeout_s)

    async def _ask(
        self, command: Callable[[Redis], Awaitable[Answer]], timeout_s: float
    ) -> Answer | None:
        was_up = self.up
        if not self._breaker.allow():
            return None
        try:
            async with asyncio.timeout(timeout_s):
                answer = await command(self._redis)
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            self._breaker.failure()
            if was_up:
                reason = f"{type(error).__name__}: {error}".removesuffix(": ")
                _log.warning("Redis at %s is gone (%s); going on without it", self._where, reason)
            return None
        self._breaker.success()
        if not was_up:
            _log.warning("Redis at %s is back", self._where)
        return answer

    async def aclose(self) -> None:
        """Close the connections."""
        await self._redis.aclose()
