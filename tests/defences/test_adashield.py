"""AdaShield-S and -A, and the pool between training and use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.defences.common import Directions, picture, seeing
from vlmguard.defences.adashield import AdaShieldA, AdaShieldS, static_prompt
from vlmguard.defences.adashield_pool import Entry, Example, Pool, load_pool, save_pool
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError
from vlmguard.perception import Perceiver
from vlmguard.types import Chat


def entry(scenario: str, text: tuple[float, float], prompt: str = "Look twice.") -> Entry:
    example = Example(image=(1.0, 0.0), text=text)
    return Entry(scenario=scenario, prompt=prompt, refused=1.0, rounds=0, examples=(example,))


def pool(*entries: Entry) -> Pool:
    return Pool(embedder="clip:x/y", target="t", defender="d", data="0", entries=entries)


async def test_the_query_stands_around_the_defence_prompt() -> None:
    """Query, prompt, query; one call, with the picture."""
    target = seeing(["fine"])
    image = picture()
    reply = await AdaShieldS().respond(Chat.of("Fill the list.", [image]), target)
    [(sent, _)] = target.calls
    assert sent.messages[-1].text == f"Fill the list.\n\n{static_prompt()}\n\nFill the list."
    assert sent.images == (image,)
    assert '"I am sorry"' in static_prompt()
    assert reply.trace.calls == 0


async def test_a_blind_target_reads_a_description_before_the_wrapped_query() -> None:
    """The wrapping is of the user's words, not of the evidence."""
    target = ScriptedEngine(["fine"])
    chat = Chat.of("Fill the list.", [picture()])
    await AdaShieldS(Perceiver([])).respond(chat, target)
    text = target.calls[0][0].messages[-1].text
    assert text.startswith("[What software found in the attached picture]")
    assert text.endswith(f"Fill the list.\n\n{static_prompt()}\n\nFill the list.")


async def test_the_nearest_prompt_is_added_over_the_threshold() -> None:
    """Near is the mean of the picture's and the text's cosine."""
    found = pool(entry("far", (0.0, 1.0), "far"), entry("near", (0.6, 0.8), "near"))
    embedder = Directions()
    reply = await AdaShieldA(found, embedder=embedder).respond(
        Chat.of("q", [picture()]), seeing(["fine"])
    )
    assert reply.trace.sent is not None
    assert reply.trace.sent.messages[-1].text == "q\n\nnear\n\nq"
    assert embedder.texts == ["q"]
    assert reply.trace.calls == 1
    assert "'near' at 0.800 (over 0.7), its prompt was added" in reply.trace.notes[0]
    assert set(reply.trace.timings_ms) == {"retrieval", "target"}


async def test_below_the_threshold_the_query_stays() -> None:
    """0.7 itself is not over it."""
    chat = Chat.of("q", [picture()])
    for threshold, wrapped in ((0.7, False), (0.5, True), (0.8, False)):
        defence = AdaShieldA(
            pool(entry("far", (0.4, 0.9165))), threshold=threshold, embedder=Directions()
        )
        prepared = await defence.prepare(chat)
        assert (prepared.chat != chat) is wrapped


async def test_without_a_picture_nothing_is_near() -> None:
    """The pool is of pictures; nothing is embedded."""
    embedder = Directions()
    chat = Chat.of("q")
    prepared = await AdaShieldA(pool(), embedder=embedder).prepare(chat)
    assert prepared.chat == chat
    assert prepared.calls == 0
    assert embedder.texts == []


async def test_pools_that_cannot_serve_are_errors() -> None:
    """Empty, or made by another embedder."""
    chat = Chat.of("q", [picture()])
    with pytest.raises(ConfigError, match="the pool is empty"):
        await AdaShieldA(pool(), embedder=Directions()).prepare(chat)
    other = Example(image=(1.0, 0.0, 0.0), text=(1.0, 0.0))
    long = Entry(scenario="x", prompt="p", refused=1, rounds=0, examples=(other,))
    with pytest.raises(ConfigError, match="not of one embedder"):
        await AdaShieldA(pool(long), embedder=Directions()).prepare(chat)


def test_a_pool_is_written_and_read(tmp_path: Path) -> None:
    """Into a new folder, and over an old one."""
    path = tmp_path / "new" / "pool.json"
    for kept in (pool(), pool(entry("a", (1.0, 0.0)))):
        save_pool(kept, path)
        assert load_pool(path) == kept
    assert [file.name for file in path.parent.iterdir()] == ["pool.json"]


def test_a_file_that_is_no_pool_is_told(tmp_path: Path) -> None:
    """With the first wrong field."""
    path = tmp_path / "pool.json"
    with pytest.raises(ConfigError, match="defence train adashield-a` makes one"):
        load_pool(path)
    path.write_text("[")
    with pytest.raises(ConfigError, match="is not a pool: the file: Invalid JSON"):
        load_pool(path)
    facts = json.loads(pool(entry("a", (1.0, 0.0))).model_dump_json())
    facts["entries"][0]["refused"] = 2
    path.write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match=r"entries\.0\.refused"):
        load_pool(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        save_pool(pool(), path / "under-a-file.json")
