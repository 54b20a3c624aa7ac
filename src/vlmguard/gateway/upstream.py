"""The target behind HTTP: bodies and errors pass as they are, events as they come."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import lru_cache
from urllib.parse import quote

from vlmguard.engines import open_engine
from vlmguard.engines.openai import server_of
from vlmguard.engines.spec import EngineSpec
from vlmguard.errors import MissingExtra
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError
from vlmguard.gateway.settings import Settings

try:
    import aiohttp
    from multidict import CIMultiDict
    from yarl import URL
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway", "serve") from error

_log = logging.getLogger(__name__)
_CONNECT_S = 10.0
_IDLE_S = 4.0
"""Idle connections are closed before common servers close theirs (uvicorn: after 5 s), so that no
request is sent into a closing one."""

# Those of one connection (RFC 9110), and those that the gateway answers for itself.
_NOT_SENT_ON = frozenset(
    {
        b"accept-encoding",
        b"authorization",
        b"connection",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"keep-alive",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
    }
)
_NOT_PASSED_BACK = frozenset(
    {
        b"connection",
        b"date",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-connection",
        b"server",
        b"set-cookie",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_BROKEN = frozenset({502, 503, 504})


class Upstream:
    """An OpenAI-compatible server.

    Args:
        settings: its URL, key and timeouts.

    Raises:
        ConfigError: the spec is malformed, or the key's variable is not set.
    """

    def __init__(self, settings: Settings) -> None:
        spec = EngineSpec.parse(target_spec(settings))
        open_engine(str(spec))  # checks the options; nothing connects
        self.server = server = server_of(spec)
        self.model = server.model
        self.name = f"openai:{server.model}@{server.url}"
        self.breaker = Breaker()
        self._base = server.url.rstrip("/")
        self._key = server.key
        self._pass_key_on = settings.keys is None and server.key is None
        timeout = spec.options.get("timeout")
        read_s = settings.target_timeout_s if timeout is None else float(timeout)
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=read_s)
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Open the pool of connections, in the event loop that uses it."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S, ttl_dns_cache=30),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            timeout=self._timeout,
            read_bufsize=256 * 1024,
        )

    async def aclose(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def send(
        self, call: Call, path: str, body: bytes | None, *, query: bytes = b""
    ) -> aiohttp.ClientResponse:
        """The server's response, its body not yet read. Whoever takes it closes it.

        Args:
            call: gives the method and the headers.
            path: below the base URL, decoded: ``/chat/completions``.
            body: ``None`` for none.
            query: as it came.

        Raises:
            ApiError: it cannot be reached (502), is left alone (503), or does not answer (504).
        """
        assert self._session is not None
        if not self.breaker.allow():
            raise ApiError(
                503,
                "The target has failed repeatedly and is left alone for a moment",
                code="target_unavailable",
                headers={"retry-after": str(max(1, round(self.breaker.wait_s)))},
            )
        url = _url(self._base, path)
        if query:
            url = URL(f"{url}?{query.decode('ascii', 'replace')}", encoded=True)
        try:
            response = await self._session.request(
                call.method,
                url,
                data=body,
                headers=self._headers(call, has_body=body is not None),
                allow_redirects=False,
            )
        except TimeoutError:
            self.breaker.failure()
            _log.warning("the target did not answer in time")
            raise ApiError(
                504, "The target did not answer in time", code="target_timeout"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            self.breaker.failure()
            # The reason tells addresses of the inner network: for the log only. Other errors than
            # that of connecting may quote what the target sent.
            known = isinstance(error, aiohttp.ClientConnectorError)
            reason = str(error) if known else type(error).__name__
            _log.warning("the target cannot be reached: %s", reason)
            raise ApiError(
                502, "The target cannot be reached", code="target_unavailable"
            ) from error
        if response.status in _BROKEN:
            self.breaker.failure()
        else:
            self.breaker.success()
        return response

    def _headers(self, call: Call, *, has_body: bool) -> CIMultiDict[str]:
        headers: CIMultiDict[str] = CIMultiDict()
        for name, value in call.headers.items():
            if name not in _NOT_SENT_ON and not name.startswith(b"x-vlmguard-"):
                headers[name.decode("latin-1")] = value.decode("latin-1")
        if has_body:
            headers["Content-Type"] = "application/json"
        headers["Accept-Encoding"] = "identity"
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
            if b"anthropic-version" in call.headers:
                headers["x-api-key"] = self._key
        elif self._pass_key_on:
            for name in (b"authorization", b"x-api-key"):
                if name in call.headers:
                    headers[name.decode()] = call.headers[name].decode("latin-1")
        headers.update(call.trace)
        return headers


@lru_cache(maxsize=256)
def _url(base: str, path: str) -> URL:
    return URL(base + quote(path, safe="/:@-._~!$&'()*+,;="), encoded=True)


def headers_back(response: aiohttp.ClientResponse) -> list[tuple[bytes, bytes]]:
    """The headers of a response that are the client's to see."""
    return [
        (lower, value)
        for name, value in response.raw_headers
        if (lower := name.lower()) not in _NOT_PASSED_BACK and not lower.startswith(b"x-vlmguard-")
    ]


def target_spec(settings: Settings) -> str:
    """The target's spec, with the variable of its key."""
    spec = EngineSpec.parse(settings.target)
    if settings.target_key_env is None or spec.scheme != "openai":
        return settings.target
    options = {**spec.options, "key_env": settings.target_key_env}
    return str(replace(spec, options=options))


def is_upstream(spec: str) -> bool:
    """Whether a spec names a server to forward to, not a model for this process."""
    return EngineSpec.parse(spec).scheme == "openai"
