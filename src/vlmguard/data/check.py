"""Everything that can be wrong with a dataset, found in one pass.

Memory grows by some hundred bytes a record (hashes of ids, families, inputs), not by its content.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from vlmguard.data.contrast import MAX_REASON, MAX_REWRITE
from vlmguard.data.coverage import Coverage, load_requirements
from vlmguard.data.found import Found
from vlmguard.data.pictures import check_picture
from vlmguard.data.reader import is_dataset, read_index, scan
from vlmguard.data.records import TrainingRecord
from vlmguard.data.tally import Tally
from vlmguard.errors import DataError
from vlmguard.rewriting.format import MAX_PROMPT_CHARS, MAX_REASON_CHARS
from vlmguard.rewriting.policy import CATEGORY_NAMES


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something to mend."""

    message: str
    path: Path
    line: int | None = None

    def __str__(self) -> str:
        where = f"{self.path}" if self.line is None else f"{self.path}:{self.line}"
        return f"{where}: {self.message}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"path": str(self.path), "line": self.line, "message": self.message}


@dataclass(slots=True)
class CheckReport:
    """What a check found.

    Attributes:
        problems: in the order of the data, those of the whole set last.
        tally: counts of the readable records.
        coverage: of authored sets.
    """

    problems: list[Problem] = field(default_factory=list)
    tally: Tally = field(default_factory=Tally)
    coverage: Coverage | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the output of ``vlmguard data check --json``."""
        tables = ("carrier", "style", "language") if self.coverage else ()
        return {
            "ok": not self.problems,
            "records": self.tally.records,
            "problems": [problem.to_json() for problem in self.problems],
            "coverage": {
                facet: self.coverage.table(facet).to_json()  # type: ignore[arg-type]
                for facet in tables
                if self.coverage
            },
        }


@cache
def detector_labels() -> frozenset[str]:
    """The labels that the object detector can give."""
    text = files("vlmguard.perception").joinpath("data/imagenet_labels.txt").read_text("utf-8")
    return frozenset(text.splitlines())


def check(
    path: Path, *, pictures: bool = True, on_record: Callable[[], None] = lambda: None
) -> CheckReport:
    """Check a dataset, a data file or a folder of contrast sets.

    Args:
        path: as for `vlmguard.data.scan`.
        pictures: read, hash and decode every picture.
        on_record: called after each record.

    Raises:
        DataError: there is nothing to read, or ``coverage.yaml`` is wrong.
    """
    report = CheckReport()
    checker = _Checker(report, pictures=pictures)
    if is_dataset(path):
        report.problems += _shard_problems(path)
    try:
        for found in scan(path):
            checker.add(found)
            on_record()
    except DataError as error:
        if not is_dataset(path):
            raise
        report.problems.append(Problem(message=_told(error), path=error.path, line=error.line))
    checker.finish(path)
    return report


def _told(error: DataError) -> str:
    """The error's message without its place."""
    where = str(error.path) if error.line is None else f"{error.path}:{error.line}"
    return str(error).removeprefix(f"{where}: ")


def _shard_problems(folder: Path) -> Iterator[Problem]:
    index = read_index(folder)
    listed = {shard.path for shard in index.shards}
    for shard in index.shards:
        path = folder / shard.path
        if not path.is_file():
            yield Problem(message="is listed in dataset.json, but absent", path=path)
            continue
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != shard.sha256:
            yield Problem(message="is not the file that dataset.json lists: hash", path=path)
    for path in sorted((folder / "data").glob("*.parquet")):
        if path.relative_to(folder).as_posix() not in listed:
            yield Problem(message="is not listed in dataset.json", path=path)
    if (total := sum(shard.records for shard in index.shards)) != index.records:
        yield Problem(
            message=f"says {index.records} records, but its shards have {total}",
            path=folder / "dataset.json",
        )


