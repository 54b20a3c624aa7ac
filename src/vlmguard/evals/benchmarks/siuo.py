"""SIUO (sinwang20/SIUO): prompt and picture are safe each, and unsafe together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmguard.data.tables import Row, read_rows
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.types import Sample

FACTS = Facts(
    name="siuo",
    title="SIUO: text and picture unsafe only together",
    kinds="harmful",
    scored="safe, effective, both (judge with picture)",
    counts={"": 167},
    folders=("siuo",),
    source="https://github.com/sinwang20/SIUO",
    licence="CC BY-NC 4.0",
    get="Download the dataset sinwang/SIUO with its folder images",
    hub="sinwang/SIUO",
)
MCQA_FACTS = replace(
    FACTS,
    name="siuo-mcqa",
    title="SIUO, multiple choice",
    kinds="advice",
    scored="accuracy of the chosen letter",
)
_IMAGES = ("images", "data/images", "imgs", "image")


@dataclass(frozen=True, slots=True)
class Siuo(Loader):
    """``siuo_gen.json``; pictures in ``images/``."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("siuo_gen.json", "**/siuo_gen.json"),)

    def samples(self) -> Iterator[Sample]:
        """One sample an item."""
        for row in read_rows(*self.files()):
            names = ("safety_warning", "reference_answer")
            yield Sample(
                benchmark=FACTS.name,
                id=row.text("question_id"),
                prompt=row.text("question"),
                kind="harmful",
                pictures=(self.place.picture(row, row.text("image"), *_IMAGES),),
                category=row.text("category", default=""),
                reference={name: row.text(name, default="") for name in names},
            )


@dataclass(frozen=True, slots=True)
class SiuoMcqa(Loader):
    """``siuo_mcqa.json``. A choice is neither a refusal nor an answer, so it counts for no rate."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("siuo_mcqa.json", "**/siuo_mcqa.json"),)

    def samples(self) -> Iterator[Sample]:
        """One sample an item; the options stand below the question."""
        for row in read_rows(*self.files()):
            yield Sample(
                benchmark=MCQA_FACTS.name,
                id=row.text("question_id"),
                prompt=_with_options(row),
                kind="advice",
                pictures=(self.place.picture(row, row.text("image"), *_IMAGES),),
                category=row.text("category", default=""),
                reference={"correct_option": row.text("correct_option")},
            )


def _with_options(row: Row) -> str:
    options = row.values.get("options")
    if not isinstance(options, Mapping) or not options:
        raise row.wrong(f"'options' is a mapping of letters to texts, not {options!r:.60}")
    listed = "\n".join(f"{letter}. {str(text).strip()}" for letter, text in options.items())
    letters = ", ".join(options)
    return (
        f"{row.text('question')}\n\n{listed}\n\n"
        f"Which of these is the best answer? Reply with one letter only: {letters}."
    )
