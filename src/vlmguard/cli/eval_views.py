"""How an evaluation looks in a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlmguard.cli.live import Display
from vlmguard.evals.estimate import ASSUMPTIONS, RunForecast
from vlmguard.evals.progress import Progress


class EvalDisplay(Display):
    """Of a run of `vlmguard eval`."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def _line(self) -> str:
        return _summary(self._progress)

    def _table(self) -> RenderableType:
        progress = self._progress
        answering = progress.phase == "answering"
        table = Table(box=None, pad_edge=False)
        table.add_column("target" if answering else "judge", overflow="fold")
        if answering:
            table.add_column("defence", overflow="fold")
        table.add_column("", width=20)
        for name in ("done", "failed", "empty" if answering else "unscored"):
            table.add_column(name, justify="right")
        for (first, second), tally in progress.tallies.items():
            table.add_row(
                Text(first),
                *([Text(second)] if answering else []),
                ProgressBar(total=max(tally.total, 1), completed=tally.finished, width=20),
                f"{tally.finished:,}/{tally.total:,}",
                f"{tally.failed:,}",
                f"{tally.empty if answering else tally.unscored:,}",
            )
        return Group(table, Text(_summary(progress)))


def _summary(progress: Progress) -> str:
    tallies = progress.tallies.values()
    parts = [f"{progress.phase}: {progress.finished:,}/{progress.total:,}"]
    stored = sum(tally.stored for tally in tallies)
    if stored:
        parts.append(f"{stored:,} from earlier runs")
    for name in ("failed", "empty", "unscored"):
        count = sum(getattr(tally, name) for tally in tallies)
        if count:
            parts.append(f"{count:,} {name}")
    if progress.done:
        pace = progress.per_second()
        parts.append(f"{pace:,.0f}/s" if pace >= 10 else f"{pace:.2g}/s")
    left = progress.seconds_left()
    if left:
        parts.append(f"{timedelta(seconds=round(left))} left")
    if progress.stopping:
        parts.append("stopping")
    return " · ".join(parts)


def estimate_view(
    found: RunForecast, problems: Mapping[str, str]
) -> tuple[RenderableType, dict[str, Any]]:
    """What ``--dry-run`` prints, as text and as plain JSON values.

    Args:
        found: what is left of the run.
        problems: benchmark → why it could not be run yet.
    """
    head = Table(box=None, show_header=False, pad_edge=False)
    for benchmark, count in found.samples.items():
        missing = " (published; the data are not here)" if benchmark in problems else ""
        head.add_row(benchmark, f"{count:,} samples{missing}")
    tables: list[RenderableType] = []
    for target in dict.fromkeys(part.target for part in found.parts):
        table = Table(
            title=Text(target), title_justify="left", title_style="bold", box=None, pad_edge=False
        )
        table.add_column("defence", overflow="fold")
        for name in ("stored", "to ask", "added calls", "tokens in", "out", "time"):
            table.add_column(name, justify="right")
        for part in (part for part in found.parts if part.target == target):
            table.add_row(
                Text(part.defence),
                f"{part.stored:,}",
                f"{part.to_do:,}",
                _range(part.added_low, part.added_high),
                _short(part.prompt_tokens),
                _short(part.completion_tokens),
                f"{timedelta(seconds=round(part.seconds))}{'' if part.measured else ' ?'}",
            )
        tables += [table, Text()]
    calls = sum(part.to_do for part in found.parts)
    seconds = sum(part.seconds for part in found.parts)
    judged = sum(found.judgements.values())
    ending = Text(
        f"{calls:,} answers in about {timedelta(seconds=round(seconds))}, then up to {judged:,} "
        f"judgements by {len(found.judgements)} judges. "
    )
    if not all(part.measured for part in found.parts):
        ending.append(f"Times with ? are assumed ({ASSUMPTIONS}); --probe 2 measures them. ")
    ending.append("Tokens are those of the target's own calls.")
    values = {**asdict(found), "assumptions": ASSUMPTIONS, "problems": dict(problems)}
    not_ready = Text("".join(f"\nnot ready: {problem}" for problem in problems.values()), "yellow")
    return Group(head, Text(), *tables, ending, not_ready), values


def _range(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "unknown"
    return _short(low) if low == high else f"{_short(low)}–{_short(high)}"


def _short(count: int) -> str:
    """``4,545``, ``13.6k``, ``2.95M``."""
    if count < 10_000:
        return f"{count:,}"
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1_000_000:.3g}M"
