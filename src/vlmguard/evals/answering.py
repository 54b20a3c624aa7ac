"""One sample, one target behind one defence, one answer: for the run and for Inspect's solver."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from vlmguard.defences import Defence
from vlmguard.engines import Engine, Sampling
from vlmguard.errors import ConfigError, EngineError, EngineRejected, ModelStoreError, VLMGuardError
from vlmguard.evals.store import digest
from vlmguard.evals.types import Answer, Sample
from vlmguard.perception import DescribedEngine, Perceiver
from vlmguard.types import Chat, Reply

ENDS_THE_RUN = (ConfigError, ModelStoreError)
"""These would hit every sample alike, so a run stops instead of recording each."""

_MAY_PASS = frozenset({401, 403, 404, 408, 429})
"""HTTP refusals that are about keys, names and quotas, not about the sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A target behind a defence, by name: all that judging and reporting need of it.

    Attributes:
        target, defence: their specs.
        fingerprint: changes when the defence decides differently under the same spec: policy,
            prompt, adapter.
    """

    target: str
    defence: str
    fingerprint: str = ""

    def key(self, sample: Sample, sampling: Sampling, repeat: int = 0) -> str:
        """Of the answer in the store: everything that decides it but the bytes of pictures."""
        # The first answer's key is that of a run without repeats, so that one can be continued.
        again = (f"repeat {repeat}",) if repeat else ()
        return digest(
            sample.benchmark,
            sample.id,
            sample.prompt,
            str(sample.description),
            self.target,
            self.defence,
            self.fingerprint,
            f"{sampling.max_tokens}/{sampling.temperature}/{sampling.top_p}/{sampling.seed}",
            *again,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A target behind a defence, ready to answer.

    Attributes:
        entry: its name.
        target: the model that answers.
        defence: what stands in front of it.
        perceiver: reads a description to a target where it stands for a picture.
    """

    entry: Entry
    target: Engine
    defence: Defence
    perceiver: Perceiver


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """An answer, and whether its failure may pass."""

    answer: Answer
    retryable: bool = False


async def respond(
    contender: Contender, sample: Sample, chat: Chat, sampling: Sampling, *, repeat: int = 0
) -> Answer:
    """What the defended target says to a sample.

    Args:
        contender: who is asked.
        sample: what is asked, for names.
        chat: the same as a conversation, pictures loaded.
        sampling: how to generate; a repeat draws with the next seed, where there is one.
        repeat: which of several answers, from 0.

    Raises:
        VLMGuardError: the defence or the target failed.
    """
    target = contender.target
    if sample.description is not None:
        # Also a target that sees gets the description: there is no picture to show.
        target = DescribedEngine(target, contender.perceiver)
    if sampling.seed is not None:
        sampling = replace(sampling, seed=sampling.seed + repeat)
    start = time.perf_counter()
    reply = await contender.defence.respond(chat, target, sampling)
    elapsed = (time.perf_counter() - start) * 1000
    return replace(_answer(contender.entry, sample, reply, elapsed), repeat=repeat)


async def ask(
    contender: Contender, sample: Sample, chat: Chat, sampling: Sampling, *, repeat: int = 0
) -> Outcome:
    """The same with a failure as part of the answer.

    Raises:
        ConfigError, ModelStoreError: no sample could be answered.
    """
    start = time.perf_counter()
    try:
        return Outcome(answer=await respond(contender, sample, chat, sampling, repeat=repeat))
    except ENDS_THE_RUN:
        raise
    except VLMGuardError as error:
        problem: Exception = error
        passing = may_pass(error)
    except Exception as error:  # noqa: BLE001  # a defence of third parties may raise anything
        problem, passing = error, True
    return failed(contender.entry, sample, problem, retryable=passing, since=start, repeat=repeat)


def failed(
    entry: Entry,
    sample: Sample,
    error: Exception,
    *,
    retryable: bool,
    since: float,
    repeat: int = 0,
) -> Outcome:
    """The record of a sample that got no answer."""
    answer = Answer(
        benchmark=sample.benchmark,
        sample_id=sample.id,
        target=entry.target,
        defence=entry.defence,
        text="",
        repeat=repeat,
        error=f"{type(error).__name__}: {error}",
        latency_ms=(time.perf_counter() - since) * 1000,
    )
    return Outcome(answer=answer, retryable=retryable)


def may_pass(error: VLMGuardError) -> bool:
    """Whether the same sample may be answered later: overload, keys, names; not its content."""
    if isinstance(error, EngineRejected):
        return error.status in _MAY_PASS
    return isinstance(error, EngineError) and error.retryable


def _answer(entry: Entry, sample: Sample, reply: Reply, elapsed: float) -> Answer:
    trace = reply.trace
    answer = Answer(
        benchmark=sample.benchmark,
        sample_id=sample.id,
        target=entry.target,
        defence=entry.defence,
        text=reply.completion.text,
        latency_ms=elapsed,
        defence_ms=sum(ms for step, ms in trace.timings_ms.items() if step != "target"),
        calls=trace.calls,
        usage=trace.usage,
        defence_usage=trace.defence_usage,
    )
    if not trace.rewrites:
        return answer
    last = trace.rewrites[-1]
    report = last.report
    return replace(
        answer,
        verdict=last.verdict,
        risk=last.risk,
        category=last.category,
        action=last.action,
        rewrite=last.prompt if last.changed else None,
        reasons=(
            *(() if report is None else (report.textual, report.visual, report.multimodal)),
            *(() if last.failure is None else (f"the guard failed open: {last.failure}",)),
        ),
    )
