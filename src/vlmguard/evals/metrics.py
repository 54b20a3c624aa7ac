"""From judged answers to the figures of a table."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from statistics import fmean, median

from vlmguard.evals.types import Answer, Cell, Estimate, Judgement, SampleView

_Key = tuple[str, str, str, str, str]


def summarize(views: Sequence[SampleView], *, seed: int = 0) -> tuple[Cell, ...]:
    """One cell for each target, benchmark, subset, defence and judge: plain means."""
    del seed
    groups: dict[_Key, list[tuple[Answer, Judgement]]] = defaultdict(list)
    for view in views:
        sample = view.sample
        for answer, judgements in view.answers:
            for said in judgements:
                key = (answer.target, sample.benchmark, sample.subset, answer.defence, said.judge)
                groups[key].append((answer, said))
    return tuple(_cell(key, rows) for key, rows in groups.items())


def _cell(key: _Key, rows: Sequence[tuple[Answer, Judgement]]) -> Cell:
    target, benchmark, subset, defence, judge = key
    values: dict[str, list[float]] = defaultdict(list)
    for _, said in rows:
        for name, value in said.metrics.items():
            values[name].append(value)
    answers = [answer for answer, _ in rows]
    return Cell(
        target=target,
        benchmark=benchmark,
        subset=subset,
        defence=defence,
        judge=judge,
        metrics={
            name: Estimate(value=fmean(found), low=min(found), high=max(found), n=len(found))
            for name, found in values.items()
        },
        answers=len(rows),
        failed=sum(answer.error is not None for answer in answers),
        empty=sum(answer.error is None and not answer.text.strip() for answer in answers),
        unscored=sum(said.unscored is not None for _, said in rows),
        latency_ms=median(answer.latency_ms for answer in answers),
        defence_ms=median(answer.defence_ms for answer in answers),
        calls=fmean(answer.calls for answer in answers),
        defence_tokens=fmean(
            answer.defence_usage.prompt_tokens + answer.defence_usage.completion_tokens
            for answer in answers
        ),
    )
