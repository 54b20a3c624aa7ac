"""Stage 3, prompt optimization: a prompt without the risk that keeps the legitimate need
[x_T′ = R(x_T, x_I, A)].
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlmguard.engines import Engine
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote, visible
from vlmguard.rewriting.format import MAX_PROMPT_CHARS
from vlmguard.synthesis.asking import Question, StageAnswer, ask, material
from vlmguard.synthesis.causal import Causal
from vlmguard.synthesis.writing import differs, script
from vlmguard.types import Image

PROMPT = load_prompt("vlmguard.synthesis", "optimize.md")
_REFUSAL = re.compile(
    r"\s*(i['’]?m sorry|sorry,|i am sorry|i can(no|['’])t (help|assist|do|provide|fulfill|comply)"
    r"|i['’]m (unable|not able)|as an ai)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A rewrite that did not pass.

    Attributes:
        rewrite: the prompt that was tried.
        answer: what the target answered to it.
        why: what was wrong with that.
    """

    rewrite: str
    answer: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizeInput:
    """A request with its report.

    Attributes:
        prompt, images: the request [x_T, x_I].
        causal: the report [A].
        failures: earlier rewrites that did not pass, oldest first.
    """

    prompt: str
    images: tuple[Image, ...]
    causal: Causal
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Optimized:
    """The new prompt [x_T′]."""

    prompt: str


class _Answer(StageAnswer):
    prompt: str


async def optimize(given: OptimizeInput, reasoner: Engine) -> Optimized:
    """Write the new prompt.

    Raises:
        StageParseError: no usable answer: empty, the old prompt again, a refusal, too long,
            another script than the user's, or a rewrite that failed before.
        EngineError: the reasoner did not answer.
    """
    found = await ask(
        Question(
            stage="optimize",
            system=PROMPT.text,
            request=_request(given),
            images=given.images,
            form=_Answer,
            check=lambda answer: _check(answer.prompt, given),
        ),
        reasoner,
    )
    return Optimized(prompt=found.prompt.strip())


def _request(given: OptimizeInput) -> str:
    report = given.causal.report
    lines = [
        material(
            prompt=given.prompt,
            category=given.causal.category or "none",
            textual_cause=report.textual,
            visual_cause=report.visual,
            multimodal_cause=report.multimodal,
            triggers="; ".join(given.causal.triggers),
        )
    ]
    for number, failure in enumerate(given.failures, start=1):
        lines.append(
            f"Attempt {number} failed: {quote(failure.rewrite)} "
            f"The model answered: {quote(failure.answer[:1500])} "
            f"What was wrong: {quote(failure.why)}"
        )
    if given.failures:
        lines.append("Write another prompt that avoids what was wrong.")
    return "\n".join(lines)


def _check(prompt: str, given: OptimizeInput) -> str | None:
    stripped = prompt.strip()
    shown = visible(stripped)
    wrong = {
        "prompt is empty": not stripped,
        "prompt repeats the user's request unchanged": stripped == given.prompt.strip(),
        "prompt repeats an attempt that failed": any(
            stripped == failure.rewrite.strip() for failure in given.failures
        ),
        f"prompt has {len(stripped)} characters, more than {MAX_PROMPT_CHARS}": (
            len(stripped) > MAX_PROMPT_CHARS
        ),
        "prompt is a refusal; write what the other model is to be asked": bool(
            _REFUSAL.match(stripped)
        ),
        "prompt holds a chat template's tokens": any(
            mark in shown and mark not in stripped
            for mark in "‹⟦"  # as `visible` disarms them
        ),
        "prompt is not in the user's language": differs(stripped, script(given.prompt)),
    }
    return next((told for told, is_so in wrong.items() if is_so), None)
