"""ETA (Ding et al., ICLR 2025), "evaluating then aligning": unsafe answers are written anew.

An answer counts as unsafe when the reward model thinks little of it *and* the picture resembles a
fixed description of unsafe pictures. It is then begun again with a prefix, and of five versions of
every sentence the best by reward, and by likeness to the picture, goes on.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from vlmguard.defences.base import last_user_turn
from vlmguard.defences.embedding import Embedder, Vector, cosine
from vlmguard.defences.ledger import Ledger
from vlmguard.defences.scoring import Scorer
from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.types import Chat, Completion, Image, Message, Reply

PREFIX = "As an AI assistant"
"""The paper's; how a new answer begins."""

_SENTENCE_TOKENS = 70  # as in the paper's code
_ENDINGS = ("!", "?", "…", ":", ")", "]", "}", '"', "`")


@dataclass(frozen=True, slots=True, kw_only=True)
class EtaSettings:
    """The paper's numbers.

    Attributes:
        reward_threshold: an answer rewarded above it is safe. On the reward model's scale; the
            paper's is ArmoRM's.
        clip_threshold: a picture whose cosine with the unsafe description is below it is safe.
        candidates: versions of every sentence.
        temperature: of the versions.
    """

    reward_threshold: float = 0.06
    clip_threshold: float = 0.16
    candidates: int = 5
    temperature: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """A version of the next sentence."""

    text: str
    ended: bool
    tokens: int


