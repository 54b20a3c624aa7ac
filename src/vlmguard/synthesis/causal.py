"""Stage 2, causal analysis: textual, visual and joint causes of the risk, merged into the report
[A].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, field_validator

from vlmguard.data import RiskFeature
from vlmguard.engines import Engine
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote
from vlmguard.rewriting import CATEGORIES, CATEGORY_NAMES
from vlmguard.synthesis.asking import Question, StageAnswer, ask, material
from vlmguard.synthesis.writing import differs
from vlmguard.types import Image, RiskReport, Verdict

PROMPT = load_prompt("vlmguard.synthesis", "causal.md")
SYSTEM = PROMPT.fill(
    categories="\n".join(f"- {item.name}: {item.description}" for item in CATEGORIES)
)
_NONE = "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class CausalInput:
    """A request and what hindsight found.

    Attributes:
        prompt, images: the request [x_T, x_I].
        features: risk features [F]; empty when none were found.
    """

    prompt: str
    images: tuple[Image, ...]
    features: tuple[RiskFeature, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Causal:
    """The risk report with its classification [A].

    Attributes:
        verdict: whether there is a risk at all.
        category: a policy category; ``None`` when safe.
        report: the three causes.
        triggers: words or picture elements that set the risk off.
        severity: 1 (slight) … 5 (lives at stake).
    """

    verdict: Verdict
    category: str | None
    report: RiskReport
    triggers: tuple[str, ...]
    severity: int


class _Answer(StageAnswer):
    textual: str
    visual: str
    multimodal: str
    triggers: list[str]
    verdict: Literal["risky", "safe"]
    category: Annotated[str, Field(json_schema_extra={"enum": [*CATEGORY_NAMES, _NONE]})]
    severity: Annotated[int, Field(ge=1, le=5)]

    @field_validator("category")
    @classmethod
    def _one_spelling(cls, category: str) -> str:
        return category.strip().lower().replace(" ", "_").replace("-", "_")


async def causal(given: CausalInput, reasoner: Engine) -> Causal:
    """Find the causes of the risk, or that there is none.

    Raises:
        StageParseError: no usable answer.
        EngineError: the reasoner did not answer.
    """
    found = await ask(
        Question(
            stage="causal",
            system=SYSTEM,
            request="\n".join([material(prompt=given.prompt), *_findings(given.features)]),
            images=given.images,
            form=_Answer,
            check=_check,
        ),
        reasoner,
    )
    return Causal(
        verdict=found.verdict,
        category=found.category if found.verdict == "risky" else None,
        report=RiskReport(textual=found.textual, visual=found.visual, multimodal=found.multimodal),
        triggers=tuple(trigger for trigger in found.triggers if trigger.strip()),
        severity=found.severity,
    )


def _findings(features: Sequence[RiskFeature]) -> list[str]:
    if not features:
        return ["What went wrong: nothing harmful was found in the answers."]
    return [
        f"What went wrong {number}: {quote(item.feature)} Shown by: {quote(item.span)} "
        f"Leads to: {quote(item.harm)}"
        for number, item in enumerate(features, start=1)
    ]


def _check(found: _Answer) -> str | None:
    reasons = (found.textual, found.visual, found.multimodal)
    if found.verdict == "risky" and found.category not in CATEGORY_NAMES:
        return f"category {found.category!r} is none of {', '.join(CATEGORY_NAMES)}"
    if found.verdict == "risky" and not all(reason.strip() for reason in reasons):
        return 'textual, visual and multimodal may not be empty (write "nothing" where it applies)'
    if differs(" ".join(reasons), "LATIN"):
        return "textual, visual and multimodal must be written in English"
    return None
