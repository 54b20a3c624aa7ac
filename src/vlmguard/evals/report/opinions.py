"""What judges said of an answer, in a word each, with their names where there are several."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

from vlmguard.evals.agreement import kappa
from vlmguard.evals.types import Answer, Estimate, Judgement, SampleView
from vlmguard.evals.votes import VOTE

_ADDRESS = re.compile(r"@[^+#?]*|\?[^+#]*|#[0-9a-f]{8}")
"""Of a judge's name: where its model is, its options, and the digest of its words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """A tag under an answer.

    Attributes:
        text: what was found, e.g. ``"safe: no"``.
        by: who found it; ``""`` where there is one judge only.
        told: the judges' full names, or the reasons of those who gave no score.
    """

    text: str
    by: str = ""
    told: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """Two judges on the same answers.

    Attributes:
        first, second: their names.
        score: what both give a yes or no for.
        same: share of answers on which they agree.
        kappa: agreement beyond chance (Cohen's); ``None`` where undefined.
        answers: that both scored.
    """

    first: str
    second: str
    score: str
    same: float
    kappa: Estimate | None
    answers: int


def judge_names(views: Iterable[SampleView]) -> dict[str, str]:
    """Judge → its name, without address, options and digest where that tells them apart."""
    full = dict.fromkeys(
        said.judge for view in views for _, judgements in view.answers for said in judgements
    )
    voters = dict.fromkeys(
        name.partition(VOTE)[2]
        for view in views
        for _, judgements in view.answers
        for said in judgements
        for name in said.metrics
        if VOTE in name
    )
    names = [*full, *(name for name in voters if name not in full)]
    short = [_short(name) for name in names]
    return {
        name: brief if short.count(brief) == 1 else name
        for name, brief in zip(names, short, strict=True)
    }


def _short(judge: str) -> str:
    if judge.startswith("majority:"):
        return f"majority of {judge.count('+') + 1}"
    return _ADDRESS.sub("", judge)


def yes_no_scores(views: Iterable[SampleView]) -> frozenset[str]:
    """Scores that are always yes or no."""
    seen: dict[str, bool] = {}
    for view in views:
        for _, judgements in view.answers:
            for said in judgements:
                for name, value in said.metrics.items():
                    seen[name] = seen.get(name, True) and value in {0.0, 1.0}
    return frozenset(name for name, always in seen.items() if always and VOTE not in name)


def outcomes_of(
    answer: Answer, judgements: Sequence[Judgement], yes_no: frozenset[str]
) -> Iterator[str]:
    """What samples are filtered by: failed, empty, unscored, findings, differences of judges."""
    yield from _state(answer)
    if any(said.unscored is not None for said in judgements):
        yield "unscored"
    differing = []
    for name, sides in _sides(judgements, yes_no).items():
        yield from (_finding(name, value) for value in sides)
        if len(sides) > 1 or _split(name, judgements):
            differing.append(f"judges differ: {_plain(name)}")
    yield from differing


def chips_of(
    answer: Answer,
    judgements: Sequence[Judgement],
    yes_no: frozenset[str],
    names: Mapping[str, str],
) -> Iterator[Chip]:
    """The tags of an answer. Judges are named where an answer has several, or one of several."""
    yield from (Chip(text=state) for state in _state(answer))
    several = len(judgements) > 1

    def by(judges: Sequence[str]) -> str:
        return ", ".join(names[judge] for judge in judges) if several else ""

    silent = [said for said in judgements if said.unscored is not None]
    if silent:
        told = "; ".join(f"{said.judge}: {said.unscored}" for said in silent)
        yield Chip(text="unscored", by=by([said.judge for said in silent]), told=told)
    for name, sides in _sides(judgements, yes_no).items():
        for value, found in sides.items():
            judges = [said.judge for said in found]
            votes = _votes(name, value, found)
            who = "; ".join(part for part in (by(judges), votes) if part)
            yield Chip(text=_finding(name, value), by=who, told="; ".join(judges))


def agreements(views: Sequence[SampleView]) -> tuple[Pair, ...]:
    """How far every two judges agree on the scores that both give, over all answers."""
    yes_no = yes_no_scores(views)
    votes: dict[tuple[str, str, str], list[tuple[float, float]]] = defaultdict(list)
    for view in views:
        for _, judgements in view.answers:
            for one, other in combinations(judgements, 2):
                for name in one.metrics:
                    if name in yes_no and name in other.metrics:
                        both = one.metrics[name], other.metrics[name]
                        votes[one.judge, other.judge, name].append(both)
    return tuple(
        Pair(
            first=first,
            second=second,
            score=score,
            same=fmean(one == other for one, other in given),
            kappa=kappa(given),
            answers=len(given),
        )
        for (first, second, score), given in votes.items()
    )


def _state(answer: Answer) -> Iterator[str]:
    if answer.error is not None:
        yield "failed"
    elif answer.empty:
        yield "empty"


def _sides(
    judgements: Iterable[Judgement], yes_no: frozenset[str]
) -> dict[str, dict[float, list[Judgement]]]:
    """Score → value → the judges that gave it."""
    found: dict[str, dict[float, list[Judgement]]] = {}
    for said in judgements:
        for name, value in said.metrics.items():
            if name in yes_no:
                found.setdefault(name, {}).setdefault(value, []).append(said)
    return found


def _given(name: str, said: Judgement) -> list[float]:
    """The votes of a majority's judges on a score."""
    return [value for vote, value in said.metrics.items() if vote.startswith(f"{name}{VOTE}")]


def _split(name: str, judgements: Iterable[Judgement]) -> bool:
    return any(len(set(_given(name, said))) > 1 for said in judgements)


def _votes(name: str, value: float, found: Iterable[Judgement]) -> str:
    """``"2 of 3 votes"`` where a majority decided."""
    for said in found:
        if given := _given(name, said):
            return f"{given.count(value)} of {len(given)} votes"
    return ""


def _finding(name: str, value: float) -> str:
    return f"{_plain(name)}: {'yes' if value else 'no'}"


def _plain(name: str) -> str:
    return name.replace("_", " ")
