"""From a record to tokens: exactly what serving sends, and what the model is to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmguard.data.records import TrainingRecord
from vlmguard.errors import ConfigError
from vlmguard.images import load_image
from vlmguard.prompts import Prompt
from vlmguard.rewriting.format import (
    VERDICT_PREFIX,
    Assessment,
    Layout,
    render_assessment,
    render_request,
)
from vlmguard.training.base_model import BaseModel
from vlmguard.training.recipe import Recipe
from vlmguard.types import Chat, ImageEvidence, Message


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The answer's tokens, and how much each counts.

    Attributes:
        ids: of the answer, its end included.
        weights: one a token; 0 is not trained.
        verdict: index in ``ids`` of the token that decides.
    """

    ids: tuple[int, ...]
    weights: tuple[float, ...]
    verdict: int

    def of_verdict(self) -> Completion:
        """Cut after the verdict, and trained on it alone."""
        stop = self.verdict + 1
        weights = (*[0.0] * self.verdict, self.weights[self.verdict])
        return Completion(ids=self.ids[:stop], weights=weights, verdict=self.verdict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A record, ready for batches. Pictures stay on the disk until their batch is made.

    Attributes:
        record: its id.
        assessment: what the model is to answer.
        asked: system prompt and request.
        begun: the beginning of the answer that serving gives; ``""`` where it gives none.
        pictures: files that the request shows to a model that sees.
        prompt_ids: of ``asked`` and ``begun``; without the pictures' tokens.
        completion: the rest of the answer.
        length: tokens of all, pictures included.
    """

    record: str
    assessment: Assessment
    asked: Chat
    begun: str
    pictures: tuple[Path, ...]
    prompt_ids: tuple[int, ...]
    completion: Completion
    length: int

    @property
    def risky(self) -> bool:
        """The verdict."""
        return self.assessment.verdict == "risky"

    def of_verdict(self) -> Example:
        """The same, trained for its verdict alone."""
        completion = self.completion.of_verdict()
        length = self.length - len(self.completion.ids) + len(completion.ids)
        return replace(self, completion=completion, length=length)

    def chat(self, begun: str | None = None) -> Chat:
        """What serving sends, with the pictures.

        Args:
            begun: another beginning of the answer.

        Raises:
            InputError: a picture cannot be read.
        """
        *before, request = self.asked.messages
        images = tuple(load_image(path) for path in self.pictures)
        shown = Message(role="user", text=request.text, images=images)
        return _continued(Chat(messages=(*before, shown)), self.begun if begun is None else begun)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictTokens:
    """The ids of the token at the verdict's place that tell the two verdicts apart."""

    safe: int
    risky: int


class Renderer:
    """Makes examples for one model, layout and system prompt.

    Args:
        base: the model.
        recipe: layout, weights and the size of pictures.
        prompt: the system prompt that it is served under.

    Raises:
        ConfigError: the model's tokenizer cannot tell the verdicts apart by one token.
    """

    def __init__(self, base: BaseModel, recipe: Recipe, prompt: Prompt) -> None:
        self._base = base
        self._layout = recipe.layout
        self._loss = recipe.loss
        self._max_pixels = recipe.max_pixels
        self._system = Message(role="system", text=prompt.text)
        begins = recipe.layout is Layout.VERDICT_FIRST and recipe.loss.prefix_weight == 0
        self._begun = VERDICT_PREFIX if begins else ""
        self.verdicts = self._verdict_tokens()

    def example(
        self,
        record: TrainingRecord,
        *,
        pictures: Sequence[Path] = (),
        evidence: Sequence[ImageEvidence] = (),
    ) -> Example:
        """A record as tokens.

        Args:
            record: with or without pictures.
            pictures: for models that see.
            evidence: for models that do not.

        Raises:
            EngineRejected: the text contains a control token of the model.
            InputError: a picture cannot be decoded.
        """
        earlier = [turn.as_message() for turn in record.earlier]
        turn = Message(role="user", text=record.prompt)
        request = render_request(turn, earlier=earlier, evidence=evidence)
        asked = Chat(messages=(self._system, Message(role="user", text=request)))
        assessment = record.assessment()
        # Pictures take no part in where the answer is cut, and much time: not here.
        prompt_ids, completion = self._split(asked, render_assessment(assessment, self._layout))
        example = Example(
            record=record.id,
            assessment=assessment,
            asked=asked,
            begun=self._begun,
            pictures=tuple(pictures),
            prompt_ids=tuple(prompt_ids),
            completion=completion,
            length=len(prompt_ids) + len(completion.ids),
        )
        return self._measured(example) if pictures else example

    def _measured(self, example: Example) -> Example:
        """With the length that it has with its pictures."""
        encoded = self._base.format.encode(example.chat(), max_pixels=self._max_pixels)
        length = encoded["input_ids"].shape[1] + len(example.completion.ids)
        return replace(example, length=length)

    def _split(self, asked: Chat, answer: str) -> tuple[list[int], Completion]:
        """Prompt and completion, cut where serving cuts."""
        place = _verdict_place(answer)
        prompt = self._ids(asked, self._begun)
        before = self._ids(asked, answer[: place.start])
        through = self._ids(asked, answer[: place.stop])
        whole = self._ids(asked, answer)
        for part in (prompt, before):
            if whole[: len(part)] != part:
                raise ConfigError(
                    f"the tokenizer of {self._base.facts.name} joins the verdict with what stands "
                    f"before it, so the {self._layout} layout cannot be trained for it"
                )
        start, verdict = len(prompt), len(before)
        stop = max(len(through), verdict + 1)
        weights = [1.0] * (len(whole) - start)
        if self._layout is Layout.VERDICT_FIRST:
            weights[: verdict - start] = [self._loss.prefix_weight] * (verdict - start)
        weights[verdict - start : stop - start] = [self._loss.verdict_weight] * (stop - verdict)
        ids = (*whole[start:], self._base.end[0])
        return prompt, Completion(ids=ids, weights=(*weights, 1.0), verdict=verdict - start)

    def _verdict_tokens(self) -> VerdictTokens:
        asked = Chat.of("Prompt: none", system=self._system.text)
        place = len(self._ids(asked, VERDICT_PREFIX))
        safe, risky = (
            self._ids(asked, VERDICT_PREFIX + verdict)[place] for verdict in ("safe", "risky")
        )
        if safe == risky:
            raise ConfigError(
                f"the tokenizer of {self._base.facts.name} begins 'safe' and 'risky' with the same "
                "token, so no probability can be read there"
            )
        return VerdictTokens(safe=safe, risky=risky)

    def _ids(self, asked: Chat, answer: str) -> list[int]:
        encoded = self._base.format.encode(_continued(asked, answer))
        ids: list[int] = encoded["input_ids"][0].tolist()
        return ids


def _continued(asked: Chat, answer: str) -> Chat:
    """Asked to go on with this answer; asked to begin one, when there is none."""
    return asked.then(Message(role="assistant", text=answer)) if answer else asked


def _verdict_place(answer: str) -> slice:
    """Where the verdict's word stands in an assessment."""
    # Quotation marks in the strings of an assessment are escaped, so this is the key itself.
    key = '"verdict": "'
    start = answer.index(key) + len(key)
    return slice(start, answer.index('"', start))
