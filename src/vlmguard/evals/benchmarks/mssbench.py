"""MSSBench (eric-ai-lab/MSSBench), chat: one question, safe before one picture and unsafe before
another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.data.tables import Row, read_json
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.types import Kind, Sample

FACTS = Facts(
    name="mssbench",
    title="MSSBench, chat: safe and unsafe situations",
    kinds="harmful, harmless",
    scored="safe answered, unsafe not: mean (judge)",
    counts={"safe_situation": None, "unsafe_situation": None},
    folders=("mssbench",),
    source="https://github.com/eric-ai-lab/MSSBench",
    licence="see its page",
    get="Download the dataset kzhou35/mssbench (combined.json and the folder chat)",
    hub="kzhou35/mssbench",
)
_SITUATIONS: Mapping[str, Kind] = {"safe": "harmless", "unsafe": "harmful"}


@dataclass(frozen=True, slots=True)
class MSSBench(Loader):
    """``combined.json``; pictures in ``chat/``. The embodied tasks are not read."""

    def files(self) -> Sequence[Path]:
        """The one file."""
        return (self.place.find("combined.json", "**/combined.json"),)

    def samples(self) -> Iterator[Sample]:
        """Two samples a question, the safe situation first."""
        path = self.files()[0]
        chat = _part(path, "chat")
        for number, item in enumerate(chat, 1):
            if not isinstance(item, Mapping):
                raise DataError("an entry of 'chat' is not an object", path=path, line=number)
            row = Row(path=path, number=number, values=item)
            queries = item.get("queries")
            if not isinstance(queries, list) or not queries:
                raise row.wrong(f"'queries' is a list of questions, not {queries!r:.60}")
            for which, query in enumerate(queries, 1):
                yield from self._pair(row, which, str(query))

    def notes(self) -> Sequence[str]:
        """What is left out."""
        found = read_json(self.files()[0])
        embodied = found.get("embodied") if isinstance(found, dict) else None
        return (f"{len(embodied)} embodied tasks are not read",) if embodied else ()

    def _pair(self, row: Row, which: int, query: str) -> Iterator[Sample]:
        for situation, kind in _SITUATIONS.items():
            name = row.text(f"{situation}_image_path")
            yield Sample(
                benchmark=FACTS.name,
                id=f"{row.number}/{which}/{situation}",
                prompt=query,
                kind=kind,
                pictures=(self.place.picture(row, name, "chat", "images"),),
                category=row.text("Type", "type", "category", default=""),
                subset=f"{situation}_situation",
                reference={"intent": row.text("intent", default="")},
            )


def _part(path: Path, name: str) -> list[Any]:
    found = read_json(path)
    part = found.get(name) if isinstance(found, dict) else None
    if not isinstance(part, list):
        raise DataError(f"has no list {name!r}", path=path)
    return part
