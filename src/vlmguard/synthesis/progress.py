"""Where a run is: counted here, shown by whoever reads it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from vlmguard.synthesis.outcomes import KINDS, STAGES, Kind, Outcome, Stage
from vlmguard.synthesis.rows import Done, OutcomeCount
from vlmguard.types import Usage

_WINDOW_S = 60.0  # the rate is that of the last minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """What hosted models cost.

    Attributes:
        prompt, completion: per million tokens, in any currency.
    """

    prompt: float = 0.0
    completion: float = 0.0

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Of that many tokens."""
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


def is_hosted(model: str) -> bool:
    """Whether calls of this spec cost money: it names a server, not a file."""
    return model.startswith("openai:")


@dataclass(slots=True)
class StageProgress:
    """One stage's counts.

    Attributes:
        done: seeds that got through.
        ended: seeds that ended here without a record.
        calls, stored: answers by the model, and from the store, in this run.
        prompt_tokens, completion_tokens: of the calls of this run.
    """

    done: int = 0
    ended: int = 0
    calls: int = 0
    stored: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(slots=True)
class Progress:
    """All counts of a run.

    Attributes:
        total: seeds in the sources; ``None`` while that is not known.
        resumed: seeds that an earlier run finished.
        kinds: outcomes, earlier runs' included.
        stages: counts by stage, earlier runs' outcomes included.
        hosted_prompt_tokens, hosted_completion_tokens: what is paid for in this run.
        failure: what the last seed that failed met.
        asking: calls that are with a model now.
        stopping: no new calls are made.
        abandoned: calls that the end of the run did not wait for; the next run makes them again.
    """

    total: int | None = None
    resumed: int = 0
    kinds: dict[Kind, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    stages: dict[Stage, StageProgress] = field(
        default_factory=lambda: {stage: StageProgress() for stage in STAGES}
    )
    hosted_prompt_tokens: int = 0
    hosted_completion_tokens: int = 0
    failure: str | None = None
    asking: int = 0
    stopping: bool = False
    abandoned: int = 0
    started: float = field(default_factory=time.monotonic)
    _recent: deque[float] = field(default_factory=deque)

    @property
    def finished(self) -> int:
        """Seeds with an outcome."""
        return sum(self.kinds.values())

    def asked(self) -> None:
        """Count a call that goes to a model."""
        self.asking += 1

    def failed(self) -> None:
        """A call that went to a model ended without an answer."""
        self.asking -= 1

    def called(self, stage: Stage, model: str, usage: Usage, *, stored: bool) -> None:
        """Count an answer."""
        counts = self.stages[stage]
        if stored:
            counts.stored += 1
            return
        self.asking -= 1
        counts.calls += 1
        counts.prompt_tokens += usage.prompt_tokens
        counts.completion_tokens += usage.completion_tokens
        if is_hosted(model):
            self.hosted_prompt_tokens += usage.prompt_tokens
            self.hosted_completion_tokens += usage.completion_tokens

    def ended(self, outcome: Outcome) -> None:
        """Count an outcome of this run."""
        self._count(outcome.kind, outcome.stage, outcome.passed, 1)
        if outcome.kind == "error":
            self.failure = outcome.reason
        now = time.monotonic()
        self._recent.append(now)
        while self._recent[0] < now - _WINDOW_S:
            self._recent.popleft()

    def resume(self, done: Done) -> None:
        """Count an outcome of an earlier run."""
        self._count(done.kind, done.stage, done.passed, 1)
        self.resumed += 1

    def add(self, counts: Iterable[OutcomeCount]) -> None:
        """Count outcomes that are stored, for a look from outside."""
        for found in counts:
            self._count(found.kind, found.stage, found.passed, found.count)

    def _count(self, kind: Kind, stage: Stage, passed: Iterable[Stage], count: int) -> None:
        self.kinds[kind] += count
        for name in passed:
            self.stages[name].done += count
        if kind not in {"accepted", "benign"}:
            self.stages[stage].ended += count

    def per_second(self) -> float:
        """Seeds per second, of the last minute."""
        if not self._recent:
            return 0.0
        since = max(self.started, time.monotonic() - _WINDOW_S)
        return len(self._recent) / max(time.monotonic() - since, 1e-3)

    def seconds_left(self) -> float | None:
        """At the present rate; ``None`` when it cannot be told."""
        rate = self.per_second()
        if self.total is None or rate == 0:
            return None
        return max(0, self.total - self.finished) / rate

    def cost(self, prices: Prices) -> float:
        """Of this run."""
        return prices.cost(self.hosted_prompt_tokens, self.hosted_completion_tokens)
