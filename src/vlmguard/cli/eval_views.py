"""How an evaluation looks in a terminal."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlmguard.cli.show import err
from vlmguard.evals.estimate import ASSUMPTIONS, RunForecast
from vlmguard.evals.progress import Progress
from vlmguard.evals.types import Cell, Estimate, Results

_REDRAW_S = 0.5
_LINE_S = 10.0


class Display:
    """Shows progress: a live table in a terminal, a line every ten seconds elsewhere."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    async def follow(self) -> None:
        """Until cancelled; the last state stays on the screen."""
        if not err.is_terminal:
            await self._lines()
            return
        with Live(self._table(), console=err, auto_refresh=False) as live:
            try:
                while True:
                    await asyncio.sleep(_REDRAW_S)
                    live.update(self._table(), refresh=True)
            finally:
                live.update(self._table(), refresh=True)

    async def _lines(self) -> None:
        try:
            while True:
                await asyncio.sleep(_LINE_S)
                err.print(_summary(self._progress), soft_wrap=True)
        finally:
            err.print(_summary(self._progress), soft_wrap=True)

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
        parts.append(f"{progress.per_second():.3g}/s")
    left = progress.seconds_left()
    if left:
        parts.append(f"{timedelta(seconds=round(left))} left")
    if progress.stopping:
        parts.append("stopping")
    return " · ".join(parts)


def results_table(results: Results) -> RenderableType:
    """The table of a run: one a target, rows by benchmark, defence and judge."""
    names = list(dict.fromkeys(name for cell in results.cells for name in cell.metrics))
    tables: list[RenderableType] = []
    for target in dict.fromkeys(cell.target for cell in results.cells):
        table = Table(title=Text(target), title_justify="left", pad_edge=False)
        for name in ("benchmark", "defence", "judge"):
            table.add_column(name, overflow="fold")
        for name in (*names, "answers", "failed", "empty", "unscored", "ms", "+ms", "+calls"):
            table.add_column(name.replace("_", " "), justify="right")
        last = ""
        for cell in (cell for cell in results.cells if cell.target == target):
            where = f"{cell.benchmark} {cell.subset}".strip()
            table.add_row(*_row(cell, names, "" if where == last else where))
            last = where
        tables.append(table)
    return Group(*tables)


def _row(cell: Cell, names: list[str], where: str) -> list[RenderableType]:
    return [
        Text(where),
        Text(cell.defence),
        Text(cell.judge),
        *(Text(_figure(cell.metrics.get(name))) for name in names),
        *(Text(f"{count:,}") for count in (cell.answers, cell.failed, cell.empty, cell.unscored)),
        Text(f"{cell.latency_ms:,.0f}"),
        Text(f"{cell.defence_ms:,.0f}"),
        Text(f"{cell.calls:.2f}"),
    ]


def _figure(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if 0 <= estimate.low <= estimate.high <= 1:
        return f"{estimate.value:.1%} [{100 * estimate.low:.0f}–{100 * estimate.high:.0f}]"
    return f"{estimate.value:.2f} [{estimate.low:.2f}–{estimate.high:.2f}]"


def estimate_view(found: RunForecast) -> tuple[RenderableType, dict[str, Any]]:
    """What ``--dry-run`` prints, as text and as plain JSON values."""
    head = Table(box=None, show_header=False, pad_edge=False)
    for benchmark, count in found.samples.items():
        head.add_row(benchmark, f"{count:,} samples")
    table = Table(box=None, pad_edge=False)
    for name in ("target", "defence", "stored", "to ask", "added calls", "tokens in", "tokens out"):
        left = name in {"target", "defence"}
        table.add_column(name, justify="left" if left else "right", overflow="fold")
    table.add_column("time", justify="right")
    for part in found.parts:
        table.add_row(
            Text(part.target),
            Text(part.defence),
            f"{part.stored:,}",
            f"{part.to_do:,}",
            _range(part.added_low, part.added_high),
            f"{part.prompt_tokens:,}",
            f"{part.completion_tokens:,}",
            f"{timedelta(seconds=round(part.seconds))}{'' if part.measured else ' ?'}",
        )
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
    values = {**asdict(found), "assumptions": ASSUMPTIONS}
    return Group(head, Text(), table, Text(), ending), values


def _range(low: int | None, high: int | None) -> str:
    if low is None or high is None:
        return "unknown"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"
