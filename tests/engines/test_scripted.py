"""The shipped fake."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vlmguard.engines import Capability, Engine, Sampling, open_engine
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError, EngineRejected, EngineUnavailable, UnsupportedCapability
from vlmguard.types import Chat, Completion, Image, Message

CHAT = Chat.of("how are you?")
SAMPLING = Sampling()


async def test_answers_in_order_and_remembers_the_calls() -> None:
    """Texts, completions, errors and functions, one after the other; then it has run out."""
    own = Completion(text="own", finish_reason="length")
    engine = ScriptedEngine(
        ["one two", own, EngineUnavailable("down"), lambda chat, _: chat.messages[0].text.upper()]
    )
    first = await engine.generate(CHAT, SAMPLING)
    assert (first.text, first.finish_reason) == ("one two", "stop")
    assert (first.usage.prompt_tokens, first.usage.completion_tokens) == (3, 2)
    assert await engine.generate(CHAT, SAMPLING) is own
    with pytest.raises(EngineUnavailable, match="down"):
        await engine.generate(CHAT, SAMPLING)
    assert (await engine.generate(CHAT, SAMPLING)).text == "HOW ARE YOU?"
    with pytest.raises(EngineRejected, match="run out after 4 answers"):
        await engine.generate(CHAT, SAMPLING)
    assert engine.calls == [(CHAT, SAMPLING)] * 5
    assert isinstance(engine, Engine)


async def test_streams_word_by_word() -> None:
    """The pieces add up to the answer, spaces and lines included."""
    text = "  one two\n\nthree "
    engine = ScriptedEngine(lambda chat, sampling: text)
    deltas = [delta async for delta in engine.stream(CHAT, SAMPLING)]
    assert "".join(delta.text for delta in deltas) == text
    assert len(deltas) == 5
    assert deltas[-1].finish_reason == "stop"
    assert deltas[-1].usage is not None


async def test_takes_its_time() -> None:
    """A delay stands for a slow model."""
    engine = ScriptedEngine(["late"], delay_s=0.05)
    began = time.monotonic()
    await engine.generate(CHAT, SAMPLING)
    assert time.monotonic() - began >= 0.05


async def test_can_no_more_than_it_says() -> None:
    """Asking for more than its capabilities raises, as with real engines, and is no call."""
    picture = Chat.of("what?", [Image(data=b"x", media_type="image/png")])
    engine = ScriptedEngine(["a cat"])
    with pytest.raises(UnsupportedCapability, match="vision"):
        await engine.generate(picture, SAMPLING)
    assert engine.calls == []
    seeing = ScriptedEngine(["a cat"], capabilities=frozenset({Capability.VISION}))
    assert (await seeing.generate(picture, SAMPLING)).text == "a cat"


async def test_script_in_a_file(tmp_path: Path) -> None:
    """A list answers in order; an object by words of the last user message, else by ``*``."""
    path = tmp_path / "answers.json"
    path.write_text(json.dumps(["a", "b"]))
    engine = open_engine(f"scripted:{path}")
    assert [(await engine.generate(CHAT, SAMPLING)).text for _ in range(2)] == ["a", "b"]
    path.write_text(json.dumps({"*": "else", "are you": "fine", "how": "never"}))
    engine = open_engine(f"scripted:{path}?delay_s=0")
    assert (await engine.generate(CHAT, SAMPLING)).text == "fine"
    later = CHAT.then(Message(role="assistant", text="x")).then(Message(role="user", text="bye"))
    assert (await engine.generate(later, SAMPLING)).text == "else"
    path.write_text(json.dumps({"hello": "hi"}))
    with pytest.raises(EngineRejected, match="no answer for 'how are you"):
        await open_engine(f"scripted:{path}").generate(CHAT, SAMPLING)
    await engine.aclose()


@pytest.mark.parametrize("content", [None, "{", "3", "[1]", '{"a": null}', '"text"', "\x00"])
def test_scripts_that_are_none(tmp_path: Path, content: str | None) -> None:
    """A missing file, broken JSON and other shapes are told with the spec."""
    path = tmp_path / "answers.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=r"answers\.json"):
        open_engine(f"scripted:{path}")


def test_no_file_named() -> None:
    """The scheme alone is no script."""
    with pytest.raises(ConfigError, match="names no file"):
        open_engine("scripted:")
