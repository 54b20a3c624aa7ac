"""What one defended answer costs, written down while it comes about."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from vlmguard.defences.base import sighted_target
from vlmguard.defences.scoring import Scorer
from vlmguard.engines import Engine, Sampling
from vlmguard.perception import Perceiver
from vlmguard.types import Chat, Completion, Reply, Trace, Usage


class Stopwatch:
    """Runs from when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def elapsed_ms(self) -> float:
        """Milliseconds since."""
        return (time.perf_counter() - self._start) * 1000


class Ledger:
    """The books of one request: what the target costs alone, and what the defence adds.

    Args:
        chat: the request.
        target: that answers it.
        perceiver: describes pictures to a target that cannot see.

    Attributes:
        target: the engine to ask: the target, or one that reads descriptions for it.
    """

    def __init__(self, chat: Chat, target: Engine, perceiver: Perceiver | None) -> None:
        self.target, notes = sighted_target(target, perceiver) if chat.images else (target, ())
        self._notes = list(notes)
        self._timings_ms: dict[str, float] = {}
        self._usage = Usage()
        self._calls = 0
        self._defence_usage = Usage()

    async def first(self, chat: Chat, sampling: Sampling) -> Completion:
        """The call that the target would have had without the defence.

        Raises:
            EngineError: the target failed.
        """
        watch = Stopwatch()
        completion = await self.target.generate(chat, sampling)
        self.count_first(completion.usage, watch.elapsed_ms())
        return completion

    async def call(
        self, chat: Chat, sampling: Sampling, *, engine: Engine | None = None
    ) -> Completion:
        """A call that the defence adds, of the target or of another engine.

        Raises:
            EngineError: it failed.
        """
        completion = await (engine or self.target).generate(chat, sampling)
        self.count(completion.usage)
        return completion

    async def score(self, scorer: Scorer, chat: Chat, answer: str) -> float:
        """A scorer's opinion of an answer.

        Raises:
            VLMGuardError: it has none.
        """
        score = await scorer.score(chat, answer)
        self.count(score.usage)
        return score.value

    def count_first(self, usage: Usage, milliseconds: float) -> None:
        """A call that stands for the one that the target would have had."""
        self._usage = usage
        self.spent("target", milliseconds)

    def count(self, usage: Usage | None = None) -> None:
        """One more call of the defence."""
        self._calls += 1
        self._defence_usage += usage or Usage()

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Add the time spent within to a step."""
        watch = Stopwatch()
        try:
            yield
        finally:
            self.spent(step, watch.elapsed_ms())

    def spent(self, step: str, milliseconds: float) -> None:
        """Add to the time of a step."""
        self._timings_ms[step] = self._timings_ms.get(step, 0.0) + milliseconds

    def note(self, text: str) -> None:
        """Something that a reader of the trace should know."""
        self._notes.append(text)

    def reply(self, completion: Completion, sent: Chat | None) -> Reply:
        """Close the books.

        Args:
            completion: the answer to give.
            sent: the conversation whose answer it is; ``None`` when it is no model's.
        """
        trace = Trace(
            sent=sent,
            timings_ms=dict(self._timings_ms),
            usage=self._usage,
            calls=self._calls,
            defence_usage=self._defence_usage,
            target=self.target.spec,
            notes=tuple(self._notes),
        )
        return Reply(completion=completion, trace=trace)
