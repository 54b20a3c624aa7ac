"""What reading a line of a data file gave."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from vlmguard.data.records import TrainingRecord
from vlmguard.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A record, or why there is none, with its place.

    Attributes:
        outcome: a wrong line does not end the reading; whoever reads decides.
        path: the file.
        line: counted from 1; the row, in Parquet files.
        root: the folder that the record's picture paths are relative to.
        authored: the record came in the contrast sets' format.
    """

    outcome: TrainingRecord | DataError
    path: Path
    line: int
    root: Path
    authored: bool = False


def problem_of(error: ValidationError) -> str:
    """The first problem that pydantic found: the field, what is wrong, and the value."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    told = problem["msg"].removeprefix("Value error, ")
    if not place:
        return told
    if problem["type"] in {"missing", "extra_forbidden"}:
        return f"{place}: {told.lower()}"
    value = repr(problem["input"])
    return f"{place}: {told}, not {value[:80]}{'…' if len(value) > 80 else ''}"
