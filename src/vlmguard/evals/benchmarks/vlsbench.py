"""VLSBench (AI45Lab/VLSBench): the risk is in the picture, the text gives nothing away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmguard.data.tables import Row, read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.described import DescribedPicture
from vlmguard.evals.types import Picture, Sample

FACTS = Facts(
    name="vlsbench",
    title="VLSBench: harmless words, risky picture",
    kinds="harmful",
    scored="refused, warned or unsafe (judge with picture)",
    counts={"": 2241},
    folders=("vlsbench",),
    source="https://github.com/AI45Lab/VLSBench",
    licence="Apache-2.0",
    get="Download the dataset Foreshhh/vlsbench (data.json and imgs.tar) and unpack imgs.tar there",
    hub="Foreshhh/vlsbench",
)
DESCRIBED_FACTS = replace(
    FACTS,
    name="vlsbench-described",
    title="VLSBench, descriptions in place of pictures",
    scored="a figure of its own, never mixed with vlsbench",
    get="Download data.json of the dataset Foreshhh/vlsbench",
)


@dataclass(frozen=True, slots=True)
class VLSBench(Loader):
    """``data.json``; pictures in ``imgs/``, or their descriptions in place of them."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("data.json", "**/data.json"),)

    def samples(self) -> Iterator[Sample]:
        """One sample an item."""
        blind = self.place.facts.name == DESCRIBED_FACTS.name
        for row in read_rows(*self.files()):
            description = row.text("image_description") if blind else None
            yield Sample(
                benchmark=self.place.facts.name,
                id=row.text("instruction_id"),
                prompt=row.text("instruction"),
                kind="harmful",
                pictures=(self._picture(row, description),),
                description=description,
                category=row.text("category", default=""),
                reference={"safety_reason": row.text("safety_reason", default="")},
            )

    def notes(self) -> Sequence[str]:
        """What stands for the pictures."""
        if self.place.facts.name == DESCRIBED_FACTS.name:
            return ("descriptions stand in place of the pictures",)
        return ()

    def _picture(self, row: Row, description: str | None) -> Picture:
        if description is not None:
            return DescribedPicture(description=description)
        return self.place.picture(row, row.text("image_path"), "images")
