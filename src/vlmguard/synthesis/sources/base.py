"""The seam to a source of seeds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

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
