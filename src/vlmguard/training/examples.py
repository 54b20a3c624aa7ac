"""From a record to tokens: exactly what serving sends, and what the model is to answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmguard.data.records import TrainingRecord
from vlmguard.errors import ConfigError
from vlmguard.prompts import Prompt
from vlmguard.rewriting.format import (
    VERDICT_PREFIX,
    Layout,
    render_assessment,
    render_request,
)
from vlmguard.training.base_model import BaseModel
from vlmguard.types import Chat, Image, ImageEvidence, Message


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A record, ready for batches.

    Attributes:
        record: its id.
        chat: system prompt, request and the beginning of the answer, as serving sends it; with
            pictures for models that see.
        prompt_ids: the same as tokens; for models that see, without the pictures' tokens.
        completion: the rest of the answer.
        risky: the verdict.
        length: tokens of all, pictures included.
    """

    record: str
    chat: Chat
    prompt_ids: tuple[int, ...]
    completion: Completion
    risky: bool
    length: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VerdictTokens:
    """The ids of the token at the verdict's place that tell the two verdicts apart."""

    safe: int
    risky: int


class Renderer:
    """Makes examples for one model, layout and system prompt.

    Args:
        base: the model.
        layout: what it learns to write.
        prompt: the system prompt that it is served under.
        verdict_weight: of the tokens of the verdict.
        prefix_weight: of `VERDICT_PREFIX`, in the verdict-first layout.

    Raises:
        ConfigError: the model's tokenizer cannot tell the verdicts apart by one token.
    """

    def __init__(
        self,
        base: BaseModel,
        *,
        layout: Layout,
        prompt: Prompt,
        verdict_weight: float,
        prefix_weight: float = 0.0,
    ) -> None:
        self._base = base
        self._layout = layout
        self._system = Message(role="system", text=prompt.text)
        self._verdict_weight = verdict_weight
        self._prefix_weight = prefix_weight
        self.verdicts = self._verdict_tokens()

    def chat(
        self, record: TrainingRecord, images: Sequence[Image], evidence: Sequence[ImageEvidence]
    ) -> Chat:
        """What the rewriter is sent about a record, without the beginning of the answer."""
        earlier = [turn.as_message() for turn in record.earlier]
        turn = Message(role="user", text=record.prompt, images=tuple(images))
        request = render_request(turn, earlier=earlier, evidence=evidence)
        user = Message(role="user", text=request, images=tuple(images))
        return Chat(messages=(self._system, user))

    def example(
        self,
        record: TrainingRecord,
        *,
        images: Sequence[Image] = (),
        evidence: Sequence[ImageEvidence] = (),
    ) -> Example:
        """The record as tokens.

        Args:
            images: for models that see.
            evidence: for models that do not.

        Raises:
            EngineRejected: the text contains a control token of the model.
            InputError: a picture cannot be decoded.
        """
        chat = self.chat(record, images, evidence)
        text = render_assessment(record.assessment(), self._layout)
        # Pictures take no part in where the answer is cut, and much time: left out here.
        blind = Chat(messages=(self._system, Message(role="user", text=chat.messages[1].text)))
        prompt_ids, completion = self._split(blind, text, risky=record.verdict == "risky")
        begun = self._begin(chat)
        pictures = len(self._ids(begun)) - len(prompt_ids) if images else 0
        return Example(
            record=record.id,
            chat=begun,
            prompt_ids=tuple(prompt_ids),
            completion=completion,
            risky=record.verdict == "risky",
            length=len(prompt_ids) + pictures + len(completion.ids),
        )

    def _begin(self, chat: Chat) -> Chat:
        """With the part of the answer that is given, not trained."""
        if self._layout is Layout.VERDICT_FIRST and self._prefix_weight == 0:
            return chat.then(Message(role="assistant", text=VERDICT_PREFIX))
        return chat

    def _split(self, chat: Chat, text: str, *, risky: bool) -> tuple[list[int], Completion]:
        """Prompt and completion, cut where serving cuts: what is continued is tokenized alone."""
        prompt = self._ids(self._begin(chat))
        whole = self._ids(chat.then(Message(role="assistant", text=text)))
        until = self._ids(chat.then(Message(role="assistant", text=_until_verdict(text))))
        after = self._ids(chat.then(Message(role="assistant", text=_with_verdict(text))))
        for part in (prompt, until):
            if whole[: len(part)] != part:
                raise ConfigError(
                    f"the tokenizer of {self._base.facts.name} joins the verdict with what stands "
                    f"before it, so the {self._layout} layout cannot be trained for it"
                )
        start, verdict, end = len(prompt), len(until), max(len(after), len(until) + 1)
        weights = [1.0] * (len(whole) - start)
        if self._layout is Layout.VERDICT_FIRST:
            weights[: verdict - start] = [self._prefix_weight] * (verdict - start)
        weights[verdict - start : end - start] = [self._verdict_weight] * (end - verdict)
        ids = (*whole[start:], self._base.end[0])
        return prompt, Completion(ids=ids, weights=(*weights, 1.0), verdict=verdict - start)

    def _verdict_tokens(self) -> VerdictTokens:
        chat = Chat.of("Prompt: none", system=self._system.text)
        found: list[int] = []
        until = self._ids(chat.then(Message(role="assistant", text=VERDICT_PREFIX)))
        for verdict in ("safe", "risky"):
            whole = self._ids(chat.then(Message(role="assistant", text=VERDICT_PREFIX + verdict)))
            found.append(whole[len(until)])
        if found[0] == found[1]:
            raise ConfigError(
                f"the tokenizer of {self._base.facts.name} begins 'safe' and 'risky' with the same "
                "token, so no probability can be read there"
            )
        return VerdictTokens(safe=found[0], risky=found[1])

    def _ids(self, chat: Chat) -> list[int]:
        encoded = self._base.format.encode(chat)
        ids: list[int] = encoded["input_ids"][0].tolist()
        return ids


def _until_verdict(text: str) -> str:
    return text[: _verdict_start(text)]


def _with_verdict(text: str) -> str:
    return text[: text.index('"', _verdict_start(text))]


def _verdict_start(text: str) -> int:
    # Quotation marks in the strings of an assessment are escaped, so this is the key itself.
    key = '"verdict": "'
    return text.index(key) + len(key)
