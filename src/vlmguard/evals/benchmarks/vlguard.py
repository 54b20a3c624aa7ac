"""VLGuard (ys-zong/VLGuard): pictures that are safe or not, with instructions that are or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.tables import Row, read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.types import Kind, Sample

FACTS = Facts(
    name="vlguard",
    title="VLGuard, test split: picture or text is unsafe",
    kinds="harmful, harmless",
    scored="no refusal phrase; safe_safes: win rate",
    counts={"unsafes": 442, "safe_unsafes": 558, "safe_safes": 558},
    folders=("vlguard",),
    source="https://huggingface.co/datasets/ys-zong/VLGuard",
    licence="see its page (gated)",
    get="Accept the terms of the dataset ys-zong/VLGuard, download test.json and test.zip, and "
    "unpack the pictures into test/",
    hub="ys-zong/VLGuard",
)
_INSTRUCTIONS: Mapping[str, tuple[str, Kind]] = {
    "safe_instruction": ("safe_safes", "harmless"),
    "unsafe_instruction": ("safe_unsafes", "harmful"),
    "instruction": ("unsafes", "harmful"),
}
"""Key → subset and kind."""


@dataclass(frozen=True, slots=True)
class VLGuard(Loader):
    """``test.json``; a safe picture gives two samples, an unsafe one gives one."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("test.json", "**/test.json"),)

    def samples(self) -> Iterator[Sample]:
        """In the order of the file."""
        for row in read_rows(*self.files()):
            pairs = row.values.get("instr-resp")
            if not isinstance(pairs, list) or not pairs:
                raise row.wrong(f"'instr-resp' is a list of instructions, not {pairs!r:.60}")
            for pair in pairs:
                yield self._sample(row, pair)

    def _sample(self, row: Row, pair: object) -> Sample:
        values = pair if isinstance(pair, Mapping) else {}
        key = next((key for key in _INSTRUCTIONS if key in values), None)
        if key is None:
            raise row.wrong(
                f"an entry of 'instr-resp' has none of the keys {', '.join(_INSTRUCTIONS)}"
            )
        subset, kind = _INSTRUCTIONS[key]
        inner = Row(path=row.path, number=row.number, values=values)
        return Sample(
            benchmark=FACTS.name,
            id=f"{row.text('id')}/{subset}",
            prompt=inner.text(key),
            kind=kind,
            pictures=(self.place.picture(row, row.text("image"), "test", "images"),),
            category=row.text("harmful_category", default=""),
            subset=subset,
            reference={"reference_answer": inner.text("response", default="")},
        )
