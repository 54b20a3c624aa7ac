"""Structured logs: a JSON object a line, with the request's id and without anybody's secrets.

What people send never belongs into a log: prompts and pictures are not logged at all, and for what
slips in by a library's message or an exception there is `redact`.
"""

from __future__ import annotations

import atexit
import json
import logging
import queue
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import QueueHandler, QueueListener
from typing import Any, Literal, TextIO

from vlmguard.errors import ConfigError, VLMGuardError

REDACTED = "[redacted]"

request_id: ContextVar[str | None] = ContextVar("vlmguard_request_id", default=None)
"""Of the request that is being answered; in every line logged meanwhile."""

access_log = logging.getLogger("vlmguard.access")

_MAX = 2000
"""Characters of one text in a log. Nothing that we say is longer."""
_SECRETS = (
    (re.compile(r"data:[\w.+-]*/?[\w.+-]*(?:;[\w=.+-]*)*,[^\s\"'<>)\]}]+"), "data:" + REDACTED),
    (re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{4,}"), rf"\1 {REDACTED}"),
    (re.compile(r"\b(?:vg|sk|pk|rk|hf|ghp|xox[abp])[-_][A-Za-z0-9_-]{8,}"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+"), REDACTED),  # JSON Web Tokens
    (re.compile(r"(?<=://)[^/\s:@]*:[^/\s@]+(?=@)"), REDACTED),  # user:password@ in URLs
    (
        re.compile(
            r"(?i)([\"']?(?:authorization|(?:x-)?api[-_]?key|token|secret|password|cookie)[\"']?"
            r"\s*[=:]\s*)(?:\"[^\"]*\"|'[^']*'|[^\s,;&}]+(?: [A-Za-z0-9._~+/=-]{16,})?)"
        ),
        rf"\1{REDACTED}",
    ),
    (re.compile(r"[A-Za-z0-9+/=_-]{200,}"), REDACTED),  # encoded pictures
)
_PRIVATE = frozenset(
    {
        "authorization",
        "api_key",
        "apikey",
        "x_api_key",
        "token",
        "secret",
        "password",
        "cookie",
        "set_cookie",
        "prompt",
        "rewrite",
        "report",
        "text",
        "content",
        "messages",
        "input",
        "instructions",
        "body",
        "image",
        "images",
        "image_url",
        "url",
        "data",
    }
)
"""Names of fields whose values are never shown, whatever they hold."""
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "request_id"}


def redact(text: str) -> str:
    """The text without keys, tokens, passwords and data URLs, and cut to a sensible length."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text if len(text) <= _MAX else f"{text[:_MAX]}… ({len(text) - _MAX} more)"


def _clean(value: Any) -> Any:
    """The same for a value of a field, at any depth."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _field(str(key), inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(inner) for inner in value]
    return redact(str(value))


def _field(name: str, value: Any) -> Any:
    private = name.lower().replace("-", "_") in _PRIVATE
    return REDACTED if private and value is not None else _clean(value)


def _failure(error: BaseException) -> dict[str, Any]:
    """An exception without the values that its message may quote: only ours are made to be read."""
    frames = traceback.extract_tb(error.__traceback__)
    told: dict[str, Any] = {
        "type": type(error).__name__,
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]],
    }
    if isinstance(error, VLMGuardError):
        told["message"] = redact(str(error))
    if error.__cause__ is not None:
        told["cause"] = type(error.__cause__).__name__
    return told


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Values given by ``extra`` stand beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if (bound := getattr(record, "request_id", None)) is not None:
            line["request_id"] = bound
        for name, value in vars(record).items():
            if name not in _STANDARD and not name.startswith("_") and name != "color_message":
                line[name] = _field(name, value)
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = _failure(record.exc_info[1])
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(JsonFormatter):
    """The same for people who watch a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = json.loads(super().format(record))
        head = f"{line.pop('time')} {line.pop('level'):7} {line.pop('message')}"
        line.pop("logger")
        rest = " ".join(f"{name}={json.dumps(value)}" for name, value in line.items())
        # A message may quote what somebody sent: it stays on its line.
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in f"{head} {rest}".rstrip())


class _Queue(QueueHandler):
    """Hands records over as they are: formatting and writing are the listener thread's work."""

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        record.request_id = request_id.get()
        return record


class Logs:
    """Logging that was set up; close it to write what waits and restore what was before."""

    def __init__(self, level: int, formatter: logging.Formatter, stream: TextIO) -> None:
        writer = logging.StreamHandler(stream)
        writer.setFormatter(formatter)
        waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
        self._handler = _Queue(waiting)
        self._listener = QueueListener(waiting, writer)
        root = logging.getLogger()
        self._before = root.handlers[:], root.level
        root.handlers[:] = [self._handler]
        root.setLevel(level)
        self._listener.start()
        atexit.register(self.close)
        self._open = True

    def close(self) -> None:
        """Idempotent."""
        if not self._open:
            return
        self._open = False
        atexit.unregister(self.close)
        root = logging.getLogger()
        root.handlers[:], level = self._before
        root.setLevel(level)
        self._listener.stop()


def set_up_logs(
    level: str = "info",
    *,
    form: Literal["json", "text"] = "json",
    stream: TextIO | None = None,
) -> Logs:
    """Send all logging of this process to one stream, redacted, from a thread of its own.

    Args:
        level: debug, info, warning or error.
        form: JSON lines, or lines for people.
        stream: standard error by default.

    Raises:
        ConfigError: no such level.
    """
    levels = {"debug": 10, "info": 20, "warning": 30, "error": 40}
    if level not in levels:
        raise ConfigError(f"the log level {level!r} is none of {', '.join(levels)}")
    formatter = JsonFormatter() if form == "json" else TextFormatter()
    # Libraries that log every request in their own words, with its URL.
    # Pillow's debug lines hold the texts in pictures' metadata.
    for noisy in ("httpx", "httpcore", "aiohttp.access", "uvicorn.access", "PIL"):
        logging.getLogger(noisy).setLevel(max(levels[level], logging.WARNING))
    return Logs(levels[level], formatter, stream or sys.stderr)


@contextmanager
def bound_request(id: str) -> Iterator[None]:
    """Put the request's id into every line that is logged inside."""
    token = request_id.set(id)
    try:
        yield
    finally:
        request_id.reset(token)


def log_access(
    method: str, route: str, status: int, elapsed_ms: float, *, key_id: str | None = None
) -> None:
    """One line a request, at level *info*; costs next to nothing where that is off."""
    if access_log.isEnabledFor(logging.INFO):
        access_log.info(
            "%s %s %d",
            method,
            route,
            status,
            extra={"status": status, "ms": round(elapsed_ms, 2), "key_id": key_id},
        )
