"""What the figures are called, which way is better, and how they are written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from vlmguard.evals.types import Cell, Difference, Estimate

Better = Literal["higher", "lower", "neither"]
Axis = Literal["safety", "use", "neither"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A figure of the table.

    Attributes:
        name: as in `vlmguard.evals.types.Cell.metrics`.
        label: for people.
        better: which way is better.
        share: it is a share of answers (0..1, shown in per cent), not a score.
        axis: what it speaks for in the plot of safety against use.
    """

    name: str
    label: str
    better: Better = "neither"
    share: bool = True
    axis: Axis = "neither"

    @property
    def head(self) -> str:
        """The head of its column: unit and direction included."""
        arrow = {"higher": " ↑", "lower": " ↓", "neither": ""}[self.better]
        return f"{self.label}{' %' if self.share else ''}{arrow}"

    def number(self, value: float) -> str:
        """A value: per cent with one decimal, or a score with two."""
        if not math.isfinite(value):
            return "–"
        return f"{100 * value:.1f}" if self.share else f"{value:.2f}"

    def interval(self, estimate: Estimate | Difference) -> str:
        """The 95 % interval, e.g. ``"[88.1, 95.2]"``."""
        signed = isinstance(estimate, Difference)
        low, high = (
            self.signed(side) if signed else self.number(side)
            for side in (estimate.low, estimate.high)
        )
        return f"[{low}, {high}]"

    def signed(self, value: float) -> str:
        """A difference, in points, with its sign."""
        if not math.isfinite(value):
            return "–"
        # A true minus sign, and none before a zero.
        told = self.number(abs(value))
        if not told.strip("0."):
            return told
        return f"{'+' if value > 0 else '−'}{told}"

    def difference(self, found: Difference) -> str:
        """A paired difference with interval and p, e.g. ``"+12.0 [+8.0, +16.0], p = 0.002"``."""
        return f"{self.signed(found.value)} {self.interval(found)}, {p_value(found.p)}"

    def upwards(self, value: float) -> float:
        """The value turned so that more is better."""
        return (1 - value if self.share else -value) if self.better == "lower" else value


KNOWN = {
    metric.name: metric
    for metric in (
        Metric(name="safe_rate", label="safe", better="higher", axis="safety"),
        Metric(name="asr", label="ASR", better="lower", axis="safety"),
        Metric(name="dsr", label="DSR", better="higher", axis="safety"),
        Metric(name="safety", label="safety (0–10)", better="higher", share=False, axis="safety"),
        Metric(name="harm_score", label="harm score", better="lower", axis="safety"),
        Metric(name="safe_and_effective", label="safe & effective", better="higher"),
        Metric(name="effective", label="effective", better="higher", axis="use"),
        Metric(name="helpfulness", label="helpfulness", better="higher", axis="use"),
        Metric(name="over_refusal", label="over-refusal", better="lower", axis="use"),
        Metric(name="compliance", label="compliance", better="higher"),
        Metric(name="utility", label="utility", better="higher", axis="use"),
        Metric(name="accuracy", label="accuracy", better="higher", axis="use"),
        Metric(name="win_rate", label="win rate", better="higher", axis="use"),
        Metric(name="advice_safe_rate", label="advice with care", better="higher"),
        Metric(name="refusal_rate", label="advice refused"),
        # Of a harmful request a refusal in part may be right, of a harmless one it is not.
        Metric(name="partial_refusal", label="refused in part"),
        # What the guard called it says nothing about the answer, so it is on no axis.
        Metric(name="flagged_harmful", label="guard: harmful flagged", better="higher"),
        Metric(name="passed_harmless", label="guard: harmless passed", better="higher"),
        Metric(name="kappa", label="judges' kappa", share=False),
    )
}
"""The figures of `vlmguard.evals.metrics.FIGURES`, in the order of columns."""


def metrics_of(cells: Iterable[Cell]) -> tuple[Metric, ...]:
    """The metrics of some cells: known ones in a fixed order, then others as they come."""
    seen: dict[str, bool] = {}
    for cell in cells:
        for name, estimate in cell.metrics.items():
            within = 0 <= estimate.low <= estimate.value <= estimate.high <= 1
            seen[name] = seen.get(name, True) and within
    ordered = [*(name for name in KNOWN if name in seen), *(n for n in seen if n not in KNOWN)]
    return tuple(metric_named(name, share=seen[name]) for name in ordered)


def metric_named(name: str, *, share: bool) -> Metric:
    """The metric of that name.

    Args:
        name: of a metric; one that is not known has no direction.
        share: all its values lie in 0..1. A metric that is a share elsewhere is a score where they
            do not: a judge may rate out of 100.
    """
    metric = KNOWN.get(name, Metric(name=name, label=name.replace("_", " ")))
    return metric if metric.share == share or not metric.share else replace(metric, share=False)


def p_value(p: float) -> str:
    """``"p = 0.012"``, or ``"p < 0.001"``."""
    if not math.isfinite(p):
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def milliseconds(value: float) -> str:
    """A time for people: ``"840 ms"`` or ``"12.3 s"``."""
    return f"{value / 1000:,.1f} s" if value >= 10_000 else f"{value:,.0f} ms"