def _key(value: object) -> bytes:
    """Sixteen bytes that stand for a value, whatever its size."""
    dumped = json.dumps(value, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(dumped.encode(), digest_size=16).digest()


def input_key(record: TrainingRecord) -> bytes:
    """Stands for what the rewriter reads: prompt, pictures, evidence, earlier messages."""
    return _key(
        [
            record.prompt,
            [ref.sha256 for ref in record.images],
            [seen.model_dump() for seen in record.evidence],
            [turn.model_dump() for turn in record.earlier],
        ]
    )


@dataclass(slots=True)
class _Family:
    """What is known of a family so far."""

    path: Path
    split: str
    verdicts: set[str] = field(default_factory=set)
    reported: bool = False


class _Checker:
    """Collects problems over a stream of records."""

    def __init__(self, report: CheckReport, *, pictures: bool) -> None:
        self._report = report
        self._pictures = pictures
        self._ids: set[bytes] = set()
        self._seen_pictures: set[bytes] = set()
        self._inputs: dict[bytes, tuple[str, Path, int]] = {}
        self._families: dict[str, _Family] = {}
        self._per_file: Counter[tuple[Path, str]] = Counter()
        self._authored = False

    def add(self, found: Found) -> None:
        record = found.outcome
        if isinstance(record, DataError):
            self._tell(found, _told(record))
            return
        self._report.tally.add(record)
        self._authored = self._authored or found.authored
        if found.authored:
            self._report.coverage = self._report.coverage or Coverage()
            self._report.coverage.add(record)
        for message in self._problems(found, record):
            self._tell(found, message)

    def finish(self, path: Path) -> None:
        """Check what only the whole set shows."""
        if not self._authored:
            return
        for name, family in self._families.items():
            if len(family.verdicts) < 2:
                [only] = family.verdicts
                message = f"family {name!r} has only {only} records; a contrast needs both"
                self._report.problems.append(Problem(message=message, path=family.path))
        for file in dict.fromkeys(path for path, _ in self._per_file):
            risky, safe = self._per_file[file, "risky"], self._per_file[file, "safe"]
            if safe < risky:
                message = f"has {risky} risky and only {safe} harmless records"
                self._report.problems.append(Problem(message=message, path=file))
        requirements = (path if path.is_dir() else path.parent) / "coverage.yaml"
        # A single file is a part of the set: what the whole needs is not asked of it.
        if path.is_dir() and requirements.is_file() and self._report.coverage:
            wanted = load_requirements(requirements)
            for message in self._report.coverage.shortfalls(wanted):
                self._report.problems.append(Problem(message=message, path=requirements))

    def _tell(self, found: Found, message: str) -> None:
        self._report.problems.append(Problem(message=message, path=found.path, line=found.line))

    def _problems(self, found: Found, record: TrainingRecord) -> Iterator[str]:
        if (key := _key(record.id)) in self._ids:
            yield f"the id {record.id!r} stands twice"
        self._ids.add(key)
        yield from self._family_problems(found, record)
        yield from self._input_problems(found, record)
        yield from _length_problems(record, authored=found.authored)
        yield from _evidence_problems(record)
        if record.category is not None and record.category not in CATEGORY_NAMES:
            yield f"category: {record.category!r} is none of {', '.join(CATEGORY_NAMES)}"
        if self._pictures:
            yield from self._picture_problems(found, record)

    def _family_problems(self, found: Found, record: TrainingRecord) -> Iterator[str]:
        name = record.family
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _Family(path=found.path, split=record.split)
        if family.split != record.split and not family.reported:
            family.reported = True
            yield f"family {name!r} is in two splits, {family.split} and {record.split}"
        if found.authored:
            family.verdicts.add(record.verdict)
            self._per_file[found.path, record.verdict] += 1
            if family.path != found.path and not family.reported:
                family.reported = True
                yield f"family {name!r} is also in {family.path.name}; names must be unique"

    def _input_problems(self, found: Found, record: TrainingRecord) -> Iterator[str]:
        verdict, path, line = self._inputs.setdefault(
            input_key(record), (record.verdict, found.path, found.line)
        )
        if (path, line) == (found.path, found.line):
            return
        if verdict != record.verdict:
            yield f"contradicts {path.name}:{line}: the same input, but {verdict} there"
        elif found.authored:
            yield f"repeats the input of {path.name}:{line}"

    def _picture_problems(self, found: Found, record: TrainingRecord) -> Iterator[str]:
        for ref in record.images:
            if (key := _key(ref.path)) in self._seen_pictures:
                continue
            self._seen_pictures.add(key)
            try:
                check_picture(found.root, ref)
            except DataError as error:
                yield str(error)


def _length_problems(record: TrainingRecord, *, authored: bool) -> Iterator[str]:
    longest = MAX_REASON if authored else MAX_REASON_CHARS
    for name in ("textual", "visual", "multimodal"):
        text: str | None = getattr(record, name)
        if text is not None and not 0 < len(text) <= longest:
            yield f"{name}: {len(text)} characters; 1 to {longest} are allowed"
    longest = MAX_REWRITE if authored else MAX_PROMPT_CHARS
    if record.rewrite is not None and not 20 <= len(record.rewrite) <= longest:
        yield f"rewrite: {len(record.rewrite)} characters; 20 to {longest} are allowed"


def _evidence_problems(record: TrainingRecord) -> Iterator[str]:
    if record.images and record.evidence and len(record.images) != len(record.evidence):
        yield f"{len(record.evidence)} pieces of evidence for {len(record.images)} pictures"
    for number, seen in enumerate(record.evidence):
        for label, _ in seen.objects:
            if label not in detector_labels():
                told = f"{label!r} is no label of the object detector"
                yield f"evidence.{number}: {told}{_hint(label)}"


@cache
def _hint(label: str) -> str:
    """Labels that may have been meant: those with the word in them, then similar spellings."""
    known = sorted(detector_labels())
    near = [name for name in known if label.casefold() in re.split(r"\W+", name.casefold())]
    near += [name for name in get_close_matches(label, known, n=3, cutoff=0.6) if name not in near]
    return f"; near it are {', '.join(near[:3])}" if near else ""
