"""A question to a model whose answer must be one JSON object of a known form; repaired once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.errors import StageParseError
from vlmguard.quoting import quote
from vlmguard.types import Chat, Completion, Image, Message

_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
# For small models, which write until something ends it: no answer needs more than about 500 tokens.
_MOST_ITEMS = 3
_LONGEST_STRING = 200  # characters
_LONGEST_PROMPT = 600
_SHOWN_BACK = 4000  # characters of a failed answer that the model sees again


class StageAnswer(BaseModel):
    """Base of what models answer: exactly these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Answer = TypeVar("Answer", bound=StageAnswer)


@dataclass(frozen=True, slots=True, kw_only=True)
class Question(Generic[Answer]):
    """What a stage asks.

    Attributes:
        stage: for messages.
        system: the stage's prompt.
        request: the material, quoted line by line (`material`).
        images: what the material is about.
        form: the answer's form.
        check: says what is wrong with an answer of that form, or ``None``.
        max_tokens: of the answer.
    """

    stage: str
    system: str
    request: str
    images: Sequence[Image]
    form: type[Answer]
    check: Callable[[Answer], str | None]
    max_tokens: int = 1024


def material(**items: str | None) -> str:
    """What users and models wrote, as data: one quoted line each, which nothing in it can leave.

    Args:
        items: name → text; underscores become spaces, ``None`` is left out.
    """
    lines = [
        f"{name.replace('_', ' ').capitalize()}: {quote(text) if text.strip() else 'none'}"
        for name, text in items.items()
        if text is not None
    ]
    return "\n".join(lines)


async def ask(question: Question[Answer], engine: Engine) -> Answer:
    """The model's answer, after at most one repair.

    Raises:
        StageParseError: neither the answer nor its repair is usable; carries both texts.
        EngineError: the model did not answer.
    """
    chat = Chat.of(question.request, question.images, system=question.system)
    sampling = _sampling(question, engine)
    first = await engine.generate(chat, sampling)
    try:
        return _read(question, first)
    except StageParseError as error:
        shown = first.text[:_SHOWN_BACK] or "(empty)"
        told = f"That is not usable: {error}. Answer with the one JSON object only."
        again = chat.then(Message(role="assistant", text=shown))
        second = await engine.generate(again.then(Message(role="user", text=told)), sampling)
    try:
        return _read(question, second)
    except StageParseError as error:
        raise StageParseError(
            f"{question.stage}: {error} (after one repair)",
            raw=f"{first.text}\n[repair]\n{second.text}",
        ) from None


def _sampling(question: Question[Answer], engine: Engine) -> Sampling:
    schema = None
    if Capability.JSON_SCHEMA in engine.capabilities:
        # Engines with grammars of their own run small models, which need bounds to come to an
        # end; hosted ones refuse such keywords.
        schema = _schema(question.form, bounded=Capability.GRAMMAR in engine.capabilities)
    return Sampling(max_tokens=question.max_tokens, json_schema=schema)


@cache
def _schema(form: type[StageAnswer], *, bounded: bool) -> Mapping[str, Any]:
    schema = form.model_json_schema()
    return _bounded(schema) if bounded else schema


def _bounded(node: Any, name: str = "") -> Any:
    """The schema with an end to every string and list."""
    if isinstance(node, list):
        return [_bounded(item) for item in node]
    if not isinstance(node, dict):
        return node
    walked = {key: _bounded(value, key) for key, value in node.items()}
    if walked.get("type") == "string" and "enum" not in walked:
        walked["maxLength"] = _LONGEST_PROMPT if name == "prompt" else _LONGEST_STRING
    if walked.get("type") == "array":
        walked["maxItems"] = _MOST_ITEMS
    return walked


def _read(question: Question[Answer], completion: Completion) -> Answer:
    text = completion.text
    try:
        answer = question.form.model_validate(_object(text))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"])
        raise StageParseError(f"{place}: {problem['msg']}", raw=text) from None
    except StageParseError as error:
        if completion.finish_reason != "length":
            raise
        told = f"{error}; it was cut off at {question.max_tokens} tokens"
        raise StageParseError(told, raw=text) from None
    if (wrong := question.check(answer)) is not None:
        raise StageParseError(wrong, raw=text)
    return answer


def _object(text: str) -> dict[str, Any]:
    """The one JSON object in the text; prose or a code fence around it is tolerated."""
    visible = _THINKING.sub("", text)
    if not visible.strip():
        raise StageParseError("the answer is empty", raw=text)
    start = visible.find("{")
    if start < 0:
        raise StageParseError("there is no JSON object", raw=text)
    try:
        found, end = json.JSONDecoder().raw_decode(visible, start)
    except (ValueError, RecursionError) as error:
        raise StageParseError(f"not valid JSON: {error}", raw=text) from None
    if "{" in visible[end:]:
        raise StageParseError("there is more than one JSON object", raw=text)
    assert isinstance(found, dict)
    return found
