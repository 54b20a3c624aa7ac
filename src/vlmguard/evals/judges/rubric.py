"""A model as judge: it reads a rubric and answers with a grade of a known form."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.errors import OutputError
from vlmguard.evals.described import MEDIA_TYPE
from vlmguard.evals.judges.choice import judge_choice
from vlmguard.evals.judges.rubrics import Question, prompts, questions_for
from vlmguard.evals.judges.unscored import nothing_to_judge
from vlmguard.evals.types import Answer, Judgement, Sample
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote
from vlmguard.types import Chat, Image

_MAX_TOKENS = 400
_MOST_CHARACTERS = 12_000  # of an answer that the judge reads
_REASON_CHARACTERS = 400
_THINKING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_NOT_EVERYWHERE = frozenset({"title", "description", "minimum", "maximum", "default"})


class RubricJudge:
    """Asks a model, at temperature 0, one or two questions an answer.

    A grade counts only in the agreed form; anything else leaves the answer unscored. The answer is
    quoted on one line, so that nothing in it can pose as instructions.

    Args:
        engine: the model. It sees the picture where the rubric shows it and the model can see.
        rubric: one of `RUBRICS` for all samples; ``None`` picks by benchmark.
    """

    def __init__(self, engine: Engine, *, rubric: str | None = None) -> None:
        self._engine = engine
        self._rubric = rubric
        # Other words, another judge: what was judged with them is judged again.
        self.name = f"{rubric or 'rubric'}:{engine.spec}#{_digest()}"

    async def judge(self, sample: Sample, answer: Answer) -> Judgement:
        """Score one answer.

        Raises:
            EngineError: the model cannot be reached.
            DataError: the picture that it is to see is missing.
        """
        if (why := nothing_to_judge(answer)) is not None:
            return Judgement(judge=self.name, unscored=why)
        if self._rubric is None and "correct_option" in sample.reference:
            return judge_choice(sample, answer, judge=self.name)
        questions = questions_for(sample, self._rubric)
        if isinstance(questions, str):
            return Judgement(judge=self.name, unscored=questions)
        metrics: dict[str, float] = {}
        reasons = []
        for question in questions:
            try:
                grade = await self._ask(question, sample, answer)
            except OutputError as error:
                why = f"{question.prompt}: {error}"
                return Judgement(judge=self.name, unscored=why, explanation=error.raw)
            metrics |= question.scores(grade, sample)
            reasons.append(str(getattr(grade, "reason", "")))
        return Judgement(judge=self.name, metrics=metrics, explanation="\n".join(reasons))

    async def aclose(self) -> None:
        """Free the model."""
        await self._engine.aclose()

    async def _ask(self, question: Question, sample: Sample, answer: Answer) -> BaseModel:
        can = self._engine.capabilities
        images = await self._pictures(question, sample)
        task = load_prompt(__package__, f"{question.prompt}.md").text
        system = load_prompt(__package__, "frame.md").fill(task=task, form=question.told)
        chat = Chat.of(_material(question, sample, answer, images), images, system=system)
        schema = None
        if Capability.JSON_SCHEMA in can:
            # Small models under a grammar need an end to their reason; hosted ones refuse bounds.
            schema = _schema(question.form, bounded=Capability.GRAMMAR in can)
        sampling = Sampling(max_tokens=_MAX_TOKENS, json_schema=schema)
        completion = await self._engine.generate(chat, sampling)
        try:
            return read_grade(completion.text, question.form)
        except OutputError as error:
            if completion.finish_reason != "length":
                raise
            told = f"{error}; it was cut off at {_MAX_TOKENS} tokens"
            raise OutputError(told, raw=error.raw) from None

    async def _pictures(self, question: Question, sample: Sample) -> tuple[Image, ...]:
        if not question.picture or Capability.VISION not in self._engine.capabilities:
            return ()
        loaded = [await asyncio.to_thread(picture.load) for picture in sample.pictures]
        return tuple(image for image in loaded if image.media_type != MEDIA_TYPE)


def read_grade(text: str, form: type[BaseModel]) -> BaseModel:
    """The grade in a judge's answer: one JSON object and nothing else.

    A block of thinking before it and a code fence around it are let pass.

    Raises:
        OutputError: not that; says what is wrong.
    """
    shown = _THINKING.sub("", text).strip()
    fenced = _FENCE.match(shown)
    body = fenced.group(1) if fenced else shown
    try:
        found = json.loads(body, object_pairs_hook=_once)
        return form.model_validate(found, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(str(part) for part in problem["loc"]) or "the grade"
        told = f"{place}: {problem['msg']}"
    except (ValueError, RecursionError) as error:
        told = (
            f"the judge's answer is no JSON object: {error}" if shown else "the judge said nothing"
        )
    raise OutputError(f"{told} ({shown[:80]!r})", raw=text)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands there twice")
    return found


def _material(question: Question, sample: Sample, answer: Answer, images: tuple[Image, ...]) -> str:
    text = answer.text
    cut = f" (the first {_MOST_CHARACTERS} characters)" if len(text) > _MOST_CHARACTERS else ""
    lines = []
    if question.request:
        lines.append(f"Request: {quote(sample.prompt)}")
    if question.request and sample.goal:
        lines.append(f"What the request is after: {quote(sample.goal)}")
    if question.picture and sample.pictures:
        if sample.description is not None:
            lines.append(f"Description of the picture: {quote(sample.description)}")
        else:
            lines.append(f"Picture: {'shown above' if images else 'not shown to you'}")
    lines += [
        f"{name.replace('_', ' ').capitalize()}: {quote(sample.reference[name])}"
        for name in question.references
        if sample.reference.get(name)
    ]
    return "\n".join([*lines, f"Answer to grade{cut}: {quote(text[:_MOST_CHARACTERS])}"])


@cache
def _schema(form: type[BaseModel], *, bounded: bool) -> dict[str, Any]:
    schema: dict[str, Any] = _cleaned(form.model_json_schema())
    if bounded:
        schema["properties"]["reason"]["maxLength"] = _REASON_CHARACTERS
    return schema


def _cleaned(node: Any) -> Any:
    if isinstance(node, list):
        return [_cleaned(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {key: _cleaned(value) for key, value in node.items() if key not in _NOT_EVERYWHERE}


@cache
def _digest() -> str:
    hashes = [load_prompt(__package__, f"{name}.md").hash for name in ("frame", *prompts())]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:8]
