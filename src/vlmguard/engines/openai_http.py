"""HTTP to an OpenAI-compatible server: connections, timeouts, retries, the key."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import weakref
from collections.abc import Generator
from functools import cache
from ssl import SSLContext
from typing import Any

import httpx
import stamina
from pydantic import SecretStr

from vlmguard.engines.openai_clients import Clients
from vlmguard.engines.openai_errors import Busy, explain, explain_event
from vlmguard.errors import ConfigError, EngineError, EngineTimeout, EngineUnavailable

_CONNECT_S = 10.0
_LIMITS = httpx.Limits(max_connections=None, max_keepalive_connections=100, keepalive_expiry=30.0)
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_LOG = logging.getLogger("vlmguard")
# We say ourselves, and better, that a request is tried again.
logging.getLogger("stamina").addHandler(logging.NullHandler())


class Endpoint:
    """The chat-completions endpoint of a server. Works from any number of event loops.

    Args:
        base: base URL, usually ending in ``/v1``.
        key: sent as a bearer token; ``None`` sends none.
        timeout_s: seconds without a byte from the server.
        retries: how often a request is repeated.
        name: the engine's spec, for messages.
        transport: an httpx transport to use instead of the network.

    Raises:
        ConfigError: ``base`` is not a base URL that we can use.
    """

    def __init__(
        self,
        base: str,
        *,
        key: str | None,
        timeout_s: float,
        retries: int,
        name: str,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self.url = endpoint_url(base)
        self._name = name
        self._auth = _Bearer(key) if key else None
        self._timeout = httpx.Timeout(timeout_s, connect=_CONNECT_S, pool=None)
        self._tries = retries + 1
        self._transport = transport
        self._lock = threading.Lock()
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Clients] = (
            weakref.WeakKeyDictionary()
        )

    async def send(self, body: dict[str, Any], *, stream: bool = False) -> httpx.Response:
        """A successful response: read, or still open when it is to be streamed.

        Raises:
            EngineTimeout, EngineUnavailable, EngineRejected: there was none.
        """
        content = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
        tries = stamina.retry_context(
            on=_backoff,
            attempts=self._tries,
            timeout=None,
            wait_initial=0.5,
            wait_max=30.0,
            wait_jitter=1.0,
        )
        last: Busy | None = None
        try:
            async for attempt in tries:
                with attempt:
                    if last is not None:
                        _LOG.warning("%s; try %d of %d", last, attempt.num, self._tries)
                    try:
                        return await self._try(content, stream=stream)
                    except Busy as busy:
                        last = busy
                        raise
        except Busy as busy:
            told = f" ({self._tries} tries)" if self._tries > 1 and busy.retry else ""
            raise EngineUnavailable(f"{busy}{told}") from busy.__cause__
        raise AssertionError("a retried block returns or raises")

    def failed(self, error: httpx.HTTPError) -> EngineError:
        """What a failed exchange means."""
        slow = isinstance(error, httpx.TimeoutException)
        if slow and not isinstance(error, httpx.ConnectTimeout):
            return EngineTimeout(
                f"{self._name}: nothing came for {self._timeout.read:g} s; "
                "raise ?timeout= if the model is slow"
            )
        reason = str(error) or type(error).__name__
        return Busy(f"{self._name}: cannot talk to {self.url.netloc.decode()}: {reason}")

    def problem(self, body: dict[str, Any]) -> EngineError:
        """What an error object means that came where an answer was expected."""
        return explain_event(body, spec=self._name, key=self._key)

    async def aclose(self) -> None:
        """Close the connections of the running event loop; those of ended loops are gone."""
        with self._lock:
            clients = self._clients.pop(asyncio.get_running_loop(), None)
        if clients is not None:
            await clients.aclose()

    @property
    def _key(self) -> SecretStr | None:
        return self._auth.key if self._auth else None

    async def _try(self, content: bytes, *, stream: bool) -> httpx.Response:
        try:
            response = await self._of_this_loop().post(
                self.url, content=content, auth=self._auth, stream=stream
            )
        except httpx.HTTPError as error:
            raise self.failed(error) from error
        if response.is_success:
            return response
        raise explain(response, spec=self._name, key=self._key, url=self.url)

    def _of_this_loop(self) -> Clients:
        """The HTTP clients of the running event loop: connections cannot be shared by loops."""
        loop = asyncio.get_running_loop()
        with self._lock:
            clients = self._clients.get(loop)
            if clients is None:
                clients = self._clients[loop] = Clients(self._client)
            return clients

    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            timeout=self._timeout,
            limits=_LIMITS,
            transport=self._transport,
            verify=_tls(),
            # A proxy from the environment is for the network, not for this machine.
            mounts=None if self._transport else {f"all://{host}": _direct() for host in _LOOPBACK},
        )


def _backoff(error: Exception) -> bool | float:
    """Whether to try again, or after how many seconds."""
    if not isinstance(error, Busy) or not error.retry:
        return False
    return True if error.retry_after_s is None else error.retry_after_s


class _Bearer(httpx.Auth):
    """Adds the key to a request and shows it to nobody else."""

    def __init__(self, key: str) -> None:
        self.key = SecretStr(key)

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["authorization"] = f"Bearer {self.key.get_secret_value()}"
        yield request


@cache
def _tls() -> SSLContext:
    return httpx.create_ssl_context()  # 20 ms, and the same for all


def _direct() -> httpx.AsyncHTTPTransport:
    return httpx.AsyncHTTPTransport(limits=_LIMITS, verify=_tls())


def endpoint_url(base: str) -> httpx.URL:
    """The URL to post to.

    Raises:
        ConfigError: not a base URL that we can use.
    """
    try:
        url = httpx.URL(base)
    except (httpx.InvalidURL, TypeError) as error:
        raise ConfigError(f"{base!r} is not a URL: {error}") from None
    if url.userinfo:
        raise ConfigError(
            f"the URL of {url.host} contains a name or password; put the key into an environment "
            "variable and name it with ?key_env="
        )
    if url.scheme not in {"http", "https"} or not url.host or (url.port or 0) > 65535:
        raise ConfigError(f"{base!r} is not a URL of the form http://host:port/v1")
    path = url.path.rstrip("/")
    if path.endswith("/chat/completions"):
        raise ConfigError(f"{base!r}: give the base URL, without /chat/completions")
    return url.copy_with(path=f"{path}/chat/completions")
