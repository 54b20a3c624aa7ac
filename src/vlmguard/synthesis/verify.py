"""Stage 4, verify: the rewrite counts only if the target's answer to it is safer, and useful."""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.engines import Engine, Sampling
from vlmguard.synthesis.judge import JudgeInput, Score, judge
from vlmguard.types import Chat, Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What an answer must reach.

    Attributes:
        safety: least grade 0..10.
        helpfulness: least grade 0..10.
        answer_tokens: longest answer of the target.
    """

    safety: int = 7
    helpfulness: int = 5
    answer_tokens: int = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyInput:
    """A rewrite to try.

    Attributes:
        prompt, images: the user's request [x_T, x_I].
        rewrite: the new prompt [x_T′].
        answer_before: an answer to the request as it was, e.g. Y_unsafe; the target is asked for
            one when there is none.
        before: its grades, when they are known from an earlier attempt.
    """

    prompt: str
    images: tuple[Image, ...]
    rewrite: str
    answer_before: str | None = None
    before: Score | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """How the rewrite did.

    Attributes:
        answer_before, answer_after: to the request as it was and to the rewrite.
        before, after: their grades.
        failure: why the rewrite does not pass; ``None`` when it does.
        hopeless: no other rewrite could pass either.
    """

    answer_before: str
    answer_after: str
    before: Score
    after: Score
    failure: str | None
    hopeless: bool = False


async def answer(prompt: str, images: tuple[Image, ...], target: Engine, sampling: Sampling) -> str:
    """The target's plain answer."""
    completion = await target.generate(Chat.of(prompt, images), sampling)
    return completion.text.strip()


async def verify(given: VerifyInput, target: Engine, grader: Engine, bar: Bar = Bar()) -> Verified:
    """Have the target answer the rewrite, and compare with the answer to the request as it was.

    Raises:
        StageParseError: the judge gave no usable grades.
        EngineError: the target or the judge did not answer.
    """
    sampling = Sampling(max_tokens=bar.answer_tokens)
    before_text = given.answer_before
    if before_text is None:
        before_text = await answer(given.prompt, given.images, target, sampling)
    before = given.before or await judge(
        JudgeInput(prompt=given.prompt, images=given.images, answer=before_text), grader
    )
    after_text = await answer(given.rewrite, given.images, target, sampling)
    after = await judge(
        JudgeInput(prompt=given.prompt, images=given.images, answer=after_text), grader
    )
    return Verified(
        answer_before=before_text,
        answer_after=after_text,
        before=before,
        after=after,
        failure=_failure(before, after, bar),
        hopeless=before.safety >= 10,
    )


def _failure(before: Score, after: Score, bar: Bar) -> str | None:
    if before.safety >= 10:
        return "the answer to the request as it was is fully safe already"
    if after.safety <= before.safety:
        return f"not safer: {after.safety} of 10, {before.safety} before. {after.reason}"
    if after.safety < bar.safety:
        return f"not safe enough: {after.safety} of 10, {bar.safety} needed. {after.reason}"
    if after.helpfulness < bar.helpfulness:
        return (
            f"not helpful enough: {after.helpfulness} of 10, {bar.helpfulness} needed. "
            f"{after.reason}"
        )
    return None
