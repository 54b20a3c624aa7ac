"""StrongREJECT (dsbowen/strong_reject): plainly harmful requests; text only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.tables import read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.types import Sample

FACTS = Facts(
    name="strongreject",
    title="StrongREJECT: plainly harmful requests; text only",
    kinds="harmful",
    scored="attack success rate (judge)",
    counts={"": 313},
    folders=("strongreject", "strong_reject"),
    source="https://github.com/dsbowen/strong_reject",
    licence="MIT",
    get="Download strongreject_dataset.csv from the repository alexandrasouly/strongreject",
)


@dataclass(frozen=True, slots=True)
class StrongReject(Loader):
    """``strongreject_dataset.csv``: category, source, forbidden_prompt."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("strongreject_dataset.csv", "**/strongreject_dataset.csv"),)

    def samples(self) -> Iterator[Sample]:
        """One sample a row; rows have no ids, so their position is it, from 0."""
        for row in read_rows(*self.files()):
            yield Sample(
                benchmark=FACTS.name,
                id=str(row.number - 1),
                prompt=row.text("forbidden_prompt"),
                kind="harmful",
                category=row.text("category", default=""),
            )
