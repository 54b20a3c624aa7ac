"""What the error responses of OpenAI-compatible servers mean, in words that help."""

from __future__ import annotations

import datetime as dt
import json
import math
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

import httpx
from pydantic import SecretStr

from vlmguard.errors import EngineError, EngineRejected, EngineUnavailable

_LONGEST_WAIT_S = 60.0
"""A server that asks for more patience than this is not waited for."""
_SHOWN = 500  # characters of a server's message

_CONTEXT = ("context_length_exceeded", "exceed_context_size", "maximum context length")
_CONTEXT_WORDS = (("context",), ("exceed", "too long", "too large", "longer than"))
_SWITCHES = {
    "logprobs": "logprobs=false",
    "response_format": "json_schema=false",
    "json_schema": "json_schema=false",
    "stream_options": "stream_usage=false",
    "continue_final_message": "prefix=false",
    "image": "vision=false",
    "multimodal": "vision=false",
}
"""Word in a server's message → the option that no longer asks for that."""


class Busy(EngineUnavailable):
    """A failure that may pass; stays inside the engine.

    Args:
        message: for the person who reads it.
        retry: whether to try again at all.
        retry_after_s: how long the server asks to wait; ``None`` leaves it to the backoff.
    """

    def __init__(
        self, message: str, *, retry: bool = True, retry_after_s: float | None = None
    ) -> None:
        self.retry = retry
        self.retry_after_s = retry_after_s
        super().__init__(message)


def explain(
    response: httpx.Response, *, spec: str, key: SecretStr | None, url: httpx.URL
) -> EngineError:
    """The error for an unsuccessful response."""
    status = response.status_code
    try:
        body: object = response.json()
    except ValueError:
        body = response.text
    said = _message(body, key)
    if status == 429 and _code(body) == "insufficient_quota":  # waiting does not help
        return EngineRejected(f"{spec}: the quota is used up: {said}", status=status)
    # llama.cpp's server answers with 500 when it is given a picture that it cannot see.
    if (status in {408, 425, 429} or status >= 500) and "not supported" not in said:
        wait = retry_after_s(response.headers.get("retry-after"))
        patient = wait is None or wait <= _LONGEST_WAIT_S
        asks = "" if patient else f"; the server asks to wait {wait:.0f} s"
        return Busy(
            f"{spec} failed with {_status(status)}: {said}{asks}",
            retry=patient,
            retry_after_s=wait,
        )
    if response.is_redirect:
        return EngineRejected(
            f"{spec}: the server redirects to {response.headers.get('location')!r:.200}; "
            "a key is not sent on, so put the final URL into the spec",
            status=status,
        )
    return EngineRejected(
        f"{spec} refused with {_status(status)}: {said}{_hint(status, said, url, key)}",
        context_exceeded=_is_too_long(body, said),
        status=status,
    )


def explain_event(body: dict[str, Any], *, spec: str, key: SecretStr | None) -> EngineError:
    """The error for an error object where an answer was expected, e.g. in the middle of one."""
    said = _message(body, key)
    error = body["error"]
    code = error.get("code") if isinstance(error, dict) else None
    if isinstance(code, int) and 400 <= code < 500 and code not in {408, 429}:
        too_long = _is_too_long(body, said)
        return EngineRejected(f"{spec}: {said}", context_exceeded=too_long, status=code)
    return EngineUnavailable(f"{spec} failed in the middle of an answer: {said}")


def retry_after_s(header: str | None) -> float | None:
    """Seconds to wait by a ``Retry-After`` header (RFC 9110): a number or a date."""
    if header is None:
        return None
    try:
        wait = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except ValueError:
            return None
        wait = (when.astimezone(dt.UTC) - dt.datetime.now(dt.UTC)).total_seconds()
    return None if math.isnan(wait) else max(wait, 0.0)


def _message(body: object, key: SecretStr | None) -> str:
    """The message in an error body, whichever server wrote it, on one line and without the key."""
    said: object = body
    for name in ("error", "detail", "message"):
        if isinstance(said, dict) and said.get(name):
            said = said[name]
    text = said if isinstance(said, str) else json.dumps(said, ensure_ascii=False)
    text = " ".join(text.split()) or "no reason given"
    if key is not None:
        text = text.replace(key.get_secret_value(), "***")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} …"


def _code(body: object) -> object:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") or error.get("type") if isinstance(error, dict) else None


def _is_too_long(body: object, said: str) -> bool:
    words = f"{_code(body)} {said}".lower()
    return any(mark in words for mark in _CONTEXT) or all(
        any(word in words for word in group) for group in _CONTEXT_WORDS
    )


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _hint(status: int, said: str, url: httpx.URL, key: SecretStr | None) -> str:
    if status in {401, 403}:
        if key is None:
            return ". No key was sent: set OPENAI_API_KEY, or name its variable with ?key_env="
        return ". Check the key in OPENAI_API_KEY, or name its variable with ?key_env="
    if status in {404, 405} and not url.path.endswith("/v1/chat/completions"):
        return f". Most servers want a URL that ends in /v1; this one was {_base(url)}"
    lowered = said.lower()
    for word, switch in _SWITCHES.items():
        if word in lowered:
            return f". If this server cannot do that, add ?{switch} to the spec"
    return ""


def _base(url: httpx.URL) -> str:
    return str(url).removesuffix("/chat/completions")
