"""The report as Markdown (GitHub's tables)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from vlmguard.evals.report.figures import Metric, milliseconds
from vlmguard.evals.report.layout import Group, compared_with, repeats_note, tables
from vlmguard.evals.report.opinions import Pair, agreements
from vlmguard.evals.report.published import comparisons
from vlmguard.evals.report.reproduction import Fact, facts
from vlmguard.evals.types import Cell, Results

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~$])")


def markdown(results: Results) -> str:
    """The whole report; nothing in a name or a category can write markup."""
    return "\n".join(_lines(results))


def _lines(results: Results) -> Iterator[str]:
    yield "# Evaluation\n"
    if results.command:
        # A fence longer than any in the command.
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", results.command)), default=0))
        yield f"{fence}console\n$ {_one_line(results.command)}\n{fence}\n"
    for table in tables(results):
        yield f"## {escape(table.target)}\n"
        rows = [
            _row(group, cell, table.metrics, first=number == 0)
            for group in table.groups
            for number, cell in enumerate(group.cells)
        ]
        heads = ["benchmark", "defence", "judge", *(metric.head for metric in table.metrics)]
        counts = ["answers", "failed", "empty", "unscored", "latency", "added", "calls", "tokens"]
        yield from _table([*map(escape, heads), *counts], rows, left=3)
        changes = [
            [escape(group.title), escape(cell.defence), escape(metric.head), metric.difference(d)]
            for group in table.groups
            for cell in group.cells
            for metric in group.metrics
            if (d := cell.differences.get(metric.name)) is not None
        ]
        if changes:
            yield f"Paired difference to {escape(compared_with(results))}, in points:\n"
            yield from _table(["benchmark", "defence", "figure", "difference"], changes, left=4)
    yield (
        "Figures with their 95 % intervals; the best of a group is bold. Unscored answers (failed "
        "and empty ones included) are counted and enter no figure. Latency and its added part are "
        "medians, added calls and tokens means per answer.\n"
    )
    if note := repeats_note(results):
        yield f"{note}\n"
    if pairs := agreements(results.views):
        yield "## How far the judges agree\n"
        yield from _table(
            ["judge", "judge", "score", "answers", "same %", "kappa"], map(_pair, pairs), left=3
        )
    found = comparisons(results)
    if found:
        yield "## Published figures\n"
        yield (
            "By other papers, with other judges and often other data: to be read beside ours, "
            "never as one table with them.\n"
        )
        rows = [
            [
                escape(each.published.benchmark),
                escape(each.published.target),
                escape(each.published.defence),
                escape(each.metric.head),
                each.told,
                escape("; ".join(each.ours_told())) or "–",
                escape(each.published.paper),
                escape(each.published.judge),
            ]
            for each in found
        ]
        heads = ["benchmark", "target", "defence", "figure", "published", "ours", "paper", "judge"]
        yield from _table(heads, rows, left=4)
    yield "## To repeat it\n"
    yield from _table(["", "", ""], [_fact(fact) for fact in facts(results)], left=3)


def _pair(pair: Pair) -> list[str]:
    found = pair.kappa
    return [
        *map(escape, (pair.first, pair.second, pair.score.replace("_", " "))),
        f"{pair.answers:,}",
        f"{100 * pair.same:.1f}",
        "–" if found is None else f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]",
    ]


def _fact(fact: Fact) -> list[str]:
    return [escape(fact.kind), escape(fact.name), escape(fact.value)]


def _row(group: Group, cell: Cell, metrics: Sequence[Metric], *, first: bool) -> list[str]:
    return [
        escape(group.title) if first else "",
        escape(cell.defence),
        escape(cell.judge),
        *(_figure(group, cell, metric) for metric in metrics),
        *(f"{count:,}" for count in (cell.answers, cell.failed, cell.empty, cell.unscored)),
        milliseconds(cell.latency_ms),
        milliseconds(cell.defence_ms),
        f"{cell.calls:.2f}",
        f"{cell.defence_tokens:,.0f}",
    ]


def _figure(group: Group, cell: Cell, metric: Metric) -> str:
    estimate = cell.metrics.get(metric.name)
    if estimate is None:
        return ""
    value = metric.number(estimate.value)
    told = f"**{value}**" if group.best(cell, metric) else value
    return f"{told} {metric.interval(estimate)}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join('---' if n < left else '---:' for n in range(len(heads)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def escape(text: str) -> str:
    """Text that Markdown takes for nothing but text, on one line."""
    return _SPECIAL.sub(r"\\\1", _one_line(text)).replace("&", "&amp;")


def _one_line(text: str) -> str:
    return " ".join(text.split())
