"""How an evaluation looks in a terminal."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta
from typing import Any

from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vlmguard.cli.show import err
from vlmguard.evals.estimate import ASSUMPTIONS, RunForecast
from vlmguard.evals.progress import Progress
from vlmguard.evals.types import Cell, Results

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
        pace = progress.per_second()
        parts.append(f"{pace:,.0f}/s" if pace >= 10 else f"{pace:.2g}/s")
    left = progress.seconds_left()
    if left:
        parts.append(f"{timedelta(seconds=round(left))} left")
    if progress.stopping:
        parts.append("stopping")
    return " · ".join(parts)


def results_table(results: Results) -> RenderableType:
    """A table for each target, judge and (part of a) benchmark, with a row a defence."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in results.cells:
        part = f"{cell.benchmark} {cell.subset}".strip()
        groups.setdefault((cell.target, part, cell.judge), []).append(cell)
    tables = [_part_table(*key, cells) for key, cells in groups.items()]
    notes = ["[…] 95 % intervals; ms and calls are what the defence adds"]
    if any("*" in _figure(cell, name) for cell in results.cells for name in cell.metrics):
        notes.append("* differs from none, p < 0.05")
    return Group(*tables, Text("; ".join(notes), style="dim"))


def _part_table(target: str, part: str, judge: str, cells: Sequence[Cell]) -> Table:
    title = Text.assemble((part, "bold"), f" · {target} · judge {judge}")
    table = Table(title=title, title_justify="left", title_style="none", box=SIMPLE, pad_edge=False)
    names = list(dict.fromkeys(name for cell in cells for name in cell.metrics))
    table.add_column("defence", overflow="fold", min_width=12)
    for name in (*names, "answers", "unscored", "ms", "calls"):
        table.add_column(name.replace("_", " "), justify="right")
    for cell in cells:
        table.add_row(
            Text(cell.defence),
            *(Text(_figure(cell, name)) for name in names),
            f"{cell.answers:,}",
            _unscored(cell),
            f"{cell.defence_ms:,.0f}",
            f"{cell.calls:.1f}",
        )
    return table


def _unscored(cell: Cell) -> str:
    parts = [
        f"{count:,} {name}"
        for count, name in ((cell.failed, "failed"), (cell.empty, "empty"))
        if count
    ]
    return f"{cell.unscored:,} ({', '.join(parts)})" if parts else f"{cell.unscored:,}"


def _figure(cell: Cell, name: str) -> str:
    """Value, interval, and a star where it differs from ``none``."""
    found = cell.metrics.get(name)
    if found is None:
        return "–"
    compared = cell.differences.get(name)
    star = "*" if compared is not None and compared.p < 0.05 else ""
    if 0 <= found.low <= found.high <= 1:
        return f"{found.value:.0%} [{100 * found.low:.0f}–{100 * found.high:.0f}]{star}"
    return f"{found.value:.1f} [{found.low:.1f}–{found.high:.1f}]{star}"


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
