"""The engine for OpenAI-compatible servers, against a real one: llama.cpp's, with a real model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.engines.conftest import KEY
from vlmguard.engines import Engine, Sampling, open_engine
from vlmguard.errors import EngineRejected
from vlmguard.types import Chat, Image, Message

SHORT = Sampling(max_tokens=6)


@pytest.fixture
def spec(llama_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The spec of the real server."""
    monkeypatch.setenv("LLAMA_KEY", KEY)
    return f"openai:smollm2@{llama_server}/v1?key_env=LLAMA_KEY&prefix=true&retries=0"


@pytest.fixture
async def engine(spec: str) -> AsyncIterator[Engine]:
    """An engine for the real server."""
    engine = open_engine(spec)
    yield engine
    await engine.aclose()


async def text_of(engine: Engine, chat: Chat, sampling: Sampling = SHORT) -> str:
    return (await engine.generate(chat, sampling)).text


async def test_generate_and_stream(engine: Engine) -> None:
    """Answer and stream agree, with usage."""
    completion = await engine.generate(Chat.of("Say hello."), SHORT)
    assert completion.finish_reason == "length"
    assert completion.usage.completion_tokens == 6
    deltas = [delta async for delta in engine.stream(Chat.of("Say hello."), SHORT)]
    assert "".join(delta.text for delta in deltas) == completion.text
    assert len(deltas) > 3
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 6


async def test_logprobs_schema_and_prefix(engine: Engine) -> None:
    """Logprobs come, a schema holds, and a prefix is continued without its echo."""
    completion = await engine.generate(Chat.of("Hi."), Sampling(max_tokens=2, top_logprobs=3))
    assert completion.logprobs is not None
    assert [len(token.top) for token in completion.logprobs] == [3, 3]
    schema = {"type": "object", "properties": {"v": {"enum": ["a"]}}, "required": ["v"]}
    sampling = Sampling(max_tokens=24, json_schema=schema)
    assert '"v"' in await text_of(engine, Chat.of("Give v."), sampling)
    chat = Chat.of("Count to five.").then(Message(role="assistant", text="1, 2, 3,"))
    assert (await text_of(engine, chat)).startswith(" 4")
    streamed = "".join([delta.text async for delta in engine.stream(chat, SHORT)])
    assert streamed == await text_of(engine, chat)


async def test_several_at_once(engine: Engine) -> None:
    """Requests at once get their own answers."""
    chats = [Chat.of(f"Repeat the word {word}.") for word in ("apple", "river", "stone")]
    alone = [await text_of(engine, chat) for chat in chats]
    assert await asyncio.gather(*(text_of(engine, chat) for chat in chats)) == alone


async def test_refusals(engine: Engine) -> None:
    """Too long a prompt and a picture that it cannot see are told apart."""
    with pytest.raises(EngineRejected) as caught:
        await engine.generate(Chat.of("word " * 900), SHORT)
    assert caught.value.context_exceeded
    picture = Image(data=b"\x89PNG", media_type="image/png")
    with pytest.raises(EngineRejected, match="vision=false"):
        await engine.generate(Chat.of("what?", [picture]), SHORT)


@pytest.mark.parametrize(
    ("path", "key_env", "says"),
    [("/v7", "LLAMA_KEY", "ends in /v1"), ("/v1", "WRONG_KEY", "401 Unauthorized.*Check the key")],
)
async def test_wrong_address(
    spec: str,
    llama_server: str,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    key_env: str,
    says: str,
) -> None:
    """A wrong path and a wrong key are told with the fix."""
    monkeypatch.setenv("WRONG_KEY", "wrong")
    engine = open_engine(f"openai:m@{llama_server}{path}?key_env={key_env}")
    with pytest.raises(EngineRejected, match=says):
        await engine.generate(Chat.of("hi"), SHORT)
    await engine.aclose()


def test_from_one_event_loop_after_the_other(spec: str) -> None:
    """Each event loop has its own connections."""
    engine = open_engine(spec)

    async def once() -> str:
        try:
            return await text_of(engine, Chat.of("Say hello."))
        finally:
            await engine.aclose()

    assert asyncio.run(once()) == asyncio.run(once())
