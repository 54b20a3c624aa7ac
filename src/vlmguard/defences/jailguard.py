"""JailGuard (Zhang et al., 2023): attacks are brittle, so answers to changed copies diverge.

The target answers eight slightly changed copies of the request. Every answer's likeness to all
others is a distribution; where two of them are further apart than a threshold (Kullback-Leibler),
the request counts as an attack and is refused.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from vlmguard.defences.base import REFUSAL, last_user_turn
from vlmguard.defences.embedding import Embedder, cosine
from vlmguard.defences.ledger import Ledger, Stopwatch
from vlmguard.defences.mutators import mutate_image, mutate_text
from vlmguard.engines import Engine, Sampling
from vlmguard.errors import MissingExtra
from vlmguard.perception import Perceiver
from vlmguard.types import Chat, Completion, Message, Reply

VARIANTS = 8
THRESHOLD = 0.025
"""The paper's, for requests with pictures."""
TEXT_THRESHOLD = 0.02
"""The published code's, for requests without."""

_COMPARED = 100  # characters of every answer, as the published code does for pictures
_TRIES = 4 * VARIANTS
_LEAST = 0.01  # similarity, so that logarithms stay finite

Matrix = list[list[float]]


class JailGuard:
    """Refuses requests whose answers change when the request is changed a little.

    A request that is no attack gets the answer that is most like all others (the paper only
    detects, and leaves open which answer to give).

    Args:
        embedder: compares answers; by default character statistics (scikit-learn).
        threshold: the most divergence of a harmless request, in nats; by default the paper's.
        perceiver: describes pictures to a target that cannot see.
    """

    name = "jailguard"

    def __init__(
        self,
        embedder: Embedder | None = None,
        *,
        threshold: float | None = None,
        perceiver: Perceiver | None = None,
    ) -> None:
        self._embedder = embedder
        self._threshold = threshold
        self._perceiver = perceiver

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The answer that agrees most with the others, or a refusal.

        Raises:
            InputError: there is no user message, or a picture cannot be decoded.
            EngineError: the target failed.
            MissingExtra: scikit-learn is not installed and no embedder is given.
        """
        last = last_user_turn(chat)
        sampling = sampling or Sampling()
        ledger = Ledger(chat, target, self._perceiver)
        with ledger.timed("mutation"):
            turns = await asyncio.to_thread(_variants, chat.messages[last])
        chats = [
            Chat(messages=(*chat.messages[:last], turn, *chat.messages[last + 1 :]))
            for turn in turns
        ]
        answers = await _ask(chats, sampling, ledger)
        sees = bool(chat.messages[last].images)
        texts = [answer.text[:_COMPARED] if sees else answer.text for answer in answers]
        with ledger.timed("divergence"):
            likeness = await self._likeness(texts, ledger)
            found = divergence(likeness)
        threshold = self._threshold
        if threshold is None:
            threshold = THRESHOLD if sees else TEXT_THRESHOLD
        attack = found > threshold
        ledger.note(
            f"JailGuard: the answers diverge by {found:.4f}, "
            f"{'over' if attack else 'not over'} {threshold:g}."
        )
        if attack:
            refused = Completion(text=REFUSAL, finish_reason="stop", model="vlmguard")
            return ledger.reply(refused, None)
        agreement = [sum(row) for row in likeness]
        best = agreement.index(max(agreement))
        return ledger.reply(answers[best], chats[best])

    async def _likeness(self, texts: Sequence[str], ledger: Ledger) -> Matrix:
        """Similarity 0..1 of every answer with every other."""
        if self._embedder is None:
            return await asyncio.to_thread(character_likeness, texts)
        vectors = await self._embedder.embed_texts(texts)
        ledger.count()
        return [[cosine(one, other) for other in vectors] for one in vectors]


async def _ask(chats: list[Chat], sampling: Sampling, ledger: Ledger) -> list[Completion]:
    """All answers, asked for side by side.

    One of the calls stands for the target's own. How long that one would have taken alone nobody
    can tell, since they wait for each other: an even share of the time is put down for it.
    """
    watch = Stopwatch()
    answers = await asyncio.gather(*(ledger.target.generate(chat, sampling) for chat in chats))
    whole = watch.elapsed_ms()
    share = whole / len(chats)
    ledger.count_first(answers[0].usage, share)
    ledger.spent("other variants", whole - share)
    for completion in answers[1:]:
        ledger.count(completion.usage)
    return list(answers)


def _variants(turn: Message) -> list[Message]:
    """Different copies, as far as the request allows: of one letter there are not eight."""
    found: list[Message] = []
    for seed in range(_TRIES):
        copy = _variant(turn, str(seed))
        if copy not in found:
            found.append(copy)
        if len(found) == VARIANTS:
            return found
    return [found[number % len(found)] for number in range(VARIANTS)]


def _variant(turn: Message, seed: str) -> Message:
    """A copy with changed pictures, or with changed words where it has no pictures."""
    if turn.images:
        return replace(turn, images=tuple(map(partial(mutate_image, seed=seed), turn.images)))
    return replace(turn, text=mutate_text(turn.text, seed))


def character_likeness(texts: Sequence[str]) -> Matrix:
    """Cosines of the frequencies of one, two and three characters in a row.

    The threshold was set on averaged word vectors, under which all English sentences are rather
    alike. Frequencies of characters share that; those of words do not, and with them harmless
    answers in different words would count as attacks. Answers of one word beside answers of a
    sentence still diverge too much.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer  # noqa: PLC0415  # slow
    except ImportError:
        raise MissingExtra("JailGuard's comparison of answers", "eval") from None

    if not any(text.strip() for text in texts):
        return [[1.0] * len(texts) for _ in texts]
    rows = TfidfVectorizer(analyzer="char", ngram_range=(1, 3), use_idf=False).fit_transform(texts)
    likeness: Matrix = (rows @ rows.T).toarray().tolist()
    return likeness


def divergence(likeness: Matrix) -> float:
    """The largest Kullback-Leibler divergence, in nats, between any two rows made distributions."""
    rows = []
    for row in likeness:
        kept = [max(value, _LEAST) for value in row]
        total = math.fsum(kept)
        rows.append([value / total for value in kept])
    return max(
        math.fsum(p * math.log(p / q) for p, q in zip(one, other, strict=True))
        for one in rows
        for other in rows
    )
