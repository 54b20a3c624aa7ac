"""The seam to a source of seeds, and the raw rows that file formats give."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmguard.synthesis.seeds import Seed


class Source(Protocol):
    """Gives seeds, one after the other, the same in the same order whenever it is asked."""

    @property
    def name(self) -> str:
        """First part of the seeds' ids, and their `Seed.source`."""
        ...

    def count(self) -> int | None:
        """How many seeds there are; ``None`` where telling would take a full read."""
        ...

    def seeds(self) -> Iterator[Seed]:
        """All seeds, read lazily. What cannot be used comes with `Seed.problem`.

        Raises:
            DataError: the source as a whole is not what it was taken for.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a file.

    Attributes:
        number: line or row, counted from 1.
        values: column → value; empty when the row could not be read.
        problem: why it could not.
    """

    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


class Table(Protocol):
    """A file format that has rows and columns."""

    def columns(self) -> tuple[str, ...]:
        """Column names; of a format without a header, those of the first rows."""
        ...

    def count(self) -> int | None:
        """How many rows there are; ``None`` where telling would take a full read."""
        ...

    def rows(self) -> Iterator[Row]:
        """All rows, read lazily."""
        ...
