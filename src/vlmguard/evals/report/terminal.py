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
    """One table a target: figures with their intervals, below them the difference to no defence.

    Nothing in a name is read as rich's markup.
    """
    return Lines(*(_table(table) for table in tables(results)))


def _table(table: TargetTable) -> Table:
    view = Table(
        title=Text(table.target), title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    view.add_column("defence", overflow="fold", min_width=8)
    for metric in table.metrics:
        view.add_column(metric.head, justify="right")
    for name in ("answers", "failed/empty/unscored", "latency", "added", "calls"):
        view.add_column(name, justify="right", overflow="fold")
    for group in table.groups:
        title = Text(group.title, "bold")
        title.append(f"  {group.judge}", "dim")
        view.add_row(title)
        for cell in group.cells:
            view.add_row(*_row(group, cell, table))
        view.add_section()
    return view


def _row(group: Group, cell: Cell, table: TargetTable) -> list[RenderableType]:
    missing = f"{cell.failed:,}/{cell.empty:,}/{cell.unscored:,}"
    return [
        Text(cell.defence),
        *(_figure(group, cell, metric) for metric in table.metrics),
        Text(f"{cell.answers:,}"),
        Text(missing, "yellow" if cell.failed or cell.empty or cell.unscored else "dim"),
        Text(milliseconds(cell.latency_ms)),
        Text(milliseconds(cell.defence_ms)),
        Text(f"{cell.calls:.2f}"),
    ]


def _figure(group: Group, cell: Cell, metric: Metric) -> Text:
    estimate = cell.metrics.get(metric.name)
    if estimate is None:
        return Text("–", "dim")
    text = Text(metric.number(estimate.value), "bold" if group.best(cell, metric) else "")
    text.append(f" {metric.interval(estimate)}", "not bold dim")
    found = cell.differences.get(metric.name)
    if found is not None:
        good = metric.upwards(found.value) - metric.upwards(0.0)
        style = "" if metric.better == "neither" or found.p >= 0.05 or not good else "green"
        text.append(
            f"\n{metric.signed(found.value)} {metric.interval(found)}",
            "not bold red" if style and good < 0 else f"not bold {style or 'dim'}",
        )
    return text
