"""A run: every sample to every contender, every answer to every judge; each once.

Answers and judgements are kept in a `RunStore` as they come, so a killed run goes on where it was
and judging again generates nothing again. Inspect is the other way to run the same parts
(`vlmguard.evals.inspect_tasks`); why this one is not built on its loop is written in
docs/decisions/0005-evaluation-on-inspect.md.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TypeVar

from vlmguard.engines import Sampling
from vlmguard.errors import EngineError, RunStopped, VLMGuardError
from vlmguard.evals.answering import (
    ENDS_THE_RUN,
    Contender,
    Entry,
    Outcome,
    ask,
    failed,
    may_pass,
)
from vlmguard.evals.judges.unscored import nothing_to_judge
from vlmguard.evals.progress import Progress
from vlmguard.evals.store import RunStore, StoredAnswer, StoredJudgement, judgement_key
from vlmguard.evals.types import Judge, Judgement, Sample
from vlmguard.types import Chat

Job = TypeVar("Job")

_FAILURES_IN_A_ROW = 16
"""So many of one target or judge end the run: the model is gone, and every sample would fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How to run.

    Attributes:
        sampling: of the targets' answers.
        concurrency: samples (then: answers to judge) at once.
        repeats: answers to each sample, by each contender.
        retry_failed: ask again also where a failure is about the sample itself.
    """

    sampling: Sampling
    concurrency: int = 8
    repeats: int = 1
    retry_failed: bool = False


class _Loaded:
    """A sample's conversation: its pictures are read once for all who are asked."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self._chat: asyncio.Future[Chat] | None = None

    async def chat(self) -> Chat:
        if not self.sample.pictures:
            return self.sample.chat()
        if self._chat is None:
            self._chat = asyncio.ensure_future(asyncio.to_thread(self.sample.chat))
        return await asyncio.shield(self._chat)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """A sample for a contender, under the key of its answer."""

    loaded: _Loaded
    contender: Contender
    repeat: int
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A stored answer for a judge, under the key of its judgement."""

    sample: Sample
    stored: StoredAnswer
    judge: Judge
    key: str


@dataclass(slots=True)
class _Streaks:
    """Failures in a row, by model."""

    limit: int
    _counts: dict[str, int] = field(default_factory=dict)

    def good(self, who: str) -> None:
        self._counts[who] = 0

    def bad(self, who: str, error: str) -> None:
        self._counts[who] = self._counts.get(who, 0) + 1
        if self._counts[who] >= self.limit:
            raise RunStopped(
                f"{who} failed {self.limit} times in a row, so the run ends here. The last time: "
                f"{error}. What is done is stored: run the same command again to go on."
            )


class Run:
    """Asks and judges what the store does not have yet.

    Args:
        samples: of all benchmarks, in order.
        store: where results are kept.
        settings: how to run.

    Attributes:
        progress: how far it is.
    """

    def __init__(
        self, samples: Sequence[Sample], *, store: RunStore, settings: RunSettings
    ) -> None:
        self._samples = samples
        self._store = store
        self._settings = settings
        self._workers: list[asyncio.Task[None]] = []
        self._streaks = _Streaks(limit=max(_FAILURES_IN_A_ROW, settings.concurrency))
        self.progress = Progress()

    async def answer(self, contenders: Sequence[Contender]) -> bool:
        """Ask every contender what it was not asked yet.

        Returns:
            Whether all is done; ``False`` after `stop`.

        Raises:
            RunStopped: a model fails over and over.
            ConfigError, ModelStoreError: no sample could be answered.
            StoreError: results cannot be kept.
        """
        self.progress.begin("answering")
        waiting = sum(1 for _ in self._questions(contenders, counting=True))
        return await self._spread(self._questions(contenders), self._answer, waiting)

    async def judge(self, entries: Sequence[Entry], judges: Sequence[Judge]) -> bool:
        """Have every judge score what it did not score yet. Returns and raises as `answer`."""
        self.progress.begin("judging")
        waiting = sum(1 for _ in self._cases(entries, judges, counting=True))
        return await self._spread(self._cases(entries, judges), self._judge, waiting)

    def stop(self) -> None:
        """Start nothing new; called twice, give up what is on its way as well."""
        if self.progress.stopping:
            for worker in self._workers:
                worker.cancel()
        self.progress.stopping = True

    async def _spread(
        self, jobs: Iterator[Job], work: Callable[[Job], Awaitable[None]], waiting: int
    ) -> bool:
        """Work through the jobs, ``concurrency`` at a time; one error ends all."""

        async def worker() -> None:
            for job in jobs:  # all workers take from one iterator
                await work(job)
                if self.progress.stopping:
                    return

        if self.progress.stopping:
            return False
        count = min(self._settings.concurrency, waiting)
        self._workers = [asyncio.create_task(worker()) for _ in range(count)]
        try:
            await asyncio.gather(*self._workers)
        except asyncio.CancelledError:
            if not self.progress.stopping:
                raise
        finally:
            for task in self._workers:
                task.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)
        return not self.progress.stopping

    # --- Answers -----------------------------------------------------------------------------

    def _questions(
        self, contenders: Sequence[Contender], *, counting: bool = False
    ) -> Iterator[_Question]:
        """What is to be asked, target by target; counted in `progress` on the first walk."""
        for target in dict.fromkeys(contender.entry.target for contender in contenders):
            behind = [each for each in contenders if each.entry.target == target]
            for sample in self._samples:
                loaded = _Loaded(sample)
                for contender, repeat in product(behind, range(self._settings.repeats)):
                    key = contender.entry.key(sample, self._settings.sampling, repeat)
                    known = self._store.answers.get(key)
                    stands = known is not None and not self._again(known)
                    if counting:
                        self._count(contender.entry, known if stands else None)
                    if not stands:
                        yield _Question(loaded=loaded, contender=contender, repeat=repeat, key=key)

    def _again(self, known: StoredAnswer) -> bool:
        return known.retryable or (self._settings.retry_failed and known.answer.error is not None)

    def _count(self, entry: Entry, known: StoredAnswer | None) -> None:
        tally = self.progress.tally(entry.target, entry.defence)
        tally.total += 1
        if known is not None:
            tally.stored += 1
            tally.failed += known.answer.error is not None
            tally.empty += known.answer.empty

    async def _answer(self, question: _Question) -> None:
        contender, sample = question.contender, question.loaded.sample
        repeat = question.repeat
        start = time.perf_counter()
        pictures: tuple[str, ...] = ()
        try:
            chat = await question.loaded.chat()
        except VLMGuardError as error:
            # A picture can be put in its place: a later run tries again.
            outcome = failed(
                contender.entry, sample, error, retryable=True, since=start, repeat=repeat
            )
        else:
            pictures = tuple(image.sha256 for image in chat.images)
            outcome = await ask(contender, sample, chat, self._settings.sampling, repeat=repeat)
        stored = StoredAnswer(
            key=question.key,
            pictures=pictures,
            retryable=outcome.retryable,
            answer=outcome.answer,
        )
        self._store.keep_answer(stored)
        self._note(contender.entry, outcome)

    def _note(self, entry: Entry, outcome: Outcome) -> None:
        answer = outcome.answer
        tally = self.progress.tally(entry.target, entry.defence)
        tally.done += 1
        tally.failed += answer.error is not None
        tally.empty += answer.empty
        who = f"{entry.target} behind {entry.defence}"
        if answer.error is None:
            self._streaks.good(who)
        elif outcome.retryable:
            self._streaks.bad(who, answer.error)

    # --- Judgements --------------------------------------------------------------------------

    def _cases(
        self, entries: Sequence[Entry], judges: Sequence[Judge], *, counting: bool = False
    ) -> Iterator[_Case]:
        """What is to be judged. Failed and empty answers are no matter for a judge."""
        answered = range(self._settings.repeats)
        for judge in judges:
            for sample in self._samples:
                for entry, repeat in product(entries, answered):
                    key = entry.key(sample, self._settings.sampling, repeat)
                    stored = self._store.answers.get(key)
                    if stored is None or nothing_to_judge(stored.answer) is not None:
                        continue
                    key = judgement_key(stored, judge.name)
                    known = self._store.judgements.get(key)
                    stands = known is not None and not known.retryable
                    if counting:
                        tally = self.progress.tally(judge.name)
                        tally.total += 1
                        tally.stored += stands
                        tally.unscored += stands and _is_unscored(known)
                    if not stands:
                        yield _Case(sample=sample, stored=stored, judge=judge, key=key)

    async def _judge(self, case: _Case) -> None:
        answer, judge = case.stored.answer, case.judge
        problem: str | None = None
        try:
            judgement = await judge.judge(case.sample, answer)
        except ENDS_THE_RUN:
            raise
        except EngineError as error:
            problem = f"{type(error).__name__}: {error}"
            retryable = may_pass(error)
            judgement = Judgement(judge=judge.name, unscored=problem)
        except VLMGuardError as error:  # e.g. the picture that it was to see is gone
            retryable, judgement = True, _unscored(judge, error)
        except Exception as error:  # noqa: BLE001  # a judge of third parties may raise anything
            retryable, judgement = True, _unscored(judge, error)
        else:
            retryable = False
        self._store.keep_judgement(
            StoredJudgement(
                key=case.key,
                benchmark=answer.benchmark,
                sample_id=answer.sample_id,
                target=answer.target,
                defence=answer.defence,
                retryable=retryable,
                judgement=judgement,
            )
        )
        tally = self.progress.tally(judge.name)
        tally.done += 1
        tally.unscored += judgement.unscored is not None
        tally.failed += problem is not None
        if problem is None:
            self._streaks.good(judge.name)
        elif retryable:
            self._streaks.bad(judge.name, problem)


def _is_unscored(known: StoredJudgement | None) -> bool:
    return known is not None and known.judgement.unscored is not None


def _unscored(judge: Judge, error: Exception) -> Judgement:
    return Judgement(judge=judge.name, unscored=f"{type(error).__name__}: {error}")
