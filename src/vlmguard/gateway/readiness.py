"""Whether requests can be answered: models that are loaded, servers that are there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from vlmguard.engines.openai import Server
from vlmguard.errors import MissingExtra, VLMGuardError

try:
    import aiohttp
    from yarl import URL
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway", "serve") from error

_PROBE_S = 2.0
_RETRY_S, _RETRY_AT_MOST_S = 2.0, 60.0
_NOT_NOW = frozenset({502, 503, 504})
_LOADING = "is being loaded"
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Readiness:
    """What ``/health/ready`` tells.

    Attributes:
        problems: part (``rewriter``, ``target``) → what is wrong with it, without hosts and paths.
        stopping: those of the parts without which requests are not answered as they should be.
    """

    problems: Mapping[str, str] = field(default_factory=dict)
    stopping: frozenset[str] = frozenset()

    @property
    def status(self) -> Literal["ok", "degraded", "not ready"]:
        """``degraded``: requests are answered, but something is wrong."""
        if self.stopping:
            return "not ready"
        return "degraded" if self.problems else "ok"


class Loading:
    """Loads models beside the running server; one that cannot be had is tried again and again.

    Args:
        parts: name → loads it.
        retry_s: seconds until the second attempt; the pause doubles, up to a minute.
    """

    def __init__(
        self, parts: Mapping[str, Callable[[], Awaitable[None]]], *, retry_s: float = _RETRY_S
    ) -> None:
        self._parts = parts
        self._retry_s = retry_s
        self.problems: dict[str, str] = dict.fromkeys(parts, _LOADING)
        """Part → why it is not there yet; empty when all are."""

    async def run(self) -> None:
        """Load all parts; returns when all are there."""
        await asyncio.gather(*(self._load(name) for name in self._parts))

    async def _load(self, name: str) -> None:
        pause_s, told = self._retry_s, ""
        while True:
            try:
                await self._parts[name]()
            except Exception as error:  # noqa: BLE001  # whatever it is, the server goes on
                reason = f"{type(error).__name__}: {error}"
                if reason != told:  # once, not at every attempt
                    told = reason
                    if isinstance(error, VLMGuardError):
                        _log.error("the %s cannot be loaded: %s", name, error)  # told in full
                    else:
                        _log.exception("the %s cannot be loaded", name)
                self.problems[name] = f"cannot be loaded ({type(error).__name__}; see the log)"
            else:
                del self.problems[name]
                if told:
                    _log.info("the %s is loaded now", name)
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _RETRY_AT_MOST_S)


async def problem_with(server: Server) -> str | None:
    """What is wrong with an OpenAI-compatible server; ``None`` when it seems fine.

    It is asked for its models. Some servers have no such route, or another key for it: what counts
    is that something answers that does not call itself unavailable, or our key wrong.
    """
    headers = {"Authorization": f"Bearer {server.key}"} if server.key else {}
    try:
        async with (
            asyncio.timeout(_PROBE_S),
            aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session,
            session.get(
                URL(f"{server.url.rstrip('/')}/models", encoded=True),
                headers=headers,
                allow_redirects=False,
            ) as response,
        ):
            status = response.status
    except (aiohttp.ClientError, OSError):  # a timeout is an OSError
        return "cannot be reached"
    if status in _NOT_NOW:
        return f"answers with status {status}"
    if status == 401 and server.key:
        return "refuses the gateway's key"
    return None
