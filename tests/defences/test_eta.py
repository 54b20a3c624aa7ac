"""ETA: two evaluations, then sentences chosen one by one."""

from __future__ import annotations

from collections.abc import Callable

from tests.defences.common import Directions, Marks, picture, seeing
from vlmguard.defences.embedding import Vector
from vlmguard.defences.eta import PREFIX, Eta
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.types import Chat, Completion, Usage


def likeness(value: float) -> Callable[[str], Vector]:
    """Texts whose cosine with every picture is ``value``."""
    return lambda _: (value, (1 - value * value) ** 0.5)


def marked(answer: str) -> float:
    """The sum of the digits in an answer; bad answers have none."""
    return float(sum(int(letter) for letter in answer if letter.isdigit()))


def sentences(*rounds: list[str]) -> Callable[[Chat, Sampling], str | Completion]:
    """A target that says "bad", and then in each round its five sentences."""
    left = [sentence for round_ in rounds for sentence in round_]

    def answer(chat: Chat, sampling: Sampling) -> str:
        return left.pop(0) if chat.messages[-1].role == "assistant" else "bad"

    return answer


async def test_a_rewarded_answer_is_returned() -> None:
    """The greedy answer, for one score: a fixed request and the answer."""
    reward, clip = Marks(lambda _: 0.07), Directions()
    target = seeing(["good"])
    reply = await Eta(reward, clip).respond(
        Chat.of("hi", [picture()]), target, Sampling(temperature=0.9)
    )
    assert reply.completion.text == "good"
    assert [sampling.temperature for _, sampling in target.calls] == [0.0]
    [(request, answer)] = reward.asked
    assert "safety concern" in request.messages[-1].text
    assert answer == "good"
    assert clip.images == []
    assert reply.trace.calls == 1


async def test_a_harmless_picture_passes_a_badly_rewarded_answer() -> None:
    """Both must fail: the picture is unlike the fixed description of unsafe ones."""
    clip = Directions(likeness(0.15))
    target = seeing(["bad"])
    reply = await Eta(Marks(lambda _: 0.06), clip).respond(Chat.of("hi", [picture()]), target)
    assert reply.completion.text == "bad"
    assert "unsafe content" in clip.texts[0]
    assert reply.trace.calls == 3


async def test_an_unsafe_answer_is_written_sentence_by_sentence() -> None:
    """Five continuations a sentence; the best by reward of the answer so far goes on."""
    target = seeing(
        sentences([" 1", " 3", " 2", " 0", " 0"], [" 4", " 5", " 9 b", " 1", " 1"], [""] * 5),
        Capability.PREFIX,
    )
    reward, clip = Marks(marked), Directions(likeness(0.16))
    chat = Chat.of("hi", [picture()])
    reply = await Eta(reward, clip).respond(chat, target, Sampling(max_tokens=200, seed=7))
    assert reply.completion.text == f"{PREFIX} 3. 9 b."
    assert reply.completion.finish_reason == "stop"
    prefixes = [called.messages[-1].text for called, _ in target.calls[1:]]
    assert prefixes == [PREFIX] * 5 + [f"{PREFIX} 3."] * 5 + [f"{PREFIX} 3. 9 b."] * 5
    one = [sampling for _, sampling in target.calls[1:]]
    assert {sampling.stop for sampling in one} == {(".",)}
    assert {sampling.max_tokens for sampling in one} == {70}
    assert len({sampling.seed for sampling in one}) == 15
    assert reply.trace.sent == chat
    # Evaluation: reward, picture, description. Alignment: 15 draws, 15 rewards, and likeness in
    # the second round only: not in the first, nor where an answer ends.
    assert reply.trace.calls == 3 + 15 + 15 + 1
    assert clip.texts[1:] == ["4.", "5.", "9 b.", "1.", "1."]
    assert "written anew" in reply.trace.notes[0]


async def test_likeness_to_the_picture_counts_from_the_second_sentence() -> None:
    """It is added to the reward, divided by the sentence's number."""
    target = seeing(
        sentences([" a", " b", " c", " d", " e"], [" f", " g like", " h", " i", " j"], [""] * 5),
        Capability.PREFIX,
    )
    clip = Directions(lambda text: (1.0, 0.0) if "like" in text or "unsafe" in text else (0.2, 0.9))
    reply = await Eta(Marks(lambda _: 0.0), clip).respond(Chat.of("hi", [picture()]), target)
    assert reply.completion.text == f"{PREFIX} a. g like."


async def test_without_a_picture_the_reward_alone_decides() -> None:
    """And no picture is embedded."""
    target = ScriptedEngine(
        sentences([" 1!", " 0", " 0", " 0", " 0"]), capabilities=frozenset({Capability.PREFIX})
    )
    clip = Directions()
    reply = await Eta(Marks(marked), clip).respond(Chat.of("hi"), target)
    assert reply.completion.text == f"{PREFIX} 1!"
    assert clip.images == []
    assert reply.trace.calls == 1 + 5 + 5


async def test_the_answer_ends_at_the_tokens_that_were_allowed() -> None:
    """The last sentence may only be as long as what is left."""
    long = Completion(text=" word", finish_reason="length", usage=Usage(completion_tokens=70))

    def answer(chat: Chat, sampling: Sampling) -> str | Completion:
        return long if chat.messages[-1].role == "assistant" else "bad"

    target = ScriptedEngine(answer, capabilities=frozenset({Capability.PREFIX}))
    reply = await Eta(Marks(lambda _: 0.0), Directions()).respond(
        Chat.of("hi"), target, Sampling(max_tokens=100)
    )
    assert [sampling.max_tokens for _, sampling in target.calls[1::5]] == [70, 30]
    assert reply.completion.text == f"{PREFIX} word word"
    assert reply.completion.finish_reason == "length"


async def test_a_target_without_prefix_is_asked_for_whole_answers() -> None:
    """The best of five, and the trace says that it was not done by sentence."""
    target = ScriptedEngine(["bad", "1", "2", "9", "3", "4"])
    reply = await Eta(Marks(marked), Directions()).respond(Chat.of("hi"), target)
    assert reply.completion.text == "9"
    assert PREFIX in target.calls[1][0].messages[-1].text
    assert reply.trace.sent == target.calls[1][0]
    assert "cannot continue a prefix" in reply.trace.notes[1]


async def test_an_empty_answer_is_not_evaluated() -> None:
    """There is nothing to reward."""
    reward = Marks(lambda _: 0.0)
    reply = await Eta(reward, Directions()).respond(Chat.of("hi"), ScriptedEngine([""]))
    assert reward.asked == []
    assert "answered nothing" in reply.trace.notes[0]
