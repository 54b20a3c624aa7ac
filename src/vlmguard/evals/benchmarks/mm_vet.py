"""MM-Vet (yuweihao/MM-Vet): what a model can do; shows what a defence costs in ability."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.hub import HubTable
from vlmguard.data.tables import Row, read_json, read_rows
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks.base import Facts, Loader, stored_picture
from vlmguard.evals.types import Picture, Sample

FACTS = Facts(
    name="mm-vet",
    title="MM-Vet: what a model can do",
    kinds="harmless",
    scored="0–1 against the reference (few-shot judge)",
    counts={"": 218},
    folders=("mm_vet", "MM-Vet"),
    source="https://github.com/yuweihao/MM-Vet",
    licence="CC BY-NC 4.0",
    get="Download mm-vet.zip from the releases of yuweihao/MM-Vet and unpack it",
    hub="whyu/mm-vet",
    hub_rows=True,
)
_OFFICIAL = ("mm-vet.json", "**/mm-vet.json")
_QUESTIONS = ("questions.jsonl", "llava-mm-vet.jsonl", "**/llava-mm-vet.jsonl")
_IMAGES = ("images", "mm-vet/images", "imgs")


@dataclass(frozen=True, slots=True)
class MMVet(Loader):
    """``mm-vet.json``, or a list of questions without reference answers as LLaVA has it."""

    def files(self) -> Sequence[Path]:
        """The one file; none of a dataset on the hub."""
        if self.place.hub is not None:
            return ()
        return (self.place.find(*_OFFICIAL, *_QUESTIONS),)

    def samples(self) -> Iterator[Sample]:
        """One sample a question."""
        if self.place.hub is not None:
            for row in HubTable(dataset=self.place.hub).rows():
                name = row.text("id", "question_id", default=str(row.number - 1))
                yield self._sample(row, f"v1_{name.removeprefix('v1_')}")
            return
        path = self.files()[0]
        if path.suffix == ".jsonl":
            for row in read_rows(path):
                yield self._sample(row, f"v1_{row.text('question_id')}")
            return
        yield from self._official(path)

    def _official(self, path: Path) -> Iterator[Sample]:
        questions = read_json(path)
        if not isinstance(questions, Mapping):
            raise DataError("is not an object of questions by id", path=path)
        for number, (name, item) in enumerate(questions.items(), 1):
            values = item if isinstance(item, Mapping) else {}
            yield self._sample(Row(path=path, number=number, values=values), name)

    def notes(self) -> Sequence[str]:
        """Whether the answers can be scored."""
        if self.place.hub is None and self.files()[0].suffix == ".jsonl":
            return ("there are no reference answers, so answers cannot be scored: get mm-vet.json",)
        return ()

    def _sample(self, row: Row, name: str) -> Sample:
        answer = row.text("answer", default="")
        capability = row.values.get("capability")
        capabilities = capability if isinstance(capability, list) else []
        return Sample(
            benchmark=FACTS.name,
            id=name,
            prompt=row.text("question", "text"),
            kind="harmless",
            pictures=(self._picture(row),),
            category="+".join(sorted(map(str, capabilities))) or row.text("category", default=""),
            reference={"reference_answer": answer} if answer else {},
        )

    def _picture(self, row: Row) -> Picture:
        stored = stored_picture(row, row.values.get("image"))
        if stored is not None:
            return stored
        return self.place.picture(row, row.text("imagename", "image"), *_IMAGES)
