"""How far a run is; written by the run, read by whoever shows it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

Phase = Literal["answering", "judging"]


@dataclass(slots=True)
class Tally:
    """Counts of one contender's answers, or of one judge's judgements.

    Attributes:
        total: to be had.
        stored: there from earlier runs.
        done: made by this run, failures included.
        failed: without a result, earlier ones included.
        empty: empty answers, earlier ones included; ``0`` when judging.
        unscored: judgements without a score; ``0`` when answering.
    """

    total: int = 0
    stored: int = 0
    done: int = 0
    failed: int = 0
    empty: int = 0
    unscored: int = 0

    @property
    def finished(self) -> int:
        """Stored and done."""
        return self.stored + self.done


@dataclass(slots=True)
class Progress:
    """The tallies of the phase under way.

    Attributes:
        phase: what is being done.
        tallies: (target, defence) or (judge, "") → counts.
        stopping: the run was asked to end.
    """

    phase: Phase = "answering"
    tallies: dict[tuple[str, str], Tally] = field(default_factory=dict)
    stopping: bool = False
    _started: float = field(default_factory=time.monotonic)

    def begin(self, phase: Phase) -> None:
        """Count anew."""
        self.phase = phase
        self.tallies = {}
        self._started = time.monotonic()

    def tally(self, first: str, second: str = "") -> Tally:
        """The counts of a contender or judge."""
        return self.tallies.setdefault((first, second), Tally())

    @property
    def total(self) -> int:
        """Results to be had."""
        return sum(tally.total for tally in self.tallies.values())

    @property
    def finished(self) -> int:
        """Results that are there."""
        return sum(tally.finished for tally in self.tallies.values())

    @property
    def done(self) -> int:
        """Results of this run."""
        return sum(tally.done for tally in self.tallies.values())

    def per_second(self) -> float:
        """Results of this run a second."""
        return self.done / max(time.monotonic() - self._started, 1e-9)

    def seconds_left(self) -> float | None:
        """At the pace so far; ``None`` before there is one."""
        return (self.total - self.finished) / self.per_second() if self.done else None
