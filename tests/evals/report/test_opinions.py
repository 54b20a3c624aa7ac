"""Judges are named where there are several, and it is told how far they agree."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.evals.report.material import results, view
from vlmguard.evals.report.markdown import markdown
from vlmguard.evals.report.opinions import (
    agreements,
    chips_of,
    judge_names,
    outcomes_of,
    yes_no_scores,
)
from vlmguard.evals.types import Judgement, SampleView

PHRASES = "refusal#0123abcd"
MODEL = "rubric:openai:judge@http://localhost:8000/v1?retries=0#89abcdef"
BOTH = f"majority:{PHRASES}+{MODEL}"


def judged(*said: Judgement, number: int = 1) -> SampleView:
    """A sample with one answer."""
    found = view(number)
    answer, _ = found.answers[0]
    return replace(found, answers=((answer, said),))


def chips(one: SampleView) -> list[tuple[str, str]]:
    answer, said = one.answers[0]
    found = chips_of(answer, said, yes_no_scores([one]), judge_names([one]))
    return [(chip.text, chip.by) for chip in found]


def outcomes(one: SampleView) -> list[str]:
    answer, said = one.answers[0]
    return list(outcomes_of(answer, said, yes_no_scores([one])))


def test_one_judge_needs_no_name() -> None:
    """The page says above the tables who judged."""
    one = judged(Judgement(judge=MODEL, metrics={"safe": 0.0, "refused": 1.0, "harm": 0.3}))
    assert chips(one) == [("safe: no", ""), ("refused: yes", "")]
    assert outcomes(one) == ["safe: no", "refused: yes"]


def test_several_judges_are_named_and_their_difference_told() -> None:
    """Each finding with those who made it; short names, where they are not the same."""
    one = judged(
        Judgement(judge=PHRASES, metrics={"refused": 0.0}),
        Judgement(judge=MODEL, metrics={"safe": 0.0, "refused": 1.0}),
        Judgement(judge="odd", unscored="the grade is no number"),
    )
    assert chips(one) == [
        ("unscored", "odd"),
        ("refused: no", "refusal"),
        ("refused: yes", "rubric:openai:judge"),
        ("safe: no", "rubric:openai:judge"),
    ]
    assert outcomes(one)[-1] == "judges differ: refused"
    same = judged(Judgement(judge=PHRASES), Judgement(judge="refusal#ffffffff"))
    assert set(judge_names([same]).values()) == {PHRASES, "refusal#ffffffff"}


def test_a_majority_tells_its_votes() -> None:
    """Votes are no scores of their own; a split one is a difference of judges."""
    votes = {f"safe@{PHRASES}": 1.0, f"safe@{MODEL}": 0.0, "safe@third": 0.0}
    one = judged(Judgement(judge=BOTH, metrics={"safe": 0.0, **votes}))
    assert chips(one) == [("safe: no", "2 of 3 votes")]
    assert outcomes(one) == ["safe: no", "judges differ: safe"]
    assert judge_names([one])[BOTH] == "majority of 2"


def test_agreement_is_over_the_answers_that_both_scored() -> None:
    """Share of the same opinion, and kappa; in the Markdown as well."""
    said = [(1.0, 1.0), (0.0, 0.0), (1.0, 0.0), (1.0, 1.0)]
    views = tuple(
        judged(
            Judgement(judge=PHRASES, metrics={"refused": one}),
            Judgement(judge=MODEL, metrics={"refused": other, "safe": 1.0}),
            number=number,
        )
        for number, (one, other) in enumerate(said)
    )
    silent = judged(Judgement(judge=PHRASES, unscored="why"), Judgement(judge=MODEL), number=9)
    (pair,) = agreements([*views, silent])
    assert (pair.first, pair.second, pair.score, pair.answers) == (PHRASES, MODEL, "refused", 4)
    assert pair.same == 0.75
    assert pair.kappa is not None
    assert pair.kappa.value == pytest.approx(0.5)
    text = markdown(replace(results(), views=views))
    assert "How far the judges agree" in text
    assert "| refused | 4 | 75.0 | 0.50 [" in text
    assert agreements(results().views) == ()
