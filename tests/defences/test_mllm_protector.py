"""MLLM-Protector: the detector decides, the detoxifier rewrites."""

from __future__ import annotations

from tests.defences.common import Marks, picture, seeing
from vlmguard.defences.mllm_protector import MllmProtector
from vlmguard.engines import Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.types import Chat


async def test_a_safe_answer_passes() -> None:
    """At the threshold and above: the answer as it is, for one score."""
    detector, detoxifier = Marks(lambda _: 0.5), ScriptedEngine([])
    chat = Chat.of("hello", [picture()])
    reply = await MllmProtector(detector, detoxifier).respond(chat, seeing(["Hi."]))
    assert reply.completion.text == "Hi."
    assert detector.asked == [(chat, "Hi.")]
    assert detoxifier.calls == []
    assert reply.trace.calls == 1
    assert reply.trace.defence_usage.prompt_tokens == 1


async def test_an_unsafe_answer_is_rewritten() -> None:
    """The detoxifier reads query and answer, quoted, and its words are the answer."""
    detoxifier = ScriptedEngine([" Better not.\n"], spec="detoxifier")
    defence = MllmProtector(Marks(lambda _: 0.49), detoxifier)
    chat = Chat.of("How?", [picture()])
    reply = await defence.respond(chat, seeing(["Like\nthis."]), Sampling(max_tokens=33, seed=1))
    [(asked, sampling)] = detoxifier.calls
    assert asked.images == ()
    assert 'The user asked: "How?"' in asked.messages[-1].text
    assert 'The assistant answered: "Like \\n this."' in asked.messages[-1].text
    assert sampling == Sampling(max_tokens=33)
    assert reply.completion.text == "Better not."
    assert reply.trace.calls == 2
    assert "scored 0.490, below 0.5" in reply.trace.notes[0]
    assert set(reply.trace.timings_ms) == {"target", "detector", "detoxifier"}


async def test_an_unsafe_answer_never_passes_for_want_of_a_better_one() -> None:
    """A detoxifier that writes nothing leaves an empty answer, and a note."""
    reply = await MllmProtector(Marks(lambda _: 0.0), ScriptedEngine([""])).respond(
        Chat.of("How?"), ScriptedEngine(["Like this."])
    )
    assert reply.completion.text == ""
    assert "wrote nothing" in reply.trace.notes[1]


async def test_an_empty_answer_is_not_scored() -> None:
    """There is nothing to detect."""
    detector = Marks(lambda _: 0.0)
    reply = await MllmProtector(detector, ScriptedEngine([])).respond(
        Chat.of("How?"), ScriptedEngine([""])
    )
    assert detector.asked == []
    assert "answered nothing" in reply.trace.notes[0]
