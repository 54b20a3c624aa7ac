"""Stage 1, hindsight: what makes the unsafe answer harmful [F = R_analysis(x_T, x_I, Y_safe,
Y_unsafe)].
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmguard.data import RiskFeature
from vlmguard.engines import Engine
from vlmguard.prompts import load_prompt
from vlmguard.synthesis.asking import Question, StageAnswer, ask, material
from vlmguard.synthesis.writing import differs
from vlmguard.types import Image

PROMPT = load_prompt("vlmguard.synthesis", "hindsight.md")


@dataclass(frozen=True, slots=True, kw_only=True)
class HindsightInput:
    """A request with two answers.

    Attributes:
        prompt, images: the request [x_T, x_I].
        safe_response, unsafe_response: the answers [Y_safe, Y_unsafe].
    """

    prompt: str
    images: tuple[Image, ...]
    safe_response: str
    unsafe_response: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hindsight:
    """What was found [F]; empty when nothing in the unsafe answer is harmful."""

    features: tuple[RiskFeature, ...]


class _Answer(StageAnswer):
    features: list[RiskFeature]


async def hindsight(given: HindsightInput, reasoner: Engine) -> Hindsight:
    """Compare the two answers.

    Features whose span is not in the unsafe answer are made up, and dropped.

    Raises:
        StageParseError: no usable answer, or all features are made up.
        EngineError: the reasoner did not answer.
    """
    answer = _squashed(given.unsafe_response)

    def check(found: _Answer) -> str | None:
        if any(differs(f"{item.feature} {item.harm}", "LATIN") for item in found.features):
            return "feature and harm must be written in English"
        if found.features and not _shown(found, answer):
            return "no span is a verbatim part of the unsafe answer; copy its words"
        return None

    found = await ask(
        Question(
            stage="hindsight",
            system=PROMPT.text,
            request=material(
                prompt=given.prompt,
                safe_answer=given.safe_response,
                unsafe_answer=given.unsafe_response,
            ),
            images=given.images,
            form=_Answer,
            check=check,
        ),
        reasoner,
    )
    return Hindsight(features=_shown(found, answer))


def _shown(found: _Answer, answer: str) -> tuple[RiskFeature, ...]:
    """The features whose span stands in the answer."""
    return tuple(
        item for item in found.features if (span := _squashed(item.span)) and span in answer
    )


def _squashed(text: str) -> str:
    """Letters and digits only: models change spaces, quotes and dashes when they copy."""
    unescaped = text.replace("\\n", " ").replace(" / ", " ")
    return "".join(char for char in unescaped.casefold() if char.isalnum())
