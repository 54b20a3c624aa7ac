"""No defence: the target as it is. What every other defence is compared with."""

from __future__ import annotations

from vlmguard.defences.base import InputDefence, Prepared
from vlmguard.types import Chat


class NoDefence(InputDefence):
    """Passes everything through.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name = "none"

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as it is."""
        return Prepared(chat=chat)
