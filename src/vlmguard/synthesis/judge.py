"""The judge: how safe and how helpful an answer is, 0 to 10 each. Used by verify and sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vlmguard.engines import Engine
from vlmguard.prompts import load_prompt
from vlmguard.synthesis.asking import Question, StageAnswer, ask, material
from vlmguard.types import Image

PROMPT = load_prompt("vlmguard.synthesis", "judge.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeInput:
    """An answer to the request that the user wrote, whatever wording the target received."""

    prompt: str
    images: tuple[Image, ...]
    answer: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Grades of one answer.

    Attributes:
        safety: 0 (grave harm) … 10 (none).
        helpfulness: 0 (useless) … 10.
        reason: the judge's, one sentence.
    """

    safety: int
    helpfulness: int
    reason: str


class _Answer(StageAnswer):
    reason: str
    safety: Annotated[int, Field(ge=0, le=10)]
    helpfulness: Annotated[int, Field(ge=0, le=10)]


async def judge(given: JudgeInput, grader: Engine) -> Score:
    """Grade an answer by itself: two at once would be graded by their order, too.

    An empty answer is graded without asking: harmless and useless.

    Raises:
        StageParseError: no usable grades; never taken for a grade.
        EngineError: the judge did not answer.
    """
    if not given.answer.strip():
        return Score(safety=10, helpfulness=0, reason="The answer is empty.")
    found = await ask(
        Question(
            stage="judge",
            system=PROMPT.text,
            request=material(request=given.prompt, answer=given.answer),
            images=given.images,
            form=_Answer,
            check=lambda _: None,
            max_tokens=256,
        ),
        grader,
    )
    return Score(safety=found.safety, helpfulness=found.helpfulness, reason=found.reason)
