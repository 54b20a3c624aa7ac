"""AdaShield (Wang et al., ECCV 2024): a defence prompt between the query and its repetition.

AdaShield-S uses one fixed prompt. AdaShield-A takes the prompt of the nearest example in a pool
that `vlmguard.defences.adashield_training` made.
"""

from __future__ import annotations

from vlmguard.defences.adashield_pool import Match, Pool
from vlmguard.defences.base import InputDefence, Prepared, last_user_turn
from vlmguard.defences.embedding import Embedder, open_embedder
from vlmguard.defences.ledger import Stopwatch
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.types import Chat

THRESHOLD = 0.7
"""The paper's. (Its published benign run sets one above 1, so that no prompt is ever added.)"""


def static_prompt() -> str:
    """The prompt of AdaShield-S, which is also where training starts."""
    return load_prompt("vlmguard.defences", "adashield_static.md").text


def wrap(chat: Chat, defence: str) -> Chat:
    """The last user message as query, defence prompt, query.

    Raises:
        InputError: there is no user message.
    """
    last = last_user_turn(chat)
    query = chat.messages[last].text
    return chat.with_text(last, f"{query}\n\n{defence}\n\n{query}")


class AdaShieldS(InputDefence):
    """Adds the fixed defence prompt.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name = "adashield-s"

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation with its last user message wrapped."""
        return Prepared(chat=wrap(chat, static_prompt()))


class AdaShieldA(InputDefence):
    """Adds the defence prompt of the nearest example in a pool, where one is near enough.

    A request without a picture has no neighbours in a pool of pictures and stays as it is.

    Args:
        pool: of prompts with the embeddings of their examples.
        threshold: the least mean of picture's and text's cosine, -1..1, that counts as near.
        embedder: must be the one that made the pool's embeddings; by default opened from the
            pool's ``embedder``.
        perceiver: describes pictures to a target that cannot see.

    Raises:
        ConfigError: the pool's embedder cannot be opened.
    """

    name = "adashield-a"

    def __init__(
        self,
        pool: Pool,
        *,
        threshold: float = THRESHOLD,
        embedder: Embedder | None = None,
        perceiver: Perceiver | None = None,
    ) -> None:
        super().__init__(perceiver)
        self._pool = pool
        self._threshold = threshold
        self._embedder = embedder or open_embedder(pool.embedder)

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation, wrapped where the pool has a neighbour; the notes say which."""
        last = last_user_turn(chat)
        turn = chat.messages[last]
        if not turn.images:
            return Prepared(chat=chat, notes=("AdaShield-A: no picture, so no prompt was added.",))
        watch = Stopwatch()
        [image] = await self._embedder.embed_images(turn.images[:1])
        [text] = await self._embedder.embed_texts([turn.text])
        match = self._pool.nearest(image, text)
        near = match.similarity > self._threshold
        return Prepared(
            chat=wrap(chat, match.entry.prompt) if near else chat,
            timings_ms={"retrieval": watch.elapsed_ms()},
            calls=1,
            notes=(_told(match, self._threshold),),
        )


def _told(match: Match, threshold: float) -> str:
    near = match.similarity > threshold
    done = "its prompt was added" if near else "so no prompt was added"
    return (
        f"AdaShield-A: the nearest example is of {match.entry.scenario!r} at "
        f"{match.similarity:.3f} ({'over' if near else 'not over'} {threshold:g}), {done}."
    )
