"""What a run would ask and cost, before it starts: from what is stored, else from assumptions."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean

from vlmguard.defences.opening import KNOWN_DEFENCES
from vlmguard.engines import EngineSpec, Sampling
from vlmguard.evals.answering import Entry
from vlmguard.evals.store import RunStore
from vlmguard.evals.types import Answer, Sample

CHARACTERS_A_TOKEN = 4
TOKENS_A_PICTURE = 600
"""LLaVA-1.5 takes 576 of any picture; models of any resolution take more of large ones."""
ANSWER_SHARE = 0.5
"""Of ``max_tokens`` that an answer takes."""
TOKENS_A_SECOND = 40
"""That one request gets of a 7B model on a server's GPU."""
ASSUMPTIONS = (
    f"{CHARACTERS_A_TOKEN} characters a token, {TOKENS_A_PICTURE} tokens a picture, answers of "
    f"{ANSWER_SHARE:.0%} of --max-tokens, {TOKENS_A_SECOND} tokens a second and request, added "
    "calls as long as answers"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What is left to ask of one target behind one defence.

    Attributes:
        target, defence: their specs.
        stored: answers that are there.
        to_do: answers that are not.
        added_low, added_high: calls beyond the target's own that the defence will make, at least
            and at most; ``None`` when that is not known.
        prompt_tokens, completion_tokens: of the target's own calls.
        seconds: at the run's concurrency.
        measured: the figures rest on stored answers, not on `ASSUMPTIONS`.
    """

    target: str
    defence: str
    stored: int
    to_do: int
    added_low: int | None
    added_high: int | None
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    measured: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RunForecast:
    """What is left of a run.

    Attributes:
        samples: benchmark → samples.
        parts: one a target and defence.
        judgements: judge → judgements that are not there yet, at most.
    """

    samples: dict[str, int]
    parts: tuple[Forecast, ...]
    judgements: dict[str, int]


def forecast(
    samples: Sequence[Sample],
    entries: Sequence[Entry],
    judges: Sequence[str],
    *,
    store: RunStore | None,
    sampling: Sampling,
    concurrency: int,
    repeats: int = 1,
) -> RunForecast:
    """Count what a run would do. Asks no model and reads no picture."""
    counts: dict[str, int] = {}
    for sample in samples:
        counts[sample.benchmark] = counts.get(sample.benchmark, 0) + 1
    parts = tuple(
        _part(
            samples,
            entry,
            store=store,
            sampling=sampling,
            concurrency=concurrency,
            repeats=repeats,
        )
        for entry in entries
    )
    judged = 0 if store is None else len(store.judgements)
    left = len(samples) * repeats * len(entries) * len(judges) - judged
    return RunForecast(
        samples=counts,
        parts=parts,
        judgements={judge: max(0, left // len(judges)) for judge in judges},
    )


def _part(
    samples: Sequence[Sample],
    entry: Entry,
    *,
    store: RunStore | None,
    sampling: Sampling,
    concurrency: int,
    repeats: int,
) -> Forecast:
    found = {} if store is None else store.answers
    rows = [
        (sample, found.get(entry.key(sample, sampling, repeat)))
        for sample, repeat in product(samples, range(repeats))
    ]
    known = [row.answer for _, row in rows if row is not None and not row.retryable]
    answered = [answer for answer in known if answer.error is None]
    left = [sample for sample, row in rows if row is None or row.retryable]
    tokens_in, tokens_out = _tokens(left, answered, sampling)
    low, high = _added_calls(entry.defence, answered)
    seconds = (
        fmean(answer.latency_ms for answer in answered) / 1000
        if answered
        else (1 + ((low or 0) + (high or 0)) / 2)
        * sampling.max_tokens
        * ANSWER_SHARE
        / TOKENS_A_SECOND
    )
    return Forecast(
        target=entry.target,
        defence=entry.defence,
        stored=len(known),
        to_do=len(left),
        added_low=None if low is None else round(low * len(left)),
        added_high=None if high is None else round(high * len(left)),
        prompt_tokens=tokens_in,
        completion_tokens=tokens_out,
        # Latencies were measured at the run's own concurrency, so they divide by it.
        seconds=len(left) * seconds / concurrency,
        measured=bool(answered),
    )


def _tokens(
    left: Sequence[Sample], answered: Sequence[Answer], sampling: Sampling
) -> tuple[int, int]:
    """Of the prompts and answers of what is left."""
    if answered:
        mean_in = fmean(answer.usage.prompt_tokens for answer in answered)
        mean_out = fmean(answer.usage.completion_tokens for answer in answered)
        return round(mean_in * len(left)), round(mean_out * len(left))
    tokens_in = sum(
        len(sample.prompt) / CHARACTERS_A_TOKEN + TOKENS_A_PICTURE * len(sample.pictures)
        for sample in left
    )
    return round(tokens_in), round(len(left) * sampling.max_tokens * ANSWER_SHARE)


def _added_calls(defence: str, answered: Sequence[Answer]) -> tuple[float | None, float | None]:
    """Calls that a defence adds to one answer, at least and at most."""
    if answered:
        mean = fmean(answer.calls for answer in answered)
        return mean, mean
    scheme = EngineSpec.parse(defence).scheme
    told = next((facts.calls for facts in KNOWN_DEFENCES if facts.name == scheme), None)
    numbers = [int(number) for number in re.findall(r"\d+", told or "")]
    if not numbers:
        return None, None
    return min(numbers), max(numbers)
