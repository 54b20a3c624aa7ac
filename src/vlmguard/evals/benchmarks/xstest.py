"""XSTest (paul-rottger/xstest): safe prompts that look unsafe, and unsafe contrasts; text only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.hub import HubTable
from vlmguard.data.tables import Row, read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.types import Sample

FACTS = Facts(
    name="xstest",
    title="XSTest: safe text that looks unsafe, contrasts",
    kinds="harmful, harmless",
    scored="full compliance, full or partial refusal",
    counts={"safe": 250, "unsafe": 200},
    folders=("xstest",),
    source="https://github.com/paul-rottger/xstest",
    licence="CC BY 4.0",
    get="Download xstest_prompts.csv from the repository paul-rottger/xstest",
    hub="Paul/XSTest",
    hub_rows=True,
)


@dataclass(frozen=True, slots=True)
class XSTest(Loader):
    """``xstest_prompts.csv``; an older copy has no labels, and its types say it."""

    def files(self) -> Sequence[Path]:
        """The one file; none of a dataset on the hub."""
        if self.place.hub is not None:
            return ()
        return (self.place.find("xstest_prompts.csv", "xstest*prompts.csv", "**/xstest*.csv"),)

    def samples(self) -> Iterator[Sample]:
        """One sample a prompt; the label is its subset."""
        hub = self.place.hub
        rows = read_rows(*self.files()) if hub is None else HubTable(dataset=hub).rows()
        for row in rows:
            label = _label(row)
            yield Sample(
                benchmark=FACTS.name,
                id=row.text("id"),
                prompt=row.text("prompt"),
                kind="harmless" if label == "safe" else "harmful",
                category=row.text("type", default=""),
                subset=label,
            )


def _label(row: Row) -> str:
    label = row.text("label", default="")
    if not label:
        return "unsafe" if row.text("type").startswith("contrast_") else "safe"
    if label not in FACTS.counts:
        raise row.wrong(f"the label {label!r} is neither safe nor unsafe")
    return label
