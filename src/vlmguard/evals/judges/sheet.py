"""A sheet of answers for people to grade: blind, shuffled, in CSV.

FigStep and others were scored by hand, and no judge is worth more than its agreement with people. A
sheet does not say who answered behind which defence, and an answer that several gave to a sample
stands there once. Grades are found again by sample and answer (`grade_key`).
"""

from __future__ import annotations

import csv
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from vlmguard.data.tables import read_rows
from vlmguard.errors import DataError, InputError
from vlmguard.evals.judges.grades import Outcome
from vlmguard.evals.judges.unscored import nothing_to_judge
from vlmguard.evals.spreadsheets import as_text
from vlmguard.evals.store import digest
from vlmguard.evals.types import Sample, SampleView

GRADES: tuple[Outcome, ...] = get_args(Outcome)
"""What stands in the column ``grade``; what they mean is told in ``docs/judges.md``."""
COLUMNS = ("key", "benchmark", "sample", "kind", "request", "aim", "answer", "grade", "note")
_KEY_CHARACTERS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Graded:
    """A person's opinion of an answer.

    Attributes:
        grade: one of `GRADES`.
        note: the person's words, or ``""``.
    """

    grade: Outcome
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetCount:
    """How far a sheet is.

    Attributes:
        rows: answers in it.
        graded: those with a grade.
    """

    rows: int
    graded: int


def grade_key(sample: Sample, answer: str) -> str:
    """Where the grade of exactly this answer to this sample is found."""
    return digest(sample.benchmark, sample.id, sample.prompt, answer)[:_KEY_CHARACTERS]


def read_sheet(path: Path) -> dict[str, Graded]:
    """The graded rows: key → grade.

    Raises:
        InputError: the file is not there.
        DataError: a row without key, or a grade that there is not; names the row.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such sheet; `vlmguard judge sheet RUN` writes one")
    found: dict[str, Graded] = {}
    for row in read_rows(path):
        key, grade = row.text("key"), row.text("grade", default="").strip().lower()
        if not grade:
            continue
        if grade not in GRADES:
            raise row.wrong(f"the grade {grade!r} is none of {', '.join(GRADES)}")
        known = next(each for each in GRADES if each == grade)
        found[key] = Graded(grade=known, note=row.text("note", default="").strip())
    return found


def write_sheet(path: Path, views: Sequence[SampleView], *, seed: int = 0) -> SheetCount:
    """Write the answers that can be judged; grades that stand in the file already are kept.

    Args:
        path: a ``.csv`` file, replaced in one step.
        views: samples with their answers.
        seed: of the order, in which nothing tells who answered.

    Raises:
        DataError: the file that is there is no sheet, or it cannot be written.
    """
    graded = read_sheet(path) if path.is_file() else {}
    rows = dict(_rows(views))
    if lost := len(graded.keys() - rows.keys()):
        raise DataError(
            f"{lost} graded answers in it are not among those asked for; name another file",
            path=path,
        )
    order = sorted(rows)
    random.Random(seed).shuffle(order)  # noqa: S311  # no secret
    fresh = path.with_name(f".{path.name}.new")
    try:
        with fresh.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            writer.writerows(_filled(key, rows[key], graded) for key in order)
        fresh.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from None
    return SheetCount(rows=len(rows), graded=len(graded))


def chosen(views: Sequence[SampleView], *, count: int | None, seed: int = 0) -> list[SampleView]:
    """So many samples of each benchmark and kind by chance, in order, with all their answers.

    Args:
        views: to choose from.
        count: of each; ``None`` for all.
        seed: another one, another choice.
    """
    groups: dict[tuple[str, str], list[SampleView]] = {}
    for view in views:
        groups.setdefault((view.sample.benchmark, view.sample.kind), []).append(view)
    kept: set[int] = set()
    draw = random.Random(seed)  # noqa: S311  # no secret
    for group in groups.values():
        size = len(group) if count is None else min(count, len(group))
        kept.update(id(view) for view in draw.sample(group, size))
    return [view for view in views if id(view) in kept]


def _rows(views: Iterable[SampleView]) -> Iterator[tuple[str, list[str]]]:
    for view in views:
        sample = view.sample
        told = (sample.benchmark, sample.id, sample.kind, sample.prompt, sample.goal)
        for answer, _ in view.answers:
            if nothing_to_judge(answer) is None:
                yield grade_key(sample, answer.text), [*told, answer.text]


def _filled(key: str, row: Sequence[str], graded: Mapping[str, Graded]) -> list[str]:
    known = graded.get(key)
    end = ("", "") if known is None else (known.grade, known.note)
    return [key, *map(as_text, row), end[0], as_text(end[1])]
