"""Counts and lengths over a stream of records, in memory that does not grow with it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vlmguard.data.records import TrainingRecord

META_FACETS = ("carrier", "style", "language")
"""Counted where records have them; authored contrast sets do."""
_TEXTS = ("prompt", "textual", "visual", "multimodal", "rewrite")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """How long a field's texts are, in characters.

    Attributes:
        count: records that have the field, empty strings included.
        mean: arithmetic mean.
        median, p95: the shortest length that at least 50 % and 95 % do not exceed.
        longest: the maximum.
    """

    count: int
    mean: float
    median: int
    p95: int
    longest: int

    @classmethod
    def of(cls, histogram: Counter[int]) -> Lengths:
        """From length → number of texts; not empty."""
        count = histogram.total()
        return cls(
            count=count,
            mean=sum(length * times for length, times in histogram.items()) / count,
            median=_quantile(histogram, 0.5),
            p95=_quantile(histogram, 0.95),
            longest=max(histogram),
        )


def _quantile(histogram: Counter[int], share: float) -> int:
    wanted = share * histogram.total()
    seen = 0
    for length in sorted(histogram):
        seen += histogram[length]
        if seen >= wanted:
            return length
    raise AssertionError("the histogram is empty")


@dataclass(slots=True)
class Tally:
    """What was counted so far.

    Attributes:
        records: seen.
        pictures: images or evidence of images, over all records.
        counts: facet (``split``, ``verdict``, ``category``, ``source``, …) → value → records.
    """

    records: int = 0
    pictures: int = 0
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    _lengths: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, record: TrainingRecord) -> None:
        """Count one record."""
        self.records += 1
        self.pictures += max(len(record.images), len(record.evidence))
        self._count("split", record.split)
        self._count("verdict", record.verdict)
        self._count("category", record.category or "none")
        self._count("source", record.source or "unknown")
        self._count("licence", record.licence or "unknown")
        for facet in META_FACETS:
            value = record.meta.get(facet)
            if isinstance(value, str):
                self._count(facet, value)
        for name in _TEXTS:
            text: str | None = getattr(record, name)
            if text is not None:
                self._lengths.setdefault(name, Counter())[len(text)] += 1

    def _count(self, facet: str, value: str) -> None:
        self.counts.setdefault(facet, Counter())[value] += 1

    def lengths(self) -> dict[str, Lengths]:
        """Field → lengths of its texts, for the fields that some record has."""
        return {name: Lengths.of(self._lengths[name]) for name in _TEXTS if name in self._lengths}

    def ranked(self, facet: str) -> list[tuple[str, int]]:
        """The facet's values, most frequent first, then by name; empty when it was never seen."""
        counter = self.counts.get(facet, Counter())
        return sorted(counter.items(), key=lambda item: (-item[1], item[0]))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the output of ``vlmguard data stats --json``."""
        return {
            "records": self.records,
            "pictures": self.pictures,
            "counts": {facet: dict(self.ranked(facet)) for facet in self.counts},
            "lengths": {
                name: {
                    "count": found.count,
                    "mean": round(found.mean, 2),
                    "median": found.median,
                    "p95": found.p95,
                    "longest": found.longest,
                }
                for name, found in self.lengths().items()
            },
        }
