"""The table as a terminal shows it."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Group as Lines
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from vlmguard.evals.report.figures import Metric, milliseconds
from vlmguard.evals.report.layout import Group, TargetTable, tables
from vlmguard.evals.types import Cell, Results


def results_view(results: Results) -> RenderableType:
    """A table for each target, benchmark and judge, narrow enough for eighty characters.

    In a cell: the figure, its interval, and below them the paired difference to another defence,
    mostly none, with its own. Nothing in a name is read as rich's markup, and nothing is cut off.
    """
    parts = [part for table in tables(results) for part in _target(table)]
    if results.compared_to != "none":
        parts.append(Text(f"differences: to {results.compared_to}", "dim"))
    return Lines(*parts)


def _target(table: TargetTable) -> list[RenderableType]:
    return [Text(table.target, "bold"), *(_table(group) for group in table.groups)]


def _table(group: Group) -> Table:
    title = Text.assemble((group.title, "bold"), ("  judged by ", "dim"), (group.judge, "dim"))
    view = Table(
        title=title,
        title_justify="left",
        title_style="",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
    )
    view.add_column("defence", overflow="fold")
    for metric in group.metrics:
        # rich breaks lines at blanks only, and this word would make its column the widest.
        head = metric.head.replace("over-refusal", "over-\nrefusal")
        view.add_column(Text(head), justify="right", overflow="fold")
    for name in ("answers", "time"):
        view.add_column(name, justify="right", no_wrap=True)
    for cell in group.cells:
        view.add_row(*_row(group, cell))
    return view


def _row(group: Group, cell: Cell) -> list[RenderableType]:
    return [
        Text(cell.defence),
        *(_figure(group, cell, metric) for metric in group.metrics),
        _answers(cell),
        _time(cell),
    ]


def _answers(cell: Cell) -> Text:
    """How many, and what is missing of them; nothing is missing in most."""
    text = Text(f"{cell.answers:,}")
    if cell.repeats > 1:
        text.append(f"\n{cell.repeats} each", "dim")
    unscored = cell.unscored - cell.failed - cell.empty
    counts = (
        (cell.failed, "failed"),
        (cell.empty, "empty"),
        (unscored, "unscored"),
        (cell.undecided, "undecided"),
    )
    for count, what in counts:
        if count > 0:
            text.append(f"\n{count:,} {what}", "yellow")
    return text


def _time(cell: Cell) -> Text:
    """Of an answer, and what the defence added: time, and calls to models."""
    text = Text(milliseconds(cell.latency_ms))
    if cell.defence_ms:
        text.append(f"\n+{milliseconds(cell.defence_ms)}", "dim")
    if cell.calls:
        text.append(f"\n+{cell.calls:.2f} calls", "dim")
    return text


def _figure(group: Group, cell: Cell, metric: Metric) -> Text:
    estimate = cell.metrics.get(metric.name)
    if estimate is None:
        return Text("–", "dim")
    text = Text()
    text.append(metric.number(estimate.value), "bold" if group.best(cell, metric) else "")
    text.append(f"\n{metric.interval(estimate)}", "dim")
    found = cell.differences.get(metric.name)
    if found is not None:
        good = metric.upwards(found.value) - metric.upwards(0.0)
        known = metric.better != "neither" and found.p < 0.05 and good
        style = ("green" if good > 0 else "red") if known else "dim"
        text.append(f"\n{metric.signed(found.value)}", style)
        text.append(f"\n{metric.interval(found)}", "dim")
    return text
