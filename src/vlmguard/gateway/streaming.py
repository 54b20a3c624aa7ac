"""From the target to the client: bodies as they are, events as they come."""

from __future__ import annotations

import logging
import re
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
_EVENT = re.compile(rb".+?(?:\n\n|\r\n\r\n|\r\r|\Z)", re.DOTALL)

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
    hide_usage: bool = False,
) -> Usage:
    """Send the target's response to the client. The caller closes it.

    Args:
        call: to answer.
        response: its body not yet read.
        broken: the event that ends a stream whose target went away.
        ready: called before the first byte; what it raises is told instead of the answer.
        report: to add to the answer.
        hide_usage: leave out the chunk that tells a stream's tokens, for which only we asked.

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
        return await _relay_events(
            call, response, broken=broken, report=report, hide_usage=hide_usage
        )
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
    hide_usage: bool,
) -> Usage:
    """Whole events, each as soon as its last byte is here.

    The beginning of an event is held back: it is of no use to anybody, and if the target goes away
    there, an error event can still follow that clients can read.
    """
    headers = [one for one in headers_back(response) if one[0] != b"content-length"]
    await call.start(response.status, headers)
    held, first, latest = b"", b"", b""  # the events that told of tokens first, and last
    try:
        async for chunk in response.content.iter_any():
            data = held + chunk if held else chunk
            cut = len(data) if data.endswith(_ENDS) else _last_end(data)
            if len(data) - cut > _HELD:
                cut = len(data)
            held, whole = data[cut:], data[:cut]
            if _USAGE in whole:
                first, latest = first or whole, whole
                if hide_usage:
                    whole = without_usage(whole)
            if whole:
                await call.more(whole)
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
        return usage_in_events(first, latest)
    latest = held if _USAGE in held else latest
    last = without_usage(held) if hide_usage else held
    await call.end(last + (report_comment(report) if report is not None else b""))
    return usage_in_events(first, latest)


def _last_end(data: bytes) -> int:
    """Where the last whole event ends; 0 when there is none."""
    return max(at + len(mark) if (at := data.rfind(mark)) >= 0 else 0 for mark in _ENDS)


def ask_for_usage(body: dict[str, Any]) -> bool:
    """Have the target tell a stream's tokens at its end.

    Args:
        body: of chat completions or completions; changed in place.

    Returns:
        Whether only we ask, and the client is not to see the chunk that tells them.
    """
    options = body.get("stream_options")
    if body.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return False
    if options is not None and options.get("include_usage") is True:
        return False
    body["stream_options"] = {**(options or {}), "include_usage": True}
    return True


def without_usage(events: bytes) -> bytes:
    """Events of a stream, less the chunk that tells nothing but its tokens."""
    return b"".join(event for event in _EVENT.findall(events) if not _only_tells_usage(event))


def _only_tells_usage(event: bytes) -> bool:
    if _USAGE not in event:
        return False
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    try:
        body = orjson.loads(b"".join(line.removeprefix(b"data:") for line in lines))
    except orjson.JSONDecodeError:
        return False
    return (
        isinstance(body, dict) and body.get("choices") == [] and isinstance(body.get("usage"), dict)
    )


def usage_in_events(*events: bytes) -> Usage:
    """The tokens that events of a stream tell: of each kind the most, since they count up.

    Anthropic's streams tell of the prompt in the first event and of the answer in the last.
    """
    told = [
        usage_in(line.partition(b":")[2])
        for data in events
        for line in data.splitlines()
        if _USAGE in line
    ]
    return Usage(
        prompt_tokens=max((usage.prompt_tokens for usage in told), default=0),
        completion_tokens=max((usage.completion_tokens for usage in told), default=0),
        cached_tokens=max((usage.cached_tokens for usage in told), default=0),
    )


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
    details = [told.get("prompt_tokens_details"), told.get("input_tokens_details")]
    return Usage(
        prompt_tokens=_count(told, "prompt_tokens", "input_tokens"),
        completion_tokens=_count(told, "completion_tokens", "output_tokens"),
        cached_tokens=next(
            (_count(one, "cached_tokens") for one in details if isinstance(one, dict)),
            _count(told, "cache_read_input_tokens"),
        ),
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
