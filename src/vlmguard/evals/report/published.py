"""What others published, to be shown beside our figures and never as one table with them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter

from vlmguard.evals.report.figures import Metric, metric_named
from vlmguard.evals.types import Cell, Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published row.

    Attributes:
        benchmark: in our name for it.
        target, defence: as the paper calls the model, and in our name for the defence.
        metrics: in our names and units.
        paper, judge: where the figures are from and who scored.
    """

    benchmark: str
    target: str
    defence: str
    metrics: Mapping[str, float]
    paper: str
    judge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A published figure beside ours.

    Attributes:
        published: the row.
        metric: which of its figures.
        value: that figure.
        ours: the same target, defence and metric in this run, by any judge; often there is none.
    """

    published: Published
    metric: Metric
    value: float
    ours: tuple[Cell, ...]

    @property
    def told(self) -> str:
        """The published figure."""
        return self.metric.number(self.value)

    def ours_told(self) -> tuple[str, ...]:
        """Our figures with their judges."""
        return tuple(
            f"{self.metric.number(cell.metrics[self.metric.name].value)} ({cell.judge})"
            for cell in self.ours
        )


class _Row(BaseModel):
    model_config = ConfigDict(extra="forbid")

    target: str
    defence: str = "none"
    metrics: dict[str, float]


class _Source(BaseModel):
    model_config = ConfigDict(extra="forbid")

    paper: str
    judge: str
    benchmark: str
    rows: list[_Row]


@cache
def published() -> tuple[Published, ...]:
    """All published figures that this project knows: ``published.yaml``."""
    text = files(__package__).joinpath("published.yaml").read_text("utf-8")
    sources = TypeAdapter(list[_Source]).validate_python(yaml.safe_load(text))
    return tuple(
        Published(
            benchmark=source.benchmark,
            target=row.target,
            defence=row.defence,
            metrics=row.metrics,
            paper=source.paper,
            judge=source.judge,
        )
        for source in sources
        for row in source.rows
    )


def comparisons(results: Results) -> tuple[Comparison, ...]:
    """The published figures on the benchmarks of a run, each with ours where there is one."""
    benchmarks = {cell.benchmark for cell in results.cells}
    return tuple(
        Comparison(
            published=row,
            metric=metric_named(name, share=0 <= value <= 1),
            value=value,
            ours=tuple(_same(row, name, results.cells)),
        )
        for row in published()
        if row.benchmark in benchmarks
        for name, value in row.metrics.items()
    )


def _same(row: Published, metric: str, cells: Iterable[Cell]) -> Iterable[Cell]:
    for cell in cells:
        scheme = re.split(r"[?:]", cell.defence, maxsplit=1)[0]
        if (
            cell.benchmark == row.benchmark
            and metric in cell.metrics
            and scheme == row.defence
            and _plain(row.target) in _plain(cell.target)
        ):
            yield cell


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
