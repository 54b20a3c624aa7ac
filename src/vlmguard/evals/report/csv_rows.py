"""The report as CSV: one line a figure, for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from vlmguard.evals.spreadsheets import as_text
from vlmguard.evals.types import Cell, Estimate, Results

COLUMNS = (
    "target",
    "benchmark",
    "subset",
    "defence",
    "judge",
    "category",
    "metric",
    "value",
    "low",
    "high",
    "n",
    "difference",
    "difference_low",
    "difference_high",
    "p",
    "pairs",
    "answers",
    "failed",
    "empty",
    "unscored",
    "repeats",
    "undecided",
    "latency_ms",
    "defence_ms",
    "calls",
    "defence_tokens",
)


def csv_text(results: Results) -> str:
    """All figures, by category too; a row without a metric where nothing could be scored.

    Text that a spreadsheet would take for a formula gets an apostrophe before it.
    """
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for cell in results.cells:
        writer.writerows(_rows(cell))
    return buffer.getvalue()


def _rows(cell: Cell) -> Iterator[list[str | float | int]]:
    head = [cell.target, cell.benchmark, cell.subset, cell.defence, cell.judge]
    tail = [
        *(cell.answers, cell.failed, cell.empty, cell.unscored, cell.repeats, cell.undecided),
        *(cell.latency_ms, cell.defence_ms, cell.calls, cell.defence_tokens),
    ]
    texts = [as_text(text) for text in head]
    if not cell.metrics:
        yield [*texts, "", "", *[""] * 9, *tail]
    for name, estimate in cell.metrics.items():
        found = cell.differences.get(name)
        paired: list[float | str] = [""] * 5
        if found is not None:
            paired = [found.value, found.low, found.high, found.p, found.n]
        yield [*texts, "", as_text(name), *_estimate(estimate), *paired, *tail]
    for category, metrics in cell.by_category.items():
        for name, estimate in metrics.items():
            named = [as_text(category), as_text(name)]
            yield [*texts, *named, *_estimate(estimate), *[""] * 5, *[""] * len(tail)]


def _estimate(found: Estimate) -> list[float | int]:
    return [found.value, found.low, found.high, found.n]
