"""The audit log: what was decided about every request, in SQLite or in JSON Lines.

Texts and pictures are told by their SHA-256; the texts themselves only where the operator keeps
content. `AuditLog.record` returns when the record is committed, so a killed process loses none
that was acknowledged. Records that come up together are committed together, in a thread of their
own, so the event loop never waits for the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from vlmguard.errors import AuditError, ConfigError
from vlmguard.gateway.modes import Mode
from vlmguard.types import Action, RiskReport, Usage, Verdict

AUDIT_VERSION = 1
"""Of the stored form; a reader refuses another one."""

OnFull = Literal["fail", "continue"]
Form = Literal["sqlite", "jsonl"]

_SUFFIXES: Mapping[str, Form] = {
    ".db": "sqlite",
    ".sqlite": "sqlite",
    ".sqlite3": "sqlite",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditRecord:
    """One request, and what was decided about its last user turn.

    Attributes:
        time: when it came in; with a time zone, kept in UTC to the microsecond.
        request_id: as in the response header ``x-vlmguard-request-id``.
        route: path of the API, e.g. ``"/v1/chat/completions"``.
        status: HTTP status of the response.
        key_id: whose key; ``None`` where no keys are asked for.
        mode: whether the decision was carried out.
        policy, rewriter: who decided, by which rules.
        target: the model asked for.
        verdict, risk, category, action: the decision; ``None`` where there was none, e.g. since the
            guard was off or failed closed.
        changed: the target received another prompt than the user wrote.
        failure: why the guard could not decide, whether the request passed or not.
        prompt_sha256: of the last user turn's text, UTF-8.
        image_sha256s: of the bytes of all pictures of the conversation.
        rewrite_sha256: of what the target received in place of it; ``None`` when unchanged.
        shadow_policy, shadow_verdict, shadow_risk, shadow_action: a second policy's decision that
            was only noted.
        latency_ms: step → milliseconds.
        streamed: the answer was streamed.
        usage: tokens of the target, as it counted them; those of a streamed answer are added when
            it has ended.
        prompt, rewrite, report: content; dropped unless the operator keeps it.
    """

    time: datetime
    request_id: str
    route: str
    status: int
    key_id: str | None = None
    mode: Mode = "enforce"
    policy: str = ""
    rewriter: str = ""
    target: str = ""
    verdict: Verdict | None = None
    risk: float | None = None
    category: str | None = None
    action: Action | None = None
    changed: bool = False
    failure: str | None = None
    prompt_sha256: str | None = None
    image_sha256s: tuple[str, ...] = ()
    rewrite_sha256: str | None = None
    shadow_policy: str | None = None
    shadow_verdict: Verdict | None = None
    shadow_risk: float | None = None
    shadow_action: Action | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    streamed: bool = False
    usage: Usage = field(default_factory=Usage)
    prompt: str | None = None
    rewrite: str | None = None
    report: RiskReport | None = None

    def without_content(self) -> AuditRecord:
        """The same with hashes only."""
        return replace(self, prompt=None, rewrite=None, report=None)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; the stable form of exports and of a JSON Lines log."""
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        values["time"] = stamp(self.time)
        values["image_sha256s"] = list(self.image_sha256s)
        values["latency_ms"] = {step: round(ms, 3) for step, ms in self.latency_ms.items()}
        values["usage"] = usage_json(self.usage)
        values["report"] = None if self.report is None else _fields(self.report)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AuditRecord:
        """What `to_json` gave.

        Raises:
            ValueError, KeyError, TypeError: it is something else.
        """
        given = dict(values)
        given["time"] = datetime.fromisoformat(given["time"])
        given["image_sha256s"] = tuple(given.get("image_sha256s", ()))
        given["usage"] = Usage(**given.get("usage", {}))
        report = given.get("report")
        given["report"] = None if report is None else RiskReport(**report)
        return cls(**given)


@dataclass(frozen=True, slots=True, kw_only=True)
class LateUsage:
    """The tokens of a streamed answer, whose record was committed before it began.

    Attributes:
        request_id: of the record that it belongs to.
        usage: in place of the record's.
    """

    request_id: str
    usage: Usage


AuditEntry = AuditRecord | LateUsage
"""What is written to a log."""


def usage_json(usage: Usage) -> dict[str, int]:
    """Plain JSON values of token counts."""
    return _fields(usage)


