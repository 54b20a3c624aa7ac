"""What the audit tab shows of the gateway's log."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path

from vlmguard.gateway.audit import AuditQuery, AuditRecord, open_reader
from vlmguard.gateway.audit_export import AuditFormat, export_records
from vlmguard.ui import render
from vlmguard.ui.runs import Answer

MOST_ROWS = 200
"""In the table; counts and exports take all."""
_MOST_BARS = 60
UNDECIDED = "undecided"
"""Stands for the verdict of a request that has none."""
COLUMNS = ("time (UTC)", "verdict", "risk", "category", "action", "key", "policy", "request")
_WIDTHS = (
    timedelta(minutes=1),
    timedelta(minutes=10),
    timedelta(hours=1),
    timedelta(hours=6),
    timedelta(days=1),
    timedelta(days=7),
    timedelta(days=30),
    timedelta(days=365),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Decisions of one kind in one stretch of time."""

    start: datetime
    verdict: str
    decisions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """What a query found.

    Attributes:
        total: records that match.
        failed: those where the guard failed.
        by_verdict: counts; `UNDECIDED` where there was no verdict.
        newest: the newest of them, newest first.
        bars: counts over time.
        width: of a bar.
    """

    total: int
    failed: int
    by_verdict: dict[str, int]
    newest: tuple[AuditRecord, ...]
    bars: tuple[Bar, ...]
    width: timedelta


def look(log: str, query: AuditQuery) -> AuditPage:
    """Read the matching records of a log.

    Raises:
        AuditError, ConfigError: the log cannot be read.
    """
    with closing(open_reader(log)) as reader:
        newest: list[AuditRecord] = []
        minutes: Counter[tuple[datetime, str]] = Counter()
        failed = 0
        for record in reader.records(query):
            newest.append(record)
            if len(newest) > 2 * MOST_ROWS:
                del newest[:-MOST_ROWS]
            failed += record.failure is not None
            minute = record.time.astimezone(UTC).replace(second=0, microsecond=0)
            minutes[minute, record.verdict or UNDECIDED] += 1
    width = _width([minute for minute, _ in minutes])
    grouped: Counter[tuple[datetime, str]] = Counter()
    by_verdict: Counter[str] = Counter()
    for (minute, verdict), count in minutes.items():
        grouped[_floor(minute, width), verdict] += count
        by_verdict[verdict] += count
    bars = [
        Bar(start=start, verdict=verdict, decisions=count)
        for (start, verdict), count in sorted(grouped.items())
    ]
    return AuditPage(
        total=sum(by_verdict.values()),
        failed=failed,
        by_verdict=dict(by_verdict),
        newest=tuple(reversed(newest[-MOST_ROWS:])),
        bars=tuple(bars),
        width=width,
    )


def _width(times: Sequence[datetime]) -> timedelta:
    """The narrowest bars of which not too many stand side by side."""
    span = max(times) - min(times) if times else timedelta()
    return next((width for width in _WIDTHS if span / width <= _MOST_BARS), _WIDTHS[-1])


def _floor(time: datetime, width: timedelta) -> datetime:
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return epoch + (time - epoch) // width * width


def row(record: AuditRecord) -> list[str]:
    """A line of the table, in the order of `COLUMNS`."""
    return [
        record.time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
        record.verdict or ("failed" if record.failure else "none"),
        "" if record.risk is None else f"{record.risk:.3f}",
        record.category or "",
        record.action or "",
        record.key_id or "",
        record.policy,
        record.request_id,
    ]


def told(page: AuditPage) -> str:
    """The counts in a sentence."""
    kinds = ", ".join(f"{count:,} {name}" for name, count in sorted(page.by_verdict.items()))
    more = f" The newest {MOST_ROWS} are listed." if page.total > MOST_ROWS else ""
    failed = f" The guard failed on {page.failed:,}." if page.failed else ""
    records = f"{page.total:,} decision{'' if page.total == 1 else 's'}"
    text = f"{records}{f' ({kinds})' if kinds else ''}.{failed}{more}"
    return f'<p class="vg-status" role="status">{escape(text)}</p>'


def in_full(record: AuditRecord) -> str:
    """One decision; its texts only where the gateway kept them, a risky one's under a veil."""
    steps = ", ".join(f"{step} {ms:.1f} ms" for step, ms in record.latency_ms.items())
    optional = (
        ("Key", record.key_id),
        ("Risk", None if record.risk is None else f"{record.risk:.4f}"),
        ("Category", record.category),
        ("Action", record.action),
        ("Failure", record.failure),
        ("Prompt (SHA-256)", record.prompt_sha256),
        ("Rewrite (SHA-256)", record.rewrite_sha256),
        ("Pictures (SHA-256)", "\n".join(record.image_sha256s)),
        ("Shadow policy", _shadow(record)),
    )
    rows = [
        ("Request", record.request_id),
        ("Time", record.time.astimezone(UTC).isoformat(timespec="milliseconds")),
        ("Route", f"{record.route}, status {record.status}, mode {record.mode}"),
        ("Verdict", record.verdict or "none"),
        *((name, value) for name, value in optional if value),
        ("Policy", record.policy),
        ("Rewriter", record.rewriter),
        ("Target", record.target),
        ("Latency", steps),
        ("Tokens", f"{record.usage.prompt_tokens} in, {record.usage.completion_tokens} out"),
    ]
    return f'<section class="vg-card">{render.facts(rows)}</section>{_content(record)}'


def _shadow(record: AuditRecord) -> str | None:
    if record.shadow_policy is None:
        return None
    risk = "" if record.shadow_risk is None else f", risk {record.shadow_risk:.3f}"
    return f"{record.shadow_policy}: {record.shadow_verdict or 'none'}{risk}"


def _content(record: AuditRecord) -> str:
    if record.prompt is None and record.rewrite is None and record.report is None:
        return (
            '<p class="vg-quiet">The gateway kept hashes only. Texts are kept where its settings '
            "say <code>audit_content: true</code>.</p>"
        )
    risky = record.verdict != "safe"
    parts = [
        render.answer(
            "Prompt",
            Answer(text=record.prompt or "(empty)", done=True),
            veiled=risky,
            run=record.request_id,
        )
    ]
    if record.report is not None:
        report = record.report
        reasons = [
            ("Text", report.textual),
            ("Picture", report.visual),
            ("Together", report.multimodal),
        ]
        told = render.facts(reasons)
        parts.append(f'<section class="vg-card"><h2>Reasons</h2>{told}</section>')
    if record.rewrite is not None:
        shown = Answer(text=record.rewrite, done=True)
        parts.append(render.answer("Rewrite", shown, veiled=False, run=record.request_id))
    return "".join(parts)


def exported(log: str, query: AuditQuery, kind: AuditFormat) -> Path:
    """The matching records as a file for download; Gradio's cache deletes it in time.

    Raises:
        AuditError, ConfigError, MissingExtra: it cannot be read or written.
    """
    folder = Path(tempfile.mkdtemp(prefix="vlmguard-export-"))
    path = folder / f"decisions.{kind}"
    with closing(open_reader(log)) as reader, path.open("wb") as sink:
        export_records(reader.records(query), sink, kind)
    return path
