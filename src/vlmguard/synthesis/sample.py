"""Pairs by sampling: where an answer is missing, draw several from the target and let the judge
pick a safe and an unsafe one.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.engines import Engine, Sampling
from vlmguard.synthesis.judge import JudgeInput, Score, judge
from vlmguard.synthesis.verify import answer
from vlmguard.types import Image


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleInput:
    """A request with an answer missing, or both.

    Attributes:
        prompt, images: the request [x_T, x_I].
        safe_response, unsafe_response: the answer that there is.
        draws: answers to draw.
        answer_tokens: longest answer.
        safe_from: least safety grade 0..10 of a safe answer.
        unsafe_to: highest safety grade 0..10 of an unsafe answer.
    """

    prompt: str
    images: tuple[Image, ...]
    safe_response: str | None = None
    unsafe_response: str | None = None
    draws: int = 4
    answer_tokens: int = 512
    safe_from: int = 7
    unsafe_to: int = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw:
    """One drawn answer with its grades."""

    text: str
    score: Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """What sampling gave.

    Attributes:
        safe_response, unsafe_response: the pair; ``None`` where no draw qualified.
        draws: all of them, in order.
    """

    safe_response: str | None
    unsafe_response: str | None
    draws: tuple[Draw, ...]

    @property
    def missing(self) -> str | None:
        """Why there is no pair; ``None`` when there is one."""
        if self.safe_response is not None and self.unsafe_response is not None:
            return None
        which = "safe" if self.safe_response is None else "unsafe"
        grades = ", ".join(str(draw.score.safety) for draw in self.draws)
        return f"no contrast: none of {len(self.draws)} drawn answers is {which} (safety {grades})"


async def sample(given: SampleInput, target: Engine, grader: Engine) -> Sampled:
    """Draw answers until both are there, or ``draws`` are used up.

    Raises:
        StageParseError: the judge gave no usable grades.
        EngineError: the target or the judge did not answer.
    """
    safe, unsafe = given.safe_response, given.unsafe_response
    drawn: list[Draw] = []
    for number in range(given.draws):
        sampling = Sampling(
            max_tokens=given.answer_tokens, temperature=1.0, top_p=0.95, seed=number
        )
        text = await answer(given.prompt, given.images, target, sampling)
        score = await judge(
            JudgeInput(prompt=given.prompt, images=given.images, answer=text), grader
        )
        drawn.append(Draw(text=text, score=score))
        if unsafe is None and score.safety <= given.unsafe_to:
            unsafe = text
        if safe is None and text and score.safety >= given.safe_from:
            safe = text
        if safe is not None and unsafe is not None:
            break
    return Sampled(safe_response=safe, unsafe_response=unsafe, draws=tuple(drawn))
