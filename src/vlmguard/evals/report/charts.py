"""The report's charts as inline SVG: coloured by the page's style, light or dark, no library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from vlmguard.evals.report import svg
from vlmguard.evals.report.figures import Metric, milliseconds
from vlmguard.evals.report.layout import Group, TargetTable
from vlmguard.evals.report.tradeoff import Point, TradeOff, bar_value
from vlmguard.evals.types import Cell

_CHARACTER = 7.2
"""Width of a character of the chart's font, roughly, in its 13 pixels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """From values to pixels, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    step: float

    @classmethod
    def around(cls, values: Sequence[float], *, start: float, end: float) -> Scale:
        """A part of 0..1 that holds all values with some room, in steps of 5, 10 or 20 points."""
        low, high = min(values), max(values)
        step = 0.05 if high - low < 0.2 else 0.1 if high - low < 0.5 else 0.2
        low = max(0.0, (math.floor(low / step + 1e-9) - 1) * step)
        high = min(1.0, (math.ceil(high / step - 1e-9) + 1) * step)
        return cls(low=low, high=high, start=start, end=end, step=step)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> Iterator[float]:
        """The round values from low to high."""
        for number in range(round((self.high - self.low) / self.step) + 1):
            yield self.low + number * self.step


def trade_off_chart(found: TradeOff, numbers: Mapping[str, int]) -> str:
    """Safety (upwards) against use (to the right), the front as a line.

    Args:
        found: the points.
        numbers: defence → its colour and shape.
    """
    width, height = 560.0, 380.0
    across = Scale.around([point.use for point in found.points], start=56, end=width - 24)
    up = Scale.around([point.safety for point in found.points], start=height - 52, end=20)
    front = sorted((point for point in found.points if point.on_front), key=lambda point: point.use)
    told = "; ".join(
        f"{point.defence}: safety {point.safety:.1%}, use {point.use:.1%}"
        f"{', on the Pareto front' if point.on_front else ''}"
        for point in found.points
    )

    def parts() -> Iterator[str]:
        yield from _axes(across, up)
        yield svg.text(width / 2, height - 10, "use, % (more is better) →", "axis", anchor="middle")
        yield svg.text(8, 12, "↑ safety, % (more is better)", "axis")
        if len(front) > 1:
            yield svg.path(_staircase([(across(p.use), up(p.safety)) for p in front]), "front")
        placed = _Labels(found.points, across, up, right=width)
        for point in found.points:
            x, y = across(point.use), up(point.safety)
            tip = f"{point.defence}: safety {point.safety:.1%}, use {point.use:.1%}"
            yield svg.mark(x, y, numbers[point.defence], tip)
            kind = "label strong" if point.on_front else "label"
            left, base = placed.place(point)
            yield svg.text(left, base, _short(point.defence), kind)

    return svg.chart(f"Safety against use: {found.target}", told, width, height, parts())


def category_chart(group: Group, metric: Metric, numbers: Mapping[str, int]) -> str | None:
    """A bar for each category and defence, with intervals; ``None`` without categories."""
    categories = list(dict.fromkeys(name for cell in group.cells for name in cell.by_category))
    if not categories:
        return None
    bar, gap, left, width = 13.0, 14.0, 176.0, 560.0
    across = Scale(low=0, high=1, start=left, end=width - 50, step=0.2)
    block = bar * len(group.cells) + gap
    height = 30 + block * len(categories)

    def parts() -> Iterator[str]:
        for tick in across.ticks():
            yield svg.line(across(tick), 22, across(tick), height, "grid")
            yield svg.text(across(tick), 15, f"{100 * tick:.0f}", "axis", anchor="middle")
        for row, category in enumerate(categories):
            top = 28 + row * block
            yield svg.text(left - 8, top + 11, _short(category, 23), "label", anchor="end")
            for place, cell in enumerate(group.cells):
                yield from _bar(cell, category, top + place * bar, bar)

    def _bar(cell: Cell, category: str, top: float, thick: float) -> Iterator[str]:
        value = bar_value(metric, cell, category)
        if value is None:
            return
        estimate = cell.by_category[category][metric.name]
        tip = (
            f"{category}, {cell.defence}: {metric.number(estimate.value)} "
            f"{metric.interval(estimate)}, n = {estimate.n}"
        )
        kind = f"fill c{numbers[cell.defence] % svg.COLOURS}"
        yield svg.rect(left, top, across(value) - left, thick - 3, kind, tip=tip)
        scale = 1 if metric.share else 10
        low, high = (across(min(1, max(0, side / scale))) for side in (estimate.low, estimate.high))
        middle = top + (thick - 3) / 2
        yield svg.line(low, middle, high, middle, "whisker")
        yield svg.text(width - 44, top + 10, metric.number(estimate.value), "axis")

    told = "; ".join(
        f"{category}: "
        + ", ".join(
            f"{cell.defence} {metric.number(cell.by_category[category][metric.name].value)}"
            for cell in group.cells
            if bar_value(metric, cell, category) is not None
        )
        for category in categories
    )
    title = f"{group.title}: {metric.head} by category, by {group.judge}"
    return svg.chart(title, told, width, height, parts())


