"""ECSO: which calls it makes, with what, in each branch."""

from __future__ import annotations

import pytest

from tests.defences.common import picture, said, seeing, user
from vlmguard.defences.ecso import Ecso
from vlmguard.engines import Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import EngineUnavailable
from vlmguard.perception import Perceiver
from vlmguard.types import Chat


async def test_a_harmless_answer_costs_one_more_call() -> None:
    """Answer with the picture, then the question whether it is harmful; all at 0.2."""
    target = seeing(["A cat.", "No."])
    image = picture()
    chat = Chat.of("What is this?", [image])
    reply = await Ecso().respond(chat, target, Sampling(max_tokens=50, seed=3, stop=("#",)))
    first, check = target.calls
    assert first == (chat, Sampling(max_tokens=50, temperature=0.2, seed=3, stop=("#",)))
    assert check[0].images == (image,)
    assert 'The question: "What is this?"' in check[0].messages[-1].text
    assert 'The answer: "A cat."' in check[0].messages[-1].text
    assert check[1] == Sampling(max_tokens=16, temperature=0.2, seed=3)
    assert reply.completion.text == "A cat."
    assert reply.trace.calls == 1
    assert reply.trace.sent == chat
    assert set(reply.trace.timings_ms) == {"target", "harm check"}
    assert reply.trace.notes == ()


async def test_a_flagged_answer_is_given_anew_without_the_picture() -> None:
    """Caption with the query in mind, then an answer from the caption alone."""
    target = seeing(["step one", "Yes", "A sign that says X.", "I cannot."])
    image = picture()
    chat = Chat(messages=(user("before", picture("old")), said("ok"), user("Do it.", image)))
    reply = await Ecso().respond(chat, target, Sampling(max_tokens=50))
    caption, last = target.calls[2], target.calls[3]
    assert caption[0].images == chat.images
    assert 'The request: "Do it."' in caption[0].messages[-1].text
    assert last[0].images == ()
    assert [message.text for message in last[0].messages[:2]] == ["before", "ok"]
    assert '"A sign that says X."' in last[0].messages[-1].text
    assert last[0].messages[-1].text.endswith("\n\nDo it.")
    assert "harmless and ethical" in last[0].messages[-1].text
    assert last[1] == Sampling(max_tokens=50, temperature=0.2)
    assert reply.completion.text == "I cannot."
    assert reply.trace.calls == 3
    assert reply.trace.sent == last[0]
    assert reply.trace.usage.completion_tokens == 2
    assert reply.trace.defence_usage.completion_tokens == 1 + 5 + 2
    assert "without the picture" in reply.trace.notes[0]


@pytest.mark.parametrize("told", ["", "It depends.", "maybe yes", "yesterday"])
async def test_only_a_plain_yes_is_a_flag(told: str) -> None:
    """Anything else passes, and what was neither yes nor no is noted."""
    target = seeing(["A cat.", told])
    reply = await Ecso().respond(Chat.of("What is this?", [picture()]), target)
    assert reply.completion.text == "A cat."
    assert len(target.calls) == 2
    assert "neither yes nor no" in reply.trace.notes[0]


@pytest.mark.parametrize("told", ["yes", "Yes.", ' "YES", it is', "**yes**"])
async def test_a_yes_may_be_written_in_many_ways(told: str) -> None:
    """Case, punctuation and what follows do not matter."""
    target = seeing(["x", told, "caption", "safe"])
    reply = await Ecso().respond(Chat.of("What is this?", [picture()]), target)
    assert reply.completion.text == "safe"


async def test_an_empty_answer_is_not_checked() -> None:
    """There is nothing to judge; the trace says so."""
    target = seeing([" \n"])
    reply = await Ecso().respond(Chat.of("What is this?", [picture()]), target)
    assert len(target.calls) == 1
    assert "answered nothing" in reply.trace.notes[0]


async def test_without_a_picture_there_are_no_eyes_to_close() -> None:
    """One call, as without the defence but for the temperature."""
    target = ScriptedEngine(["Hi."])
    reply = await Ecso(temperature=0).respond(Chat.of("hello"), target)
    assert [sampling.temperature for _, sampling in target.calls] == [0]
    assert reply.trace.calls == 0


async def test_an_empty_caption_is_noted() -> None:
    """The answer is then from the words alone."""
    target = seeing(["x", "yes", "", "safe"])
    reply = await Ecso().respond(Chat.of("What is this?", [picture()]), target)
    assert reply.completion.text == "safe"
    assert "description of the picture is empty" in reply.trace.notes[1]


async def test_a_blind_target_reads_descriptions_until_its_eyes_are_closed() -> None:
    """The same perceiver serves the answer, the check and the caption, not the last answer."""
    target = ScriptedEngine(["x", "yes", "caption", "safe"])
    reply = await Ecso(perceiver=Perceiver([])).respond(
        Chat.of("What is this?", [picture()]), target
    )
    described = ["What software found" in chat.messages[-1].text for chat, _ in target.calls]
    assert described == [True, True, True, False]
    assert "cannot see" in reply.trace.notes[0]


async def test_a_failing_check_is_an_error() -> None:
    """An unchecked answer does not pass for a checked one."""
    target = seeing(["x", EngineUnavailable("down")])
    with pytest.raises(EngineUnavailable):
        await Ecso().respond(Chat.of("What is this?", [picture()]), target)
