"""Self-reminder (Xie et al., Nature Machine Intelligence 2023): the query between two reminders."""

from __future__ import annotations

from vlmguard.defences.base import InputDefence, Prepared, last_user_turn
from vlmguard.prompts import load_prompt
from vlmguard.types import Chat


class SelfReminder(InputDefence):
    """Reminds the target, before and after the user's last message, to be responsible.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name = "self-reminder"

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation with the reminders around its last user message."""
        last = last_user_turn(chat)
        prompt = load_prompt("vlmguard.defences", "self_reminder.md")
        return Prepared(chat=chat.with_text(last, prompt.fill(query=chat.messages[last].text)))
