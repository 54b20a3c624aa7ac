"""Safety against use: every defence of a target as a point, and those that no other beats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from vlmguard.evals.report.figures import Axis, Metric
from vlmguard.evals.report.layout import Group, TargetTable
from vlmguard.evals.types import Cell


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A defence.

    Attributes:
        defence: its spec.
        safety, use: means of shares over benchmarks, turned so that 1 is best.
        on_front: no other defence is at least as good in both and better in one.
    """

    defence: str
    safety: float
    use: float
    on_front: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TradeOff:
    """The points of a target, and what the two axes are means of.

    Attributes:
        target: its spec.
        points: one a defence.
        safety_from, use_from: e.g. ``"figstep: ASR (refusal)"``.
    """

    target: str
    points: tuple[Point, ...]
    safety_from: tuple[str, ...]
    use_from: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Series:
    """One figure that every defence of a target has."""

    group: Group
    metric: Metric

    def value(self, defence: str) -> float:
        cell = next(cell for cell in self.group.cells if cell.defence == defence)
        return _unit(self.metric, cell.metrics[self.metric.name].value)

    def __str__(self) -> str:
        return f"{self.group.title}: {self.metric.label} ({self.group.judge})"


def trade_off(table: TargetTable) -> TradeOff | None:
    """The plot of a target; ``None`` where one of the axes has no figure.

    An axis is the plain mean over the benchmarks that have such a figure for every defence; of
    several judges of one benchmark the first counts, since two judges are two scales.
    """
    defences = tuple(dict.fromkeys(cell.defence for cell in table.cells))
    safety = _series(table.groups, "safety", defences)
    use = _series(table.groups, "use", defences)
    if not safety or not use:
        return None
    values = [
        (fmean(s.value(defence) for s in safety), fmean(u.value(defence) for u in use))
        for defence in defences
    ]
    points = tuple(
        Point(defence=defence, safety=own[0], use=own[1], on_front=_unbeaten(own, values))
        for defence, own in zip(defences, values, strict=True)
    )
    return TradeOff(
        target=table.target,
        points=points,
        safety_from=tuple(map(str, safety)),
        use_from=tuple(map(str, use)),
    )


def main_metric(group: Group) -> Metric | None:
    """The figure that a group is plotted by: of safety where there is one, else of use."""
    for axis in ("safety", "use"):
        for metric in group.metrics:
            if metric.axis == axis and _has_unit(metric):
                return metric
    return next((metric for metric in group.metrics if metric.share), None)


def _series(groups: Sequence[Group], axis: Axis, defences: Sequence[str]) -> list[_Series]:
    found: dict[tuple[str, str], _Series] = {}
    for group in groups:
        place = (group.benchmark, group.subset)
        if place in found or len(group.cells) < len(defences):
            continue
        for metric in group.metrics:
            usable = metric.axis == axis and _has_unit(metric)
            if usable and all(metric.name in cell.metrics for cell in group.cells):
                found[place] = _Series(group=group, metric=metric)
                break
    return list(found.values())


def _has_unit(metric: Metric) -> bool:
    return metric.share or metric.name == "safety"


def _unit(metric: Metric, value: float) -> float:
    """The value on 0..1, 1 being best; the paper's safety goes to 10."""
    return metric.upwards(value) if metric.share else value / 10


def bar_value(metric: Metric, cell: Cell, category: str) -> float | None:
    """A category's figure on 0..1, not turned: a bar shows what its title says."""
    found = cell.by_category.get(category, {}).get(metric.name)
    return None if found is None else _as_bar(metric, found.value)


def _as_bar(metric: Metric, value: float) -> float:
    return value if metric.share else value / 10


def _unbeaten(own: tuple[float, float], others: Sequence[tuple[float, float]]) -> bool:
    return not any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in others)
