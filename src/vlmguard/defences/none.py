"""No defence: the target as it is. What every other defence is compared with."""

from __future__ import annotations

from vlmguard.defences.base import Prepared, answer
from vlmguard.engines import Engine, Sampling
from vlmguard.perception import Perceiver
from vlmguard.types import Chat, Reply


class NoDefence:
    """Passes everything through.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name = "none"

    def __init__(self, perceiver: Perceiver | None = None) -> None:
        self._perceiver = perceiver

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as it is."""
        return Prepared(chat=chat)

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The target's own answer."""
        prepared = await self.prepare(chat)
        return await answer(prepared, target, sampling or Sampling(), perceiver=self._perceiver)