def _fields(value: Usage | RiskReport) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def stamp(time: datetime) -> str:
    """UTC in ISO 8601 with microseconds always, so that stamps sort as times do."""
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class AuditLog(Protocol):
    """Where the gateway writes what it decided."""

    async def record(self, record: AuditRecord) -> None:
        """Keep a record; returns once it is committed.

        Raises:
            AuditError: it could not be, and the operator chose that requests fail then.
        """
        ...

    async def add_usage(self, late: LateUsage) -> None:
        """Complete a record; returns once that is committed.

        Raises:
            AuditError: as `record`.
        """
        ...

    async def aclose(self) -> None:
        """Commit what waits, and let go of the file. Idempotent."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditQuery:
    """Which records to read; ``None`` is any.

    Attributes:
        since, until: with time zones; ``since <= time < until``.
        failed: only those where the guard failed.
    """

    verdict: str | None = None
    category: str | None = None
    action: str | None = None
    policy: str | None = None
    key_id: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    failed: bool = False

    def equals(self) -> dict[str, str]:
        """Field → the value that it must have."""
        names = ("verdict", "category", "action", "policy", "key_id", "request_id")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    def matches(self, record: AuditRecord) -> bool:
        """Whether the record is one of them."""
        return (
            all(getattr(record, name) == value for name, value in self.equals().items())
            and (self.since is None or record.time >= self.since)
            and (self.until is None or record.time < self.until)
            and (not self.failed or record.failure is not None)
        )


class AuditReader(Protocol):
    """A log that is looked at; it may be written to meanwhile. Close it after use."""

    def records(self, query: AuditQuery, *, last: int | None = None) -> Iterator[AuditRecord]:
        """Records in the order in which they were written; of the newest ``last`` only.

        Raises:
            AuditError: the log cannot be read.
        """
        ...

    def added(self, query: AuditQuery) -> Iterator[AuditRecord]:
        """Records that were written since the last call of `records` or `added`."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


class Sink(Protocol):
    """One form of log: how a group of records is committed. `write` has one thread to itself."""

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """Commit all of them, or none. A record comes before what completes it.

        Raises:
            AuditError: it could not be done.
        """
        ...

    def expire(self, before: datetime) -> int:
        """Delete older records, beside a running `write`; how many were deleted."""
        ...

    def close(self) -> None:
        """Let go of the file."""
        ...


def audit_place(path_or_url: str | Path) -> tuple[Form, Path]:
    """Which form of log is meant, and where.

    Args:
        path_or_url: ``sqlite:FILE``, ``jsonl:FILE``, or a file whose suffix says which.

    Raises:
        ConfigError: neither.
    """
    text = str(path_or_url)
    scheme, colon, rest = text.partition(":")
    if colon and scheme in _SUFFIXES.values() and rest:
        form: Form = "sqlite" if scheme == "sqlite" else "jsonl"
        return form, Path(rest.removeprefix("//"))
    path = Path(text)
    found = _SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise ConfigError(
            f"the audit log {text!r} names no form: end it in {', '.join(_SUFFIXES)}, or write "
            "sqlite:FILE or jsonl:FILE"
        )
    return found, path


def open_audit(
    path_or_url: str | Path,
    *,
    keep_content: bool = False,
    retention_days: float | None = None,
    on_full: OnFull = "fail",
    on_lost: Callable[[int], None] = lambda _: None,
) -> AuditLog:
    """Open a log for writing; made when there is none. Several processes may write to one.

    Args:
        path_or_url: see `audit_place`.
        keep_content: keep prompts, rewrites and reports, not only their hashes.
        retention_days: older records are deleted in the background; ``None`` keeps all.
        on_full: when a record cannot be committed, since the disk is full or for any other reason:
            ``"fail"`` raises, so that no request goes unrecorded; ``"continue"`` logs an error,
            drops it and goes on.
        on_lost: told how many records were dropped so.

    Raises:
        ConfigError: no such form of log, or not a sensible retention.
        AuditError: the file cannot be opened, or is something else.
    """
    form, path = audit_place(path_or_url)
    if retention_days is not None and retention_days <= 0:
        raise ConfigError(f"the audit log's retention must be over 0 days, not {retention_days:g}")
    from vlmguard.gateway.audit_groups import GroupedLog  # noqa: PLC0415  # it builds on this module

    return GroupedLog(
        _open_sink(form, path),
        keep_content=keep_content,
        retention=None if retention_days is None else timedelta(days=retention_days),
        on_full=on_full,
        on_lost=on_lost,
    )


def _open_sink(form: Form, path: Path) -> Sink:
    # The two forms build on this module.
    if form == "sqlite":
        from vlmguard.gateway.audit_sqlite import SqliteSink  # noqa: PLC0415

        return SqliteSink(path)
    from vlmguard.gateway.audit_jsonl import JsonlSink  # noqa: PLC0415

    return JsonlSink(path)


def open_reader(path_or_url: str | Path) -> AuditReader:
    """Open a log to look at it.

    Raises:
        ConfigError: no such form of log.
        AuditError: there is no such file, or it is another version's, or no audit log.
    """
    form, path = audit_place(path_or_url)
    if not path.exists():
        raise AuditError(
            f"there is no audit log {path}; `vlmguard serve --audit {path}` writes one"
        )
    if form == "sqlite":
        from vlmguard.gateway.audit_sqlite import SqliteReader  # noqa: PLC0415

        return SqliteReader(path)
    from vlmguard.gateway.audit_jsonl import JsonlReader  # noqa: PLC0415

    return JsonlReader(path)
