"""From the target to the client: bodies as they are, events as they come."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import aiohttp
import orjson

from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError
from vlmguard.gateway.upstream import headers_back

_log = logging.getLogger(__name__)

_WHOLE = 1024 * 1024
"""Bytes up to which a body is read before it is sent on."""
_HELD = 1024 * 1024
"""Bytes of an unfinished event that are held back at most."""
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")

ErrorEvent = Callable[[ApiError], bytes]


async def relay(
    call: Call,
    response: aiohttp.ClientResponse,
    *,
    broken: ErrorEvent,
    report: dict[str, Any] | None = None,
) -> None:
    """Send the target's response to the client. The caller closes it.

    Args:
        call: to answer.
        response: its body not yet read.
        broken: the event that ends a stream whose target went away.
        report: to add to the answer.

    Raises:
        ApiError: the target broke off before anything was sent.
    """
    kind = response.content_type
    if kind == "text/event-stream":
        await _relay_events(call, response, broken=broken, report=report)
        return
    length = response.content_length
    if kind == "application/json" or (length is not None and length <= _WHOLE):
        await _relay_whole(call, response, report=report)
        return
    await _relay_pieces(call, response)


async def _relay_whole(
    call: Call, response: aiohttp.ClientResponse, *, report: dict[str, Any] | None
) -> None:
    try:
        data = await response.read()
    except TimeoutError:
        raise ApiError(504, "The target did not answer in time", code="target_timeout") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(
            502, "The target broke off in the middle of its answer", code="target_broke_off"
        ) from error
    if report is not None and response.status == 200:
        data = with_report(data, report)
    headers = [one for one in headers_back(response) if one[0] != b"content-length"]
    headers.append((b"content-length", str(len(data)).encode()))
    await call.start(response.status, headers)
    await call.end(data)


async def _relay_pieces(call: Call, response: aiohttp.ClientResponse) -> None:
    await call.start(response.status, headers_back(response))
    async for chunk in response.content.iter_any():
        await call.more(chunk)
    await call.end()


async def _relay_events(
    call: Call,
    response: aiohttp.ClientResponse,
    *,
    broken: ErrorEvent,
    report: dict[str, Any] | None,
) -> None:
    """Whole events, each as soon as its last byte is here.

    The beginning of an event is held back: it is of no use to anybody, and if the target goes away
    there, an error event can still follow that clients can read.
    """
    headers = [one for one in headers_back(response) if one[0] != b"content-length"]
    await call.start(response.status, headers)
    held = b""
    try:
        async for chunk in response.content.iter_any():
            data = held + chunk if held else chunk
            if data.endswith(_ENDS):
                held = b""
                await call.more(data)
                continue
            cut = _last_end(data)
            held = data[cut:]
            if len(held) > _HELD:
                cut, held = len(data), b""
            if cut:
                await call.more(data[:cut])
    except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
        _log.warning("the target broke off in the middle of a stream: %s", type(error).__name__)
        slow = isinstance(error, TimeoutError)
        told = ApiError(
            504 if slow else 502,
            "The target sent nothing more in time"
            if slow
            else "The target broke off in the middle of its answer",
            code="target_timeout" if slow else "target_broke_off",
        )
        await call.end(broken(told))
        return
    await call.end(held + (report_comment(report) if report is not None else b""))


def _last_end(data: bytes) -> int:
    """Where the last whole event ends; 0 when there is none."""
    return max(at + len(mark) if (at := data.rfind(mark)) >= 0 else 0 for mark in _ENDS)


def with_report(data: bytes, report: dict[str, Any]) -> bytes:
    """A JSON body with the report as ``vlmguard``; anything else as it is."""
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return data
    if not isinstance(body, dict):
        return data
    return orjson.dumps(body | {"vlmguard": report})


def report_comment(report: dict[str, Any]) -> bytes:
    """The report as a comment in a stream, which clients of the API skip."""
    return b": vlmguard " + orjson.dumps(report) + b"\n\n"


def chat_error_event(error: ApiError) -> bytes:
    """As OpenAI's clients read it in chat completions and completions."""
    return b"data: " + error.body() + b"\n\n"


def response_error_event(error: ApiError) -> bytes:
    """As OpenAI's clients read it in responses."""
    told = orjson.loads(error.body())
    told |= {"type": "error", "code": error.code, "message": str(error), "param": None}
    return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"


def message_error_event(error: ApiError) -> bytes:
    """As Anthropic's clients read it."""
    told = {"type": "error", "error": {"type": "api_error", "message": str(error)}}
    return b"event: error\ndata: " + orjson.dumps(told) + b"\n\n"
