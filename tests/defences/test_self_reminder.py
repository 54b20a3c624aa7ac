"""Self-reminder: the query between two reminders, and nothing else."""

from __future__ import annotations

import pytest

from tests.defences.common import picture, said, seeing, user
from vlmguard.defences.self_reminder import SelfReminder
from vlmguard.engines import Sampling
from vlmguard.errors import InputError
from vlmguard.types import Chat, Message, Usage


async def test_the_query_stands_between_the_reminders() -> None:
    """One call, with the query and the picture untouched in it."""
    target = seeing(["fine"])
    image = picture()
    chat = Chat.of("What costs $5 and ${this}?", [image], system="Be brief.")
    reply = await SelfReminder().respond(chat, target, Sampling(max_tokens=7))
    [(sent, sampling)] = target.calls
    before, query, after = sent.messages[-1].text.split("\n\n")
    assert query == "What costs $5 and ${this}?"
    assert "responsible" in before
    assert "responsible" in after
    assert sent.messages[-1].images == (image,)
    assert sent.messages[0] == chat.messages[0]
    assert sampling == Sampling(max_tokens=7)
    assert (reply.trace.calls, reply.trace.defence_usage) == (0, Usage())
    assert reply.trace.sent == sent


async def test_only_the_last_user_message_is_wrapped() -> None:
    """Earlier turns stay as they are, also when the assistant's words come last."""
    chat = Chat(messages=(user("one"), said("ok"), user("two"), said("It")))
    prepared = await SelfReminder().prepare(chat)
    assert [message.text for message in prepared.chat.messages[:2]] == ["one", "ok"]
    assert "\n\ntwo\n\n" in prepared.chat.messages[2].text
    assert prepared.chat.messages[3] == said("It")


async def test_a_conversation_without_a_user_is_an_error() -> None:
    """There is nothing to wrap."""
    with pytest.raises(InputError, match="no user message"):
        await SelfReminder().prepare(Chat(messages=(Message(role="system", text="x"),)))
