"""How safe an answer is, told by any model that is named by a spec string.

::

    engine-judge:openai:MODEL@URL       a model is asked
    hf-classifier:org/model?label=safe  a reward model or classifier of transformers
    my_package.my_module:open_scorer    your own: a function (EngineSpec) -> Scorer
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmguard.defences.named import open_named
from vlmguard.engines import Capability, Engine, EngineSpec, Sampling, open_engine
from vlmguard.errors import ConfigError, OutputError
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote
from vlmguard.registry import Registry
from vlmguard.types import Chat, Message, TokenLogprob, Usage

_BEGUN = "Safe (Yes or No):"


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A scorer's opinion.

    Attributes:
        value: higher is safer. Judges and classifiers give 0..1, reward models their own scale.
        usage: tokens that it took, where an engine gave it.
    """

    value: float
    usage: Usage = Usage()  # noqa: RUF009  # frozen


class Scorer(Protocol):
    """Says how safe an answer is."""

    async def score(self, chat: Chat, answer: str) -> Score:
        """The safety of ``answer`` to the last user message of ``chat``.

        Raises:
            EngineError: the model did not answer.
            OutputError: it answered, but not with a score.
        """
        ...


SCORERS = Registry(
    "scorer",
    {
        "engine-judge": "vlmguard.defences.scoring:open_engine_judge",
        "hf-classifier": "vlmguard.defences.classifier:open_classifier",
    },
    group="vlmguard.scorers",
)
"""Scheme → a function ``(EngineSpec) -> Scorer``. Opening is cheap; models load on first use."""


def open_scorer(spec: str) -> Scorer:
    """Open the scorer that a spec string names.

    Raises:
        ConfigError: malformed spec or unknown option.
        UnknownName: unknown scheme; lists those there are.
        MissingExtra: its dependencies are not installed.
    """
    scorer: Scorer = open_named(SCORERS, spec, "score")
    return scorer


def open_engine_judge(spec: EngineSpec) -> EngineJudge:
    """``engine-judge:ENGINE_SPEC``; options are the engine's.

    Raises:
        ConfigError: no engine is named, or its spec is wrong.
    """
    if not spec.value:
        raise ConfigError("engine-judge names no engine; write engine-judge:openai:MODEL@URL")
    inner = str(spec).removeprefix(f"{spec.scheme}:")
    return EngineJudge(open_engine(inner))


class EngineJudge:
    """An engine that is asked how safe an answer is.

    One that reports probabilities says Yes or No (after a prefix, where it continues one), and
    the score is the probability of Yes against No; any other gives a number from 0 to 1.

    Args:
        engine: it gets the last user message with its pictures, where it can see them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def score(self, chat: Chat, answer: str) -> Score:
        """See `Scorer.score`; 0..1."""
        can = self._engine.capabilities
        by_word = Capability.LOGPROBS in can
        prompt = load_prompt(
            "vlmguard.defences", "safety_judge_word.md" if by_word else "safety_judge_number.md"
        )
        asked = last_user_message(chat)
        text = f"The user asked: {quote(asked.text)}\nThe assistant answered: {quote(answer)}"
        images = asked.images if Capability.VISION in can else ()
        question = Chat.of(text, images, system=prompt.text)
        if by_word:
            sampling = Sampling(max_tokens=1, top_logprobs=5)
            if Capability.PREFIX in can:  # small models would begin with a sentence
                question = question.then(Message(role="assistant", text=_BEGUN))
                sampling = Sampling(max_tokens=1, top_logprobs=20)
            completion = await self._engine.generate(question, sampling)
            return Score(
                value=_yes(completion.logprobs or (), completion.text), usage=completion.usage
            )
        schema = _Safety.model_json_schema() if Capability.JSON_SCHEMA in can else None
        sampling = Sampling(max_tokens=64, json_schema=schema)
        completion = await self._engine.generate(question, sampling)
        return Score(value=_number(completion.text), usage=completion.usage)


def last_user_message(chat: Chat) -> Message:
    """The message that an answer answers; an empty one where there is none."""
    users = [message for message in chat.messages if message.role == "user"]
    return users[-1] if users else Message(role="user", text="")


class _Safety(BaseModel):
    """What a judge without probabilities answers."""

    model_config = ConfigDict(extra="forbid")

    safety: float = Field(ge=0, le=1)


def _yes(logprobs: tuple[TokenLogprob, ...], text: str) -> float:
    """Probability of Yes against No as the first token."""
    mass = {"yes": 0.0, "no": 0.0}
    if logprobs:
        first = logprobs[0]
        seen: dict[str, float] = {first.token: first.logprob, **dict(first.top)}
        for token, logprob in seen.items():
            word = token.strip().strip(".,!\"'*").lower()
            if word in mass:
                mass[word] += math.exp(logprob)
    total = mass["yes"] + mass["no"]
    if total == 0:
        raise OutputError(f"the judge said neither Yes nor No but {text!r:.80}", raw=text)
    return mass["yes"] / total


def _number(text: str) -> float:
    start, end = text.find("{"), text.rfind("}")
    try:
        told: Any = _Safety.model_validate_json(text[start : end + 1])
    except ValidationError:
        raise OutputError(
            f'the judge gave no {{"safety": 0..1}} but {text!r:.80}', raw=text
        ) from None
    return float(told.safety)
