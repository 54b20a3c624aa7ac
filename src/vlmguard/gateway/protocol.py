"""HTTP/1.1 with limits that uvicorn does not have.

They are on the time and the size of a request's head, and on the time that a client takes to read.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from vlmguard.errors import MissingExtra
from vlmguard.gateway.errors import ApiError

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway", "serve") from error

_MOST_HEAD = 64 * 1024  # bytes; headers of real clients are under 8 KiB
_SLOW = ApiError(408, "The head of the request did not arrive in time", code="request_timeout")
_LARGE = ApiError(431, "The head of the request is too large", code="headers_too_large")
_MALFORMED = ApiError(400, "This is not a valid HTTP request", code="invalid_http")
_WORDS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class GuardedProtocol(HttpToolsProtocol):
    """Closes connections whose client does not send its headers, sends too many, or does not read.

    Args:
        given: uvicorn's.
        header_timeout_s: seconds for them.
        send_timeout_s: seconds for the client to take what waits for it.
    """

    def __init__(
        self, *given: Any, header_timeout_s: float, send_timeout_s: float, **named: Any
    ) -> None:
        super().__init__(*given, **named)
        self._header_timeout_s = header_timeout_s
        self._send_timeout_s = send_timeout_s
        self._unread: asyncio.TimerHandle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection that sends nothing is closed as well."""
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._stop_timer()
        self._read_again()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is sent to it. Closing would wait for it as well."""
        super().pause_writing()
        self._unread = self.loop.call_later(self._send_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        self._read_again()
        super().resume_writing()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        super().data_received(data)
        if self._timer is not None:  # the head is still not complete
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self._refuse(_LARGE)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._timer is None:
            self._start_timer()

    def on_headers_complete(self) -> None:
        """The body has a limit of its own, in the application."""
        self._stop_timer()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002  # uvicorn's
        """An answer in the form of all others."""
        self._refuse(_MALFORMED)

    def _start_timer(self) -> None:
        self._head = 0
        self._timer = self.loop.call_later(self._header_timeout_s, self._refuse, _SLOW)

    def _read_again(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _refuse(self, error: ApiError) -> None:
        self._stop_timer()
        if self.transport.is_closing():
            return
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if cycle is None or cycle.response_complete or not cycle.response_started:
            body = error.body()
            head = b"HTTP/1.1 %d %s\r\n" % (error.status, _WORDS[error.status])
            head += b"content-type: application/json\r\nconnection: close\r\n"
            self.transport.write(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        self.transport.close()


def protocol_with(*, header_timeout_s: float, send_timeout_s: float) -> Any:
    """The protocol with time limits, as uvicorn's ``http`` setting takes it."""
    return partial(
        GuardedProtocol, header_timeout_s=header_timeout_s, send_timeout_s=send_timeout_s
    )
