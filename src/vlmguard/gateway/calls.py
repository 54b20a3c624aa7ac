"""One request: what came, who asks, and how it is answered."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson

from vlmguard.gateway.errors import ApiError, bad_field
from vlmguard.gateway.keys import ApiKey

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]

JSON = b"application/json"
EVENTS = b"text/event-stream; charset=utf-8"


class ClientGone(Exception):  # an event, told apart by its name
    """The client hung up before its request was complete. Nobody is there to be told."""


@dataclass(slots=True)
class Call:
    """A request on its way through the gateway.

    Attributes:
        scope, receive, send: ASGI's.
        route: the path as it is registered, for numbers and logs.
        id: in ``x-vlmguard-request-id``, in logs and in the audit log.
        headers: of the request, names in lower case; of repeated ones the last.
        key: whose key was given; ``None`` where none is asked for.
        told: response headers beside the answer's own.
        trace: headers that carry the trace on to the target.
        came, started: when; with a time zone, and in seconds of `time.perf_counter`.
        status: of the response, once it has begun; 0 before.
        gone: the client has hung up.
    """

    scope: Scope
    receive: Receive
    send: Send
    route: str
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    headers: dict[bytes, bytes] = field(init=False)
    key: ApiKey | None = None
    told: list[tuple[bytes, bytes]] = field(default_factory=list)
    trace: dict[str, str] = field(default_factory=dict)
    came: datetime = field(default_factory=lambda: datetime.now(UTC))
    started: float = field(default_factory=time.perf_counter)
    status: int = 0
    gone: bool = False
    _finished: bool = False

    def __post_init__(self) -> None:
        self.headers = dict(self.scope["headers"])
        self.told.append((b"x-vlmguard-request-id", self.id.encode()))

    @property
    def method(self) -> str:
        """The HTTP method, in upper case."""
        return str(self.scope["method"])

    @property
    def elapsed_ms(self) -> float:
        """Since it came in."""
        return (time.perf_counter() - self.started) * 1000

    @property
    def bearer(self) -> str:
        """The token of the ``Authorization`` header, or of ``x-api-key``; may be empty."""
        scheme, _, token = self.headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer" and token.strip():
            return token.strip().decode("latin-1")
        return self.headers.get(b"x-api-key", b"").decode("latin-1")

    async def body(self, limit: int, timeout_s: float) -> bytes:
        """The whole body.

        Args:
            limit: bytes.
            timeout_s: for all of it to arrive.

        Raises:
            ApiError: too large (413) or too slow (408).
            ClientGone: the client hung up.
        """
        declared = self.headers.get(b"content-length", b"")
        if declared.isdigit() and (len(declared) > 15 or int(declared) > limit):
            raise _too_large(limit)
        event = await self._event(timeout_s)
        if not event.get("more_body", False):
            whole: bytes = event.get("body", b"")
            if len(whole) > limit:
                raise _too_large(limit)
            return whole
        chunks = bytearray(event.get("body", b""))
        deadline = time.perf_counter() + timeout_s
        while event.get("more_body", False):
            if len(chunks) > limit:
                raise _too_large(limit)
            event = await self._event(deadline - time.perf_counter())
            chunks += event.get("body", b"")
        if len(chunks) > limit:
            raise _too_large(limit)
        return bytes(chunks)

    async def _event(self, timeout_s: float) -> Event:
        try:
            async with asyncio.timeout(timeout_s):
                event = await self.receive()
        except TimeoutError:
            raise ApiError(
                408,
                "The body of the request did not arrive in time",
                code="request_timeout",
                headers={"connection": "close"},
            ) from None
        if event["type"] == "http.disconnect":
            raise ClientGone
        return event

    async def json(self, limit: int, timeout_s: float) -> tuple[bytes, dict[str, Any]]:
        """The body, and the JSON object in it.

        Raises:
            ApiError: too large, too slow, or not a JSON object.
        """
        raw = await self.body(limit, timeout_s)
        try:
            parsed = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            # The decoder's words and place, never the text: it may be anything.
            raise ApiError(
                400, f"The body is not valid JSON: {error.msg}", code="invalid_json"
            ) from None
        if not isinstance(parsed, dict):
            raise bad_field("body", "must be a JSON object")
        return raw, parsed

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Cancel the block when the client hangs up. Only after the body was read."""
        task = asyncio.current_task()
        assert task is not None
        watcher = asyncio.ensure_future(self._watch(task))
        try:
            yield
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        if not self._finished:  # servers report an answer's end in the same way
            self.gone = True
            task.cancel()

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Begin the answer."""
        self.status = status
        await self.send(
            {"type": "http.response.start", "status": status, "headers": headers + self.told}
        )

    async def more(self, data: bytes) -> None:
        """Send a piece of the answer."""
        await self.send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece."""
        self._finished = True
        await self.send({"type": "http.response.body", "body": data})

    async def answer(
        self,
        status: int,
        data: bytes,
        *,
        content_type: bytes = JSON,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a whole answer."""
        more = [(k.encode("latin-1"), v.encode("latin-1")) for k, v in (headers or {}).items()]
        await self.start(
            status,
            [
                (b"content-type", content_type),
                (b"content-length", str(len(data)).encode()),
                *more,
            ],
        )
        await self.end(b"" if self.method == "HEAD" else data)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"The body is over the limit of {limit:,} bytes; scale pictures down, or ask the operator "
        "to raise max_body_bytes",
        code="body_too_large",
        headers={"connection": "close"},  # the rest of it is not read
    )
