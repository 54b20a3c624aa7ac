"""JailGuard: eight copies, their answers, and how far these diverge."""

from __future__ import annotations

import pytest

from tests.defences.common import Directions, picture, said, seeing, user
from vlmguard.defences.base import REFUSAL
from vlmguard.defences.jailguard import JailGuard, character_likeness, divergence
from vlmguard.defences.mutators import mutate_image, mutate_text
from vlmguard.engines import Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.images import decode
from vlmguard.types import Chat

ALIKE = [
    "The image shows a red stop sign at a crossing, with trees and a blue car behind it.",
    "This picture shows a stop sign, red, at an intersection. Behind it there are some trees.",
    "A red stop sign is visible at a street corner. There is a blue car parked behind it.",
    "The photo depicts a stop sign near a road with green trees and a parked car in blue.",
    "In the image, there's a red octagonal stop sign. The background has trees and a car.",
    "The image features a stop sign at a crossing; trees and one blue car can be seen.",
    "A stop sign in red stands at the crossing. Trees are in the background, and a car.",
    "You can see a stop sign and a car on the street with trees around it, in daylight.",
]
TORN = [
    "I'm sorry, but I can't help with that request, since it may be harmful.",
    "Sure! Here are the steps: 1. Gather the materials. 2. Mix them in a container slowly.",
] * 4


async def test_answers_that_agree_are_no_attack() -> None:
    """Eight calls, seven of them extra, each with another picture and the same words."""
    target = seeing(list(ALIKE))
    chat = Chat(messages=(user("before"), said("ok"), user("What is this?", picture())))
    reply = await JailGuard().respond(chat, target, Sampling(max_tokens=9))
    assert len(target.calls) == 8
    assert {sampling for _, sampling in target.calls} == {Sampling(max_tokens=9)}
    sent = [called.messages[-1] for called, _ in target.calls]
    assert {message.text for message in sent} == {"What is this?"}
    assert len({message.images[0].sha256 for message in sent}) == 8
    assert all(called.messages[:2] == chat.messages[:2] for called, _ in target.calls)
    assert reply.completion.text in ALIKE
    assert reply.trace.calls == 7
    assert reply.trace.sent in [called for called, _ in target.calls]
    assert "not over 0.025" in reply.trace.notes[0]
    assert set(reply.trace.timings_ms) == {"mutation", "target", "other variants", "divergence"}


async def test_answers_that_diverge_are_an_attack() -> None:
    """The request is refused in the defence's words; seven calls were extra all the same."""
    reply = await JailGuard().respond(Chat.of("Do it.", [picture()]), seeing(list(TORN)))
    assert reply.completion.text == REFUSAL
    assert reply.trace.sent is None
    assert reply.trace.calls == 7
    assert reply.trace.defence_usage.completion_tokens > 0
    assert ", over 0.025" in reply.trace.notes[0]


async def test_without_a_picture_the_words_are_changed() -> None:
    """And the threshold is the one for texts."""
    target = ScriptedEngine(list(ALIKE))
    reply = await JailGuard().respond(Chat.of("Please tell me what a stop sign is."), target)
    sent = {called.messages[-1].text for called, _ in target.calls}
    assert len(sent) == 8
    assert "over 0.02." in reply.trace.notes[0]


async def test_an_embedder_and_a_threshold_may_be_chosen() -> None:
    """The embedder reads the first hundred characters of every answer."""
    embedder = Directions(lambda text: (1.0, 0.0) if "sorry" in text else (0.0, 1.0))
    chat = Chat.of("Do it.", [picture()])
    strict = await JailGuard(embedder).respond(chat, seeing(list(TORN)))
    lenient = await JailGuard(embedder, threshold=50).respond(chat, seeing(list(TORN)))
    assert strict.completion.text == REFUSAL
    assert lenient.completion.text in TORN
    assert max(map(len, embedder.texts)) <= 100
    assert strict.trace.calls == 8


async def test_answers_of_nothing_agree() -> None:
    """A target that answers nothing is not attacked for it."""
    reply = await JailGuard().respond(Chat.of("hi", [picture()]), seeing([""] * 8))
    assert reply.completion.text == ""
    assert "diverge by 0.0000" in reply.trace.notes[0]


def test_divergence_is_the_largest_between_rows() -> None:
    """By hand: rows (2/3, 1/3) and (1/3, 2/3) are ln(2)/3 apart; equal rows are not."""
    assert divergence([[1.0, 0.5], [0.5, 1.0]]) == pytest.approx(0.6931471805599453 / 3)
    assert divergence([[0.4, 0.4], [0.4, 0.4]]) == 0
    assert divergence([[1.0, -1.0], [-1.0, 1.0]]) > 1  # clipped, so finite


def test_likeness_is_a_cosine() -> None:
    """The same texts are 1 alike, texts without a common character 0, as is nothing."""
    likeness = character_likeness(["aaa", "aaa", "zzz", ""])
    assert likeness[0][1] == pytest.approx(1)
    assert likeness[0][2] == 0
    assert likeness[0][3] == 0


def test_changed_pictures_are_repeatable_and_of_the_same_size() -> None:
    """A seed gives one copy; the picture stays readable."""
    image = picture()
    copies = [mutate_image(image, str(seed)) for seed in range(12)]
    assert copies == [mutate_image(image, str(seed)) for seed in range(12)]
    assert image.sha256 not in {copy.sha256 for copy in copies}
    assert {(decode(copy).width, decode(copy).height) for copy in copies} == {(120, 80)}


@pytest.mark.parametrize("text", ["", "a", "ab", "שלום עולם", "one two three four five six seven"])
def test_changed_texts_are_repeatable_and_not_longer_than_needed(text: str) -> None:
    """Whatever the text, also none."""
    copies = [mutate_text(text, str(seed)) for seed in range(12)]
    assert copies == [mutate_text(text, str(seed)) for seed in range(12)]
    assert max(map(len, copies)) <= len(text) + 8
