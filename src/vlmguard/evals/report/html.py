"""The report as one self-contained page: no network, everything from models and data escaped.

The table and the charts are in the markup; samples lie in it as JSON and are drawn when they are
looked at, so a page of ten thousand opens at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vlmguard.data.webpage import asset, content_policy, script, style
from vlmguard.errors import MissingExtra
from vlmguard.evals.report.charts import category_chart, latency_chart, trade_off_chart
from vlmguard.evals.report.figures import milliseconds
from vlmguard.evals.report.islands import PIECE, Choices, Pictures, sample_islands
from vlmguard.evals.report.layout import TargetTable, compared_with, repeats_note, tables
from vlmguard.evals.report.opinions import agreements
from vlmguard.evals.report.published import comparisons
from vlmguard.evals.report.reproduction import facts
from vlmguard.evals.report.svg import mark
from vlmguard.evals.report.tradeoff import TradeOff, main_metric, trade_off
from vlmguard.evals.types import Results

if TYPE_CHECKING:
    from jinja2 import Template


@dataclass(frozen=True, slots=True, kw_only=True)
class _CategoryChart:
    """A chart with the words above it."""

    title: str
    svg: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    """A target: its table and charts. The charts are SVG markup that is escaped already."""

    table: TargetTable
    trade_off: TradeOff | None
    trade_off_svg: str
    latency_svg: str
    categories: tuple[_CategoryChart, ...]


def html_parts(results: Results) -> Iterator[str]:
    """The page in pieces; one piece of samples is encoded at a time.

    Raises:
        MissingExtra: Jinja is not installed.
    """
    template = _template()
    code = script(asset("page.js", __package__))
    choices = Choices.of(results.views)
    pictures = Pictures()
    numbers = _numbers(results)
    return template.generate(
        policy=content_policy(code),
        style=style(asset("page.css", __package__)),
        script=code,
        results=results,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        facts=facts(results),
        judges=tuple(dict.fromkeys(cell.judge for cell in results.cells)),
        sections=[_section(table, numbers) for table in tables(results)],
        legend=[(mark(8, 8, number), defence) for defence, number in numbers.items()],
        missing=_missing(results),
        compared_with=compared_with(results),
        repeats=repeats_note(results),
        comparisons=comparisons(results),
        choices=choices,
        agreements=agreements(results.views),
        samples=sample_islands(results.views, pictures, choices),
        pictures=pictures,
        piece=PIECE,
        milliseconds=milliseconds,
    )


def _template() -> Template:
    try:
        from jinja2 import Environment, StrictUndefined  # noqa: PLC0415
    except ImportError:
        raise MissingExtra("the HTML report", "eval") from None
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(asset("page.html.j2", __package__))


def _section(table: TargetTable, numbers: Mapping[str, int]) -> _Section:
    found = trade_off(table)
    charts = (
        _CategoryChart(title=f"{group.title}: {metric.head}, judged by {group.judge}", svg=drawn)
        for group in table.groups
        if (metric := main_metric(group)) is not None
        and (drawn := category_chart(group, metric, numbers)) is not None
    )
    return _Section(
        table=table,
        trade_off=found,
        trade_off_svg="" if found is None else trade_off_chart(found, numbers),
        latency_svg=latency_chart(table, numbers),
        categories=tuple(charts),
    )


def _numbers(results: Results) -> dict[str, int]:
    """Defence → its colour and shape; ``none`` is gray."""
    names = dict.fromkeys(cell.defence for cell in results.cells)
    others = (name for name in names if name != "none")
    numbers = {name: number for number, name in enumerate(others, start=1)}
    return {name: numbers.get(name, 0) for name in names}


def _missing(results: Results) -> str:
    """What a reader must know of answers without a score; ``""`` where all have one."""
    # An answer counts once, however many judges it had.
    once = {(c.target, c.benchmark, c.subset, c.defence): c for c in results.cells}.values()
    failed = sum(cell.failed for cell in once)
    empty = sum(cell.empty for cell in once)
    unscored = sum(cell.unscored - cell.failed - cell.empty for cell in results.cells)
    counts = ((failed, "failed"), (empty, "empty"), (max(unscored, 0), "not scored by a judge"))
    return ", ".join(f"{count:,} {what}" for count, what in counts if count)
