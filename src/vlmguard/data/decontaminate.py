"""Where a dataset overlaps with benchmarks that somebody means to measure with.

All string fields of the benchmark files are compared with every prompt, earlier message, text in a
picture and rewrite. A short text can be the same by chance, so each way of matching has a least
length, counted in words.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vlmguard.data.found import Found
from vlmguard.data.matching import NearIndex, grams, words
from vlmguard.data.records import TrainingRecord
from vlmguard.data.tables import read_rows
from vlmguard.errors import DataError

SUFFIXES = (".json", ".jsonl", ".csv", ".parquet")
_RUN = 8
_LEAST_WORDS = 4


class OverlapKind(StrEnum):
    """How a text was found in a benchmark."""

    EXACT = "exact"
    CONTAINED = "contained"
    SIMILAR = "similar"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """A text of the dataset that is in a benchmark.

    Attributes:
        kind: the strongest that applies.
        score: 1 when exact; share of the shorter text's 8-grams; or Jaccard similarity.
        id: of the record.
        part: ``"prompt"``, ``"earlier 1"``, ``"image 1 text"`` or ``"rewrite"``.
        text: of the record.
        benchmark: file and place in it, e.g. ``"test.json:[3].question"``.
        benchmark_text: of the benchmark.
    """

    kind: OverlapKind
    score: float
    id: str
    part: str
    text: str
    benchmark: str
    benchmark_text: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "score": round(self.score, 3),
            "id": self.id,
            "part": self.part,
            "text": self.text,
            "benchmark": self.benchmark,
            "benchmark_text": self.benchmark_text,
        }


@dataclass(slots=True)
class OverlapReport:
    """What was compared and found."""

    records: int = 0
    files: int = 0
    strings: int = 0
    overlaps: list[Overlap] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the output of ``vlmguard data decontaminate --json``."""
        return {
            "records": self.records,
            "benchmark_files": self.files,
            "benchmark_strings": self.strings,
            "overlaps": [found.to_json() for found in self.overlaps],
        }


def find_overlaps(
    records: Iterable[Found],
    benchmarks: Iterable[Path],
    *,
    containment: float = 0.5,
    similarity: float = 0.6,
    on_record: Callable[[], None] = lambda: None,
) -> OverlapReport:
    """Compare records with benchmark files. The benchmarks are held in memory, the records not.

    Args:
        records: from `vlmguard.data.scan`.
        benchmarks: files (.json, .jsonl, .csv, .parquet) and folders of them, at any depth.
        containment: least share of the shorter text's 8-word runs that both have, 0..1.
        similarity: least Jaccard similarity of word 3-grams, 0..1.
        on_record: called after each record.

    Raises:
        DataError: a wrong record, or a benchmark that cannot be read or holds no text.
        MissingExtra: datasketch, or pyarrow for Parquet, is not installed.
    """
    index = _Index(containment, similarity)
    report = OverlapReport()
    for root in benchmarks:
        for path in _benchmark_files(root):
            report.files += 1
            name = path.relative_to(root) if path != root else Path(path.name)
            for place, text in _strings(path):
                report.strings += index.add(f"{name}:{place}", text)
    for found in records:
        if isinstance(found.outcome, DataError):
            raise found.outcome
        report.records += 1
        for part, text in _parts(found.outcome):
            if overlap := index.find(found.outcome.id, part, text):
                report.overlaps.append(overlap)
        on_record()
    return report


def _parts(record: TrainingRecord) -> Iterator[tuple[str, str]]:
    yield "prompt", record.prompt
    for number, turn in enumerate(record.earlier, 1):
        yield f"earlier {number}", turn.text
    for number, seen in enumerate(record.evidence, 1):
        yield f"image {number} text", seen.words()
    if record.rewrite is not None:
        yield "rewrite", record.rewrite


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    place: str
    text: str
    runs: frozenset[int]


class _Index:
    """The benchmarks' texts, each distinct one once."""

    def __init__(self, containment: float, similarity: float) -> None:
        self._containment = containment
        self._entries: list[_Entry] = []
        self._exact: dict[tuple[str, ...], int] = {}
        self._runs: defaultdict[int, list[int]] = defaultdict(list)
        self._near = NearIndex(similarity)

    def add(self, place: str, text: str) -> bool:
        """Whether the text is long enough and new."""
        sequence = words(text)
        if len(sequence) < _LEAST_WORDS or tuple(sequence) in self._exact:
            return False
        number = len(self._entries)
        runs = grams(sequence, _RUN) if len(sequence) >= _RUN else frozenset()
        self._entries.append(_Entry(place=place, text=text, runs=runs))
        self._exact[tuple(sequence)] = number
        for run in runs:
            self._runs[run].append(number)
        self._near.add(number, grams(sequence, 3))
        return True

    def find(self, record: str, part: str, text: str) -> Overlap | None:
        """The strongest overlap of a text."""
        sequence = words(text)
        if len(sequence) < _LEAST_WORDS:
            return None
        found = self._found(sequence)
        if found is None:
            return None
        kind, score, entry = found
        return Overlap(
            kind=kind,
            score=score,
            id=record,
            part=part,
            text=text,
            benchmark=entry.place,
            benchmark_text=entry.text,
        )

    def _found(self, sequence: list[str]) -> tuple[OverlapKind, float, _Entry] | None:
        if (number := self._exact.get(tuple(sequence))) is not None:
            return OverlapKind.EXACT, 1.0, self._entries[number]
        if len(sequence) >= _RUN:
            runs = grams(sequence, _RUN)
            shared = Counter(n for run in runs for n in self._runs.get(run, ()))
            for number, count in shared.most_common(1):
                entry = self._entries[number]
                score = count / min(len(runs), len(entry.runs))
                if score >= self._containment:
                    return OverlapKind.CONTAINED, score, entry
        for number, score in self._near.similar(grams(sequence, 3)):
            return OverlapKind.SIMILAR, score, self._entries[number]
        return None


def _benchmark_files(root: Path) -> list[Path]:
    if root.is_file():
        if root.suffix.lower() not in SUFFIXES:
            raise DataError(f"is no benchmark file; {', '.join(SUFFIXES)} are read", path=root)
        return [root]
    if not root.is_dir():
        raise DataError("does not exist", path=root)
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"holds no {', '.join(SUFFIXES)} files", path=root)
    return files


def _strings(path: Path) -> Iterator[tuple[str, str]]:
    """Every string in a file, with its place."""
    suffix = path.suffix.lower()
    try:
        if suffix == ".json":
            yield from _walk(json.loads(path.read_text("utf-8-sig")), "")
        elif suffix == ".jsonl":
            with path.open(encoding="utf-8-sig") as lines:
                for number, line in enumerate(lines, 1):
                    if line.strip():
                        yield from _walk(json.loads(line), f"{number}")
        else:
            for row in read_rows(path):
                yield from _walk(row.values, f"row {row.number}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _walk(value: object, place: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _walk(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _walk(inner, f"{place}[{number}]")