def latency_chart(table: TargetTable, numbers: Mapping[str, int]) -> str:
    """For each defence the time of an answer, and the part of it that the defence added."""
    rows = [
        (defence, *_times([cell for cell in table.cells if cell.defence == defence]))
        for defence in dict.fromkeys(cell.defence for cell in table.cells)
    ]
    left, width, bar = 150.0, 560.0, 26.0
    height = 16 + bar * len(rows)
    longest = max(max(total, added) for _, total, added in rows) or 1.0

    def parts() -> Iterator[str]:
        for place, (defence, total, added) in enumerate(rows):
            top = 8 + place * bar
            room = width - left - 205
            own = room * max(total - added, 0) / longest
            kind = f"c{numbers[defence] % svg.COLOURS}"
            yield svg.text(left - 8, top + 13, _short(defence, 20), "label", anchor="end")
            yield svg.rect(left, top, own, 17, f"fill soft {kind}", tip="target")
            yield svg.rect(left + own, top, room * added / longest, 17, f"fill {kind}", tip="added")
            told = f"{milliseconds(total)}, of it {milliseconds(added)} added"
            yield svg.text(left + room * max(total, added) / longest + 8, top + 13, told, "axis")

    told = "; ".join(
        f"{defence}: {milliseconds(total)}, of it {milliseconds(added)} added"
        for defence, total, added in rows
    )
    return svg.chart(f"Time of an answer: {table.target}", told, width, height, parts())


def _times(cells: Sequence[Cell]) -> tuple[float, float]:
    """Mean over benchmarks of the medians; each benchmark once, however many judges it has."""
    by_place = {(cell.benchmark, cell.subset): cell for cell in cells}
    return (
        fmean(cell.latency_ms for cell in by_place.values()),
        fmean(cell.defence_ms for cell in by_place.values()),
    )


def _axes(across: Scale, up: Scale) -> Iterator[str]:
    for tick in across.ticks():
        yield svg.line(across(tick), up.end, across(tick), up.start, "grid")
        yield svg.text(across(tick), up.start + 18, f"{100 * tick:.0f}", "axis", anchor="middle")
    for tick in up.ticks():
        yield svg.line(across.start, up(tick), across.end, up(tick), "grid")
        yield svg.text(across.start - 8, up(tick) + 4, f"{100 * tick:.0f}", "axis", anchor="end")


def _staircase(front: Sequence[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The border of what is reached: safety falls where use grows, and never in between."""
    for number, (x, y) in enumerate(front):
        if number:
            # Straight down first: what lies beyond the corner is not reached.
            yield front[number - 1][0], y
        yield x, y


class _Labels:
    """Finds places for the points' names where they cover neither points nor each other."""

    def __init__(self, points: Sequence[Point], across: Scale, up: Scale, *, right: float) -> None:
        self._across, self._up, self._right = across, up, right
        self._taken = [_box(across(p.use) - 7, up(p.safety) + 7, 14, 14) for p in points]

    def place(self, point: Point) -> tuple[float, float]:
        """Left end and baseline of the name."""
        x, y = self._across(point.use), self._up(point.safety)
        length = len(_short(point.defence)) * _CHARACTER
        places = [
            place
            for away in range(0, 80, 14)
            for place in (
                (x + 11, y + 4 + away),
                (x - 11 - length, y + 4 + away),
                (x + 11, y + 4 - away),
                (x - 11 - length, y + 4 - away),
            )
        ]
        for left, base in places:
            box = _box(left, base + 3, length, 15)
            inside = left > self._across.start and left + length < self._right
            if inside and base < self._up.start and not any(_meet(box, b) for b in self._taken):
                self._taken.append(box)
                return left, base
        return places[0]


_Box = tuple[float, float, float, float]


def _box(left: float, bottom: float, width: float, height: float) -> _Box:
    return left, bottom - height, left + width, bottom


def _meet(one: _Box, other: _Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _short(name: str, length: int = 30) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"