class Eta:
    """Answers greedily, evaluates, and aligns what fails.

    Args:
        reward: scores answers to a fixed request for safe ones.
        clip: compares pictures with texts.
        settings: the paper's numbers.
        perceiver: describes pictures to a target that cannot see.
    """

    name = "eta"

    def __init__(
        self,
        reward: Scorer,
        clip: Embedder,
        *,
        settings: EtaSettings | None = None,
        perceiver: Perceiver | None = None,
    ) -> None:
        self._reward = reward
        self._clip = clip
        self._settings = settings or EtaSettings()
        self._perceiver = perceiver
        self._request = Chat.of(load_prompt("vlmguard.defences", "eta_request.md").text)

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The greedy answer, or one written sentence by sentence.

        On a target that cannot continue a prefix, whole answers stand for sentences, and the
        trace says so. An empty answer is not evaluated.

        Raises:
            InputError: there is no user message.
            EngineError, OutputError: target or scorer failed.
        """
        last = last_user_turn(chat)
        sampling = sampling or Sampling()
        ledger = Ledger(chat, target, self._perceiver)
        first = await ledger.first(chat, replace(sampling, temperature=0.0))
        if not first.text.strip():
            ledger.note("ETA: the target answered nothing, so there was nothing to evaluate.")
            return ledger.reply(first, chat)
        images = chat.messages[last].images
        with ledger.timed("evaluation"):
            reward = await ledger.score(self._reward, self._request, first.text)
            if reward > self._settings.reward_threshold:
                return ledger.reply(first, chat)
            picture = await self._embed(images[0], ledger) if images else None
            if picture is not None and await self._looks_harmless(picture, ledger):
                return ledger.reply(first, chat)
        ledger.note("ETA: the answer failed the evaluation and was written anew.")
        if Capability.PREFIX in ledger.target.capabilities:
            with ledger.timed("alignment"):
                second = await self._by_sentence(chat, picture, ledger, sampling)
            return ledger.reply(second, chat)
        ledger.note(
            "ETA: the target cannot continue a prefix, so the best of "
            f"{self._settings.candidates} whole answers was taken, not of every sentence."
        )
        prompt = load_prompt("vlmguard.defences", "eta_whole_answer.md")
        asked = chat.with_text(last, prompt.fill(query=chat.messages[last].text, prefix=PREFIX))
        with ledger.timed("alignment"):
            second = await self._whole(asked, ledger, sampling)
        return ledger.reply(second, asked)

    async def _embed(self, image: Image, ledger: Ledger) -> Vector:
        [vector] = await self._clip.embed_images([image])
        ledger.count()
        return vector

    async def _relevance(self, texts: list[str], picture: Vector, ledger: Ledger) -> list[float]:
        """The cosine of each text with the picture."""
        vectors = await self._clip.embed_texts(texts)
        ledger.count()
        return [cosine(vector, picture) for vector in vectors]

    async def _looks_harmless(self, picture: Vector, ledger: Ledger) -> bool:
        """Whether the picture is unlike the description of unsafe ones."""
        unsafe = load_prompt("vlmguard.defences", "eta_unsafe_picture.md").text
        [likeness] = await self._relevance([unsafe], picture, ledger)
        return likeness < self._settings.clip_threshold

    async def _by_sentence(
        self, chat: Chat, picture: Vector | None, ledger: Ledger, sampling: Sampling
    ) -> Completion:
        """The answer of the best sentences."""
        text, tokens, index = PREFIX, 0, 1
        while (left := sampling.max_tokens - tokens) > 0:
            begun = chat.then(Message(role="assistant", text=text))
            one = replace(
                sampling,
                max_tokens=min(left, _SENTENCE_TOKENS),
                temperature=self._settings.temperature,
                stop=(".", *sampling.stop),
            )
            drawn = await self._draw(begun, one, ledger, first_draw=index)
            versions = [_candidate(completion, one.max_tokens) for completion in drawn]
            best = await self._best(text, versions, picture, index, ledger)
            text, tokens, index = text + best.text, tokens + best.tokens, index + 1
            if best.ended:
                return Completion(text=text, finish_reason="stop", model=ledger.target.spec)
        return Completion(text=text, finish_reason="length", model=ledger.target.spec)

    async def _draw(
        self, chat: Chat, sampling: Sampling, ledger: Ledger, *, first_draw: int
    ) -> list[Completion]:
        """As many answers as there are candidates, under different seeds where one is set."""
        count = self._settings.candidates
        seeds = [
            None if sampling.seed is None else sampling.seed + first_draw * count + draw
            for draw in range(count)
        ]
        return list(
            await asyncio.gather(
                *(ledger.call(chat, replace(sampling, seed=seed)) for seed in seeds)
            )
        )

    async def _best(
        self,
        text: str,
        versions: list[_Candidate],
        picture: Vector | None,
        index: int,
        ledger: Ledger,
    ) -> _Candidate:
        """By the reward of the answer so far; from the second sentence on, also by likeness."""
        scores = await asyncio.gather(
            *(ledger.score(self._reward, self._request, text + each.text) for each in versions)
        )
        relevance = [0.0] * len(versions)
        if picture is not None and index > 1 and not any(each.ended for each in versions):
            sentences = [each.text.strip() for each in versions]
            relevance = await self._relevance(sentences, picture, ledger)
        total = [score + like / index for score, like in zip(scores, relevance, strict=True)]
        return versions[total.index(max(total))]

    async def _whole(self, asked: Chat, ledger: Ledger, sampling: Sampling) -> Completion:
        """The best of several whole answers."""
        drawn = await self._draw(
            asked, replace(sampling, temperature=self._settings.temperature), ledger, first_draw=1
        )
        scores = await asyncio.gather(
            *(ledger.score(self._reward, self._request, each.text) for each in drawn)
        )
        return drawn[scores.index(max(scores))]


def _candidate(completion: Completion, max_tokens: int) -> _Candidate:
    """A sentence, or the end of the answer.

    An engine does not say whether it stopped at the full stop or at the end. It was the end when
    there is nothing, or when other punctuation closes the text; a full stop that was put behind a
    true end is followed by nothing in the next round.
    """
    text = completion.text
    tokens = max(1, completion.usage.completion_tokens)
    if completion.finish_reason == "length":
        return _Candidate(text=text, ended=False, tokens=min(tokens, max_tokens))
    ended = not text.strip() or text.rstrip().endswith(_ENDINGS)
    return _Candidate(text=text.rstrip() if ended else f"{text}.", ended=ended, tokens=tokens)
