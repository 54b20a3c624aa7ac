"""SPA-VL (sqrti/SPA-VL), the two splits for evaluation: Parquet with the pictures inside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.hub import HubTable
from vlmguard.data.tables import Row, read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader, stored_picture
from vlmguard.evals.types import Kind, Picture, Sample

FACTS = Facts(
    name="spa-vl",
    title="SPA-VL, the evaluation splits harm and help",
    kinds="harmful, advice",
    scored="harm: unsafe rate; help: win rate (judge)",
    counts={"harm": 265, "help": 265},
    folders=("spa_vl", "SPA-VL"),
    source="https://huggingface.co/datasets/sqrti/SPA-VL",
    licence="CC BY 4.0",
    get="Download the folder test of the dataset sqrti/SPA-VL (harm-*.parquet, help-*.parquet)",
    hub="sqrti/SPA-VL",
    hub_rows=True,
)
_KINDS: Mapping[str, Kind] = {"harm": "harmful", "help": "advice"}
"""The questions of ``help`` are about risky matters, too; they are scored by preference."""


@dataclass(frozen=True, slots=True)
class SpaVL(Loader):
    """Columns image, question, and class1–3 where they are there."""

    def files(self) -> Sequence[Path]:
        """The Parquet files of both splits; none of a dataset on the hub."""
        if self.place.hub is not None:
            return ()
        return [path for split in _KINDS for path in self._files(split)]

    def samples(self) -> Iterator[Sample]:
        """First ``harm``, then ``help``."""
        for split, kind in _KINDS.items():
            for number, row in enumerate(self._rows(split), 1):
                yield Sample(
                    benchmark=FACTS.name,
                    id=f"{split}/{number:04}",
                    prompt=row.text("question"),
                    kind=kind,
                    pictures=(_picture(row),),
                    category=row.text("class1", default=""),
                    subset=split,
                )

    def _files(self, split: str) -> list[Path]:
        patterns = (
            f"**/{split}-*.parquet",
            f"**/{split}/*.parquet",
            f"**/eval{split}/**/*.parquet",
            f"**/*{split}*.parquet",
        )
        found = self.place.find_all(*patterns)
        if not found:
            raise self.place.missing(f"{split}-*.parquet")
        return found

    def _rows(self, split: str) -> Iterator[Row]:
        if self.place.hub is not None:
            yield from HubTable(dataset=self.place.hub, config="test", split=split).rows()
            return
        for path in self._files(split):
            yield from read_rows(path)


def _picture(row: Row) -> Picture:
    picture = stored_picture(row, row.values.get("image"))
    if picture is None:
        raise row.wrong("the column 'image' holds no picture; download the Parquet files again")
    return picture
