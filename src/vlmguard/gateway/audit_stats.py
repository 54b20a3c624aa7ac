"""Counts and latencies over an audit log."""

from __future__ import annotations

import math
from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlmguard.gateway.audit import AuditRecord

PERCENTILES = (50, 90, 95, 99)
COUNTED = ("verdict", "action", "category", "policy", "mode", "route", "status", "key_id")
"""Fields of a record that are counted by value."""


@dataclass(slots=True)
class AuditStats:
    """What many records come to. Add records one by one.

    Attributes:
        records: how many.
        failed: those where the guard failed.
        by: field → value → records.
        hours: start of the hour (UTC) → records.
        latency_ms: step → milliseconds of each record that had it.
    """

    records: int = 0
    failed: int = 0
    by: dict[str, Counter[str]] = field(
        default_factory=lambda: {name: Counter() for name in COUNTED}
    )
    hours: Counter[str] = field(default_factory=Counter)
    latency_ms: dict[str, array[float]] = field(default_factory=dict)

    def add(self, record: AuditRecord) -> None:
        """Count a record."""
        self.records += 1
        self.failed += record.failure is not None
        for name, counter in self.by.items():
            value = getattr(record, name)
            if value is not None:
                counter[str(value)] += 1
        self.hours[record.time.strftime("%Y-%m-%dT%H:00Z")] += 1
        for step, elapsed in record.latency_ms.items():
            self.latency_ms.setdefault(step, array("d")).append(elapsed)

    def percentiles(self) -> dict[str, dict[int, float]]:
        """Step → percentile → milliseconds, by nearest rank."""
        return {
            step: {percent: _nearest_rank(ordered, percent) for percent in PERCENTILES}
            for step, ordered in ((step, sorted(values)) for step, values in self._steps())
        }

    def _steps(self) -> list[tuple[str, array[float]]]:
        return sorted(self.latency_ms.items(), key=lambda item: (item[0] == "total", item[0]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "records": self.records,
            "failed": self.failed,
            **{f"by_{name}": dict(counter.most_common()) for name, counter in self.by.items()},
            "by_hour": dict(sorted(self.hours.items())),
            "latency_ms": {
                step: {f"p{percent}": round(ms, 3) for percent, ms in ranks.items()}
                for step, ranks in self.percentiles().items()
            },
        }


def _nearest_rank(ordered: list[float], percent: int) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
