"""From the target to the client: bodies as they are, events as they come."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import orjson

from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError
from vlmguard.gateway.upstream import headers_back
from vlmguard.types import Usage

_log = logging.getLogger(__name__)

_WHOLE = 1024 * 1024
"""Bytes up to which a body is read before it is sent on."""
_HELD = 1024 * 1024
"""Bytes of an unfinished event that are held back at most."""
_OK = 200
_USAGE = b'"usage"'
_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")

ErrorEvent = Callable[[ApiError], bytes]
Ready = Callable[[Usage], Awaitable[None]]
"""Called once the answer is about to begin, with its tokens where they are known by then."""


async def relay(
    call: Call,
    response: aiohttp.ClientResponse,
    *,
    broken: ErrorEvent,
    ready: Ready,
    report: dict[str, Any] | None = None,
) -> Usage:
    """Send the target's response to the client. The caller closes it.

    Args:
        call: to answer.
        response: its body not yet read.
        broken: the event that ends a stream whose target went away.
        ready: called before the first byte; what it raises is told instead of the answer.
        report: to add to the answer.

    Returns:
        The tokens that the target counted.

    Raises:
        ApiError: the target broke off before anything was sent.
    """
    kind = response.content_type
    length = response.content_length
    if kind == "application/json" or (
        kind != "text/event-stream" and length is not None and length <= _WHOLE
    ):
        data = await _read(response)
        usage = usage_in(data) if response.status == _OK else Usage()
        await ready(usage)
        await _send_whole(call, response, data, report=report)
        return usage
    await ready(Usage())
    if kind == "text/event-stream":
        return await _relay_events(call, response, broken=broken, report=report)
    await _relay_pieces(call, response)
    return Usage()


async def _read(response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except TimeoutError:
        raise ApiError(504, "The target did not answer in time", code="target_timeout") from None
    except (aiohttp.ClientError, OSError) as error:
        raise ApiError(
            502, "The target broke off in the middle of its answer", code="target_broke_off"
        ) from error


async def _send_whole(
    call: Call,
    response: aiohttp.ClientResponse,
    data: bytes,
    *,
    report: dict[str, Any] | None,
) -> None:
    if report is not None and response.status == _OK:
        data = with_report(data, report)
    headers = [one for one in headers_back(response) if one[0] != b"content-length"]
    headers.append((b"content-length", str(len(data)).encode()))
    await call.start(response.status, headers)
    await call.end(data)


async def _relay_pieces(call: Call, response: aiohttp.ClientResponse) -> None:
    """Whatever else it is. If the target breaks off, so does this: the client sees that."""
    await call.start(response.status, headers_back(response))
    try:
        async for chunk in response.content.iter_any():
            await call.more(chunk)
    except (aiohttp.ClientError, OSError) as error:
        _log.warning("the target broke off in the middle of a body: %s", type(error).__name__)
        raise ApiError(
            502, "The target broke off in the middle of its answer", code="target_broke_off"
        ) from error
    await call.end()


async def _relay_events(
    call: Call,
    response: aiohttp.ClientResponse,
    *,
    broken: ErrorEvent,
    report: dict[str, Any] | None,
) -> Usage:
    """Whole events, each as soon as its last byte is here.

    The beginning of an event is held back: it is of no use to anybody, and if the target goes away
    there, an error event can still follow that clients can read.
    """
    headers = [one for one in headers_back(response) if one[0] != b"content-length"]
    await call.start(response.status, headers)
    held, counted = b"", b""
    try:
        async for chunk in response.content.iter_any():
            data = held + chunk if held else chunk
            if _USAGE in data:
                counted = data
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
        return usage_in_events(counted)
    await call.end(held + (report_comment(report) if report is not None else b""))
    return usage_in_events(counted)


def _last_end(data: bytes) -> int:
    """Where the last whole event ends; 0 when there is none."""
    return max(at + len(mark) if (at := data.rfind(mark)) >= 0 else 0 for mark in _ENDS)


def usage_in_events(data: bytes) -> Usage:
    """The tokens that the last of some events tell."""
    for line in reversed(data.splitlines()):
        if _USAGE in line:
            usage = usage_in(line.partition(b":")[2])
            if usage != Usage():
                return usage
    return Usage()


def usage_in(data: bytes) -> Usage:
    """The tokens that a body tells, in any API's words; none where it tells nothing."""
    if _USAGE not in data:
        return Usage()
    try:
        body = orjson.loads(data)
    except orjson.JSONDecodeError:
        return Usage()
    for inner in ("response", "message"):
        if isinstance(body, dict) and isinstance(body.get(inner), dict):
            body = body[inner]
    told = body.get("usage") if isinstance(body, dict) else None
    if not isinstance(told, dict):
        return Usage()
    return Usage(
        prompt_tokens=_count(told, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(told, "completion_tokens", "output_tokens"),
    )


def _count(told: dict[str, Any], *names: str) -> int:
    values = (told.get(name) for name in names)
    return next((value for value in values if isinstance(value, int) and value >= 0), 0)


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
