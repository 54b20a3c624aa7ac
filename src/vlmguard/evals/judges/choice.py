"""Multiple choice: the letter that an answer names; asks no model."""

from __future__ import annotations

import re

from vlmguard.evals.types import Answer, Judgement, Sample

_LETTER = re.compile(
    r"\A\W*(?:(?:the )?(?:correct )?(?:answer|option) ?(?:is)?:?\W*)?([A-D])\b(?![ '])",
    re.IGNORECASE,
)
_NAMED = re.compile(r"\b(?:answer|option)(?: is)?:? ?\W?([A-D])\b", re.IGNORECASE)


def judge_choice(sample: Sample, answer: Answer, *, judge: str) -> Judgement:
    """``correct`` by the option letter that the answer opens with or names once; else unscored."""
    text = answer.text.strip()
    opening = _LETTER.match(text)
    named = (
        {opening.group(1).upper()} if opening else {found.upper() for found in _NAMED.findall(text)}
    )
    if len(named) != 1:
        return Judgement(judge=judge, unscored="the answer names no single option")
    right = sample.reference["correct_option"].strip().strip("().").upper()
    return Judgement(judge=judge, metrics={"correct": float(named.pop() == right)})
