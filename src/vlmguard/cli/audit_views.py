"""How audit records and their sums look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.bar import Bar
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlmguard.gateway.audit import AuditRecord
from vlmguard.gateway.audit_stats import PERCENTILES, AuditStats
from vlmguard.quoting import visible

_COLOURS = {"safe": "green", "risky": "yellow"}
_COUNTS = ("verdict", "action", "category", "policy", "mode", "status")
_HOURS = 48
"""Newest hours shown; --json has all."""


def record_line(record: AuditRecord) -> Text:
    """One line: when, what was decided, for whom, how long it took."""
    verdict = record.verdict or "undecided"
    line = Text()
    line.append(f"{record.time:%Y-%m-%d %H:%M:%S}  ", "dim")
    line.append(f"{verdict:9}", f"bold {_COLOURS.get(verdict, 'red')}")
    line.append("     " if record.risk is None else f" {record.risk:.2f}")
    for width, value in ((19, record.category), (8, record.action), (10, record.policy)):
        line.append(f"  {_flat(value or '-'):{width}}")
    line.append(f"  {record.status}")
    spent = [record.latency_ms[step] for step in ("total", "response") if step in record.latency_ms]
    if spent:  # until the end, or where that was not known yet, until the answer began
        line.append(f"  {spent[0]:7.1f} ms")
    if record.mode != "enforce":
        line.append(f"  {record.mode}", "cyan")
    if record.shadow_verdict and record.shadow_verdict != record.verdict:
        line.append(f"  {_flat(record.shadow_policy or 'shadow')}: {record.shadow_verdict}", "cyan")
    if record.key_id:
        line.append(f"  {_flat(record.key_id)}", "dim")
    line.append(f"  {_flat(record.request_id)}", "dim")
    if record.failure:
        line.append(f"  {_flat(record.failure)}", "red")
    return line


def _flat(text: str) -> str:
    """Some of it comes from clients: nothing hidden in it, no control codes, one line."""
    return " ".join(visible(text).split())


def stats_views(stats: AuditStats) -> Iterator[RenderableType]:
    """Tables of counts, of hours, and of latencies."""
    failed = f", {stats.failed:,} where the guard failed" if stats.failed else ""
    yield Text(f"{stats.records:,} records{failed}", "bold")
    if not stats.records:
        return
    counts = Table("", "", "records", "share", box=None, pad_edge=False)
    for name in _COUNTS:
        for number, (value, count) in enumerate(stats.by[name].most_common()):
            counts.add_row(
                "" if number else Text(name, "bold"),
                _flat(value) or "-",
                f"{count:,}",
                f"{count / stats.records:.1%}",
            )
    yield counts
    yield Text()
    hours = Table("hour (UTC)", "records", "", box=None, pad_edge=False)
    newest = sorted(stats.hours.items())[-_HOURS:]
    most = max(count for _, count in newest)
    for hour, count in newest:
        hours.add_row(
            hour.replace("T", " ").rstrip("Z"), f"{count:,}", Bar(most, 0, count, width=30)
        )
    yield hours
    if stats.latency_ms:
        yield Text()
        heads = [f"p{percent} ms" for percent in PERCENTILES]
        steps = Table("step", "records", *heads, box=None, pad_edge=False)
        for step, ranks in stats.percentiles().items():
            count = len(stats.latency_ms[step])
            steps.add_row(_flat(step), f"{count:,}", *(f"{ms:,.1f}" for ms in ranks.values()))
        yield steps
