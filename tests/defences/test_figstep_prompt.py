"""The FigStep prompt: a system prompt, beside the operator's own."""

from __future__ import annotations

from tests.defences.common import picture, seeing
from vlmguard.defences.figstep_prompt import FigStepPrompt
from vlmguard.types import Chat


async def test_the_prompt_becomes_the_system_message() -> None:
    """The user's message is the very same."""
    target = seeing(["fine"])
    chat = Chat.of("What does it say?", [picture()])
    reply = await FigStepPrompt().respond(chat, target)
    [(sent, _)] = target.calls
    assert [message.role for message in sent.messages] == ["system", "user"]
    assert "text in the picture" in sent.messages[0].text
    assert sent.messages[1:] == chat.messages
    assert reply.trace.calls == 0


async def test_the_operators_system_prompt_stays_before_it() -> None:
    """One system message with both."""
    prepared = await FigStepPrompt().prepare(Chat.of("hello", system="Be brief."))
    assert [message.role for message in prepared.chat.messages] == ["system", "user"]
    assert prepared.chat.messages[0].text.startswith("Be brief.\n\nLook for text")
