"""The FigStep paper's defence (Gong et al., AAAI 2025): a system prompt about text in pictures."""

from __future__ import annotations

from vlmguard.defences.base import InputDefence, Prepared, last_user_turn
from vlmguard.prompts import load_prompt
from vlmguard.types import Chat, Message


class FigStepPrompt(InputDefence):
    """Tells the target to read the picture's text first, and not to follow it into harm.

    An operator's own system prompt stays, and this follows it in the same message, since many
    chat templates take only one.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name = "figstep-prompt"

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation under the system prompt."""
        last_user_turn(chat)
        text = load_prompt("vlmguard.defences", "figstep_prompt.md").text
        first = chat.messages[0]
        if first.role == "system":
            return Prepared(chat=chat.with_text(0, f"{first.text}\n\n{text}"))
        return Prepared(chat=Chat(messages=(Message(role="system", text=text), *chat.messages)))
