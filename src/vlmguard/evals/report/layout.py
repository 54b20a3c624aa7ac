"""The table in the order that every format shows: target, benchmark, judge, defence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmguard.evals.report.figures import Metric, metrics_of
from vlmguard.evals.types import Cell, Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The defences of one target on one (subset of a) benchmark by one judge.

    Attributes:
        title: benchmark and subset.
        judge: who scored.
        cells: one a defence, in the run's order.
        metrics: those that any of them has.
    """

    title: str
    benchmark: str
    subset: str
    judge: str
    cells: tuple[Cell, ...]
    metrics: tuple[Metric, ...]

    def best(self, cell: Cell, metric: Metric) -> bool:
        """Whether nobody in the group is better at it; false where there is nothing to compare."""
        if metric.better == "neither" or metric.name not in cell.metrics:
            return False
        values = [each.metrics[metric.name].value for each in self.cells if _has(each, metric)]
        if len(values) < 2 or len(set(values)) == 1:
            return False
        best = max(values, key=metric.upwards)
        return cell.metrics[metric.name].value == best


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTable:
    """All that one target has.

    Attributes:
        target: its spec.
        groups: its rows, by benchmark and judge.
        metrics: the columns.
    """

    target: str
    groups: tuple[Group, ...]
    metrics: tuple[Metric, ...]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All rows, in order."""
        return tuple(cell for group in self.groups for cell in group.cells)


def tables(results: Results) -> tuple[TargetTable, ...]:
    """One table a target, in the run's order."""
    targets = dict.fromkeys(cell.target for cell in results.cells)
    return tuple(
        _table(target, [cell for cell in results.cells if cell.target == target])
        for target in targets
    )


def compared_with(results: Results) -> str:
    """What the paired differences are to, for people."""
    return "no defence" if results.compared_to == "none" else results.compared_to


def repeats_note(results: Results) -> str:
    """What a reader must know where samples were answered several times; ``""`` otherwise."""
    repeats = max((cell.repeats for cell in results.cells), default=1)
    if repeats == 1:
        return ""
    undecided = sum(cell.undecided for cell in results.cells)
    told = f" {undecided:,} outcomes have no majority and enter no figure." if undecided else ""
    return (
        f"Each sample was answered {repeats} times and counts once: yes or no by the majority of "
        f"its answers, scores by their mean.{told}"
    )


def title_of(benchmark: str, subset: str) -> str:
    """A benchmark's name with its subset."""
    return f"{benchmark} ({subset})" if subset else benchmark


def _table(target: str, cells: Sequence[Cell]) -> TargetTable:
    keys = dict.fromkeys((cell.benchmark, cell.subset, cell.judge) for cell in cells)
    # Judges of one benchmark stand below each other, whatever order the cells came in.
    first = {place: number for number, place in enumerate(dict.fromkeys(key[:2] for key in keys))}
    groups = []
    for key in sorted(keys, key=lambda key: first[key[:2]]):
        own = tuple(cell for cell in cells if (cell.benchmark, cell.subset, cell.judge) == key)
        benchmark, subset, judge = key
        groups.append(
            Group(
                title=title_of(benchmark, subset),
                benchmark=benchmark,
                subset=subset,
                judge=judge,
                cells=own,
                metrics=metrics_of(own),
            )
        )
    return TargetTable(target=target, groups=tuple(groups), metrics=metrics_of(cells))


def _has(cell: Cell, metric: Metric) -> bool:
    return metric.name in cell.metrics
