"""Limits, faults, and many requests at once."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.engines.transformers.common import (
    BLUE,
    PROMPT,
    RED,
    SHORT,
    Engines,
    loaded_model,
    open_model,
    streamed,
)
from tests.tiny_fixtures import Folders
from vlmguard.engines import Sampling
from vlmguard.engines import transformers_generate as generating
from vlmguard.errors import (
    EngineError,
    EngineRejected,
    EngineUnavailable,
    UnsupportedCapability,
)
from vlmguard.types import Chat, Completion


async def test_prompt_longer_than_the_context(engines: Engines) -> None:
    """It is refused with both numbers, before the model runs."""
    with pytest.raises(EngineRejected, match="context 2048") as caught:
        await engines("qwen2_vl").generate(Chat.of("x" * 3000), SHORT)
    assert caught.value.context_exceeded


async def test_answer_ends_with_the_context(engines: Engines) -> None:
    """An answer may fill what the prompt leaves, and no more."""
    chat = Chat.of("x" * 2010)
    completion = await engines("qwen2_vl").generate(chat, Sampling(max_tokens=500))
    assert completion.finish_reason in {"length", "stop"}
    assert completion.usage.prompt_tokens + completion.usage.completion_tokens <= 2048


@pytest.mark.parametrize(
    ("chat", "sampling", "message"),
    [
        (Chat(messages=()), SHORT, "no messages"),
        (Chat.of("ab\ud800c"), SHORT, r"character 2 of the text is U\+D800"),
        (PROMPT, Sampling(max_tokens=0), "max_tokens=0"),
        (PROMPT, Sampling(temperature=-1), "temperature=-1"),
        (PROMPT, Sampling(top_p=0.0), r"top_p=0\.0"),
    ],
)
async def test_impossible_requests(
    chat: Chat, sampling: Sampling, message: str, engines: Engines
) -> None:
    """Values without a meaning are refused by name."""
    with pytest.raises(EngineRejected, match=message):
        await engines("llama").generate(chat, sampling)


@pytest.mark.parametrize(
    ("chat", "sampling"),
    [
        (Chat.of("?", [RED]), SHORT),
        (PROMPT, Sampling(json_schema={"type": "object"})),
        (PROMPT, Sampling(grammar='root ::= "a"')),
    ],
)
async def test_unsupported_requests(chat: Chat, sampling: Sampling, engines: Engines) -> None:
    """A text model sees no pictures, and no model is held to a schema or grammar."""
    with pytest.raises(UnsupportedCapability):
        await engines("llama").generate(chat, sampling)
    with pytest.raises(UnsupportedCapability):
        await streamed(engines("llama"), chat, sampling)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
        MemoryError(),
    ],
)
async def test_out_of_memory(
    error: Exception, engines: Engines, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may work later or smaller; the message says how, and the engine goes on."""
    engine = engines("llama")
    loaded = await loaded_model(engine)

    def fail(**_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(loaded.model, "generate", fail)
        with pytest.raises(EngineUnavailable, match=r"ran out of memory.*max_pixels"):
            await engine.generate(PROMPT, SHORT)
    assert (await engine.generate(PROMPT, SHORT)).usage.completion_tokens > 0


async def test_failure_within_the_model(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other failure is an engine error, streamed or not."""
    engine = engines("llama")
    loaded = await loaded_model(engine)

    def fail(**_: object) -> None:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(loaded.model, "generate", fail)
    with pytest.raises(EngineError, match=r"hf:.* failed: shapes do not match"):
        await engine.generate(PROMPT, SHORT)
    with pytest.raises(EngineError, match="shapes do not match"):
        await streamed(engine, PROMPT, SHORT)


async def test_numbers_that_overflow(engines: Engines, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that computes NaN has no answer, rather than a random one."""
    engine = engines("llama")
    loaded = await loaded_model(engine)
    with monkeypatch.context() as patch:
        patch.setattr(
            loaded.model.lm_head,
            "forward",
            lambda hidden: hidden.new_full((*hidden.shape[:2], len(loaded.tokenizer)), torch.nan),
        )
        with pytest.raises(EngineError, match="computed NaN"):
            await engine.generate(PROMPT, SHORT)


async def test_many_at_once(engines: Engines) -> None:
    """Requests wait for each other in order, and each gets its own answer."""
    engine = engines("llava")
    chats = [Chat.of(f"number {at}", [RED, BLUE][: at % 3]) for at in range(6)]
    alone = [await engine.generate(chat, SHORT) for chat in chats]
    finished: list[int] = []

    async def ask(at: int) -> Completion:
        completion = await engine.generate(chats[at], SHORT)
        finished.append(at)
        return completion

    assert await asyncio.gather(*map(ask, range(6))) == alone
    assert finished == list(range(6))


def test_several_event_loops(folder: Folders) -> None:
    """One engine serves loop after loop."""
    engine = open_model(folder("llama"))

    async def ask() -> Sequence[object]:
        whole = await engine.generate(PROMPT, SHORT)
        return whole.text, "".join(d.text for d in await streamed(engine, PROMPT, SHORT))

    first, second = asyncio.run(ask()), asyncio.run(ask())
    assert first == second
    assert first[0] == first[1]
    asyncio.run(engine.aclose())


class _Steps:
    """Counts the tokens that are chosen, and says when the first one was."""

    def __init__(self) -> None:
        self.count = 0
        self.begun = threading.Event()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> _Steps:
    """Makes answers long and slow enough to be interrupted."""
    seen = _Steps()
    step = generating._Answer.step

    def spy(answer: generating._Answer, logits: torch.Tensor) -> int:
        token = step(answer, logits)
        answer.done = False  # an end of turn must not end the test
        seen.count += 1
        seen.begun.set()
        time.sleep(0.002)
        return token

    monkeypatch.setattr(generating._Answer, "step", spy)
    return seen


async def test_closing_a_stream_stops_the_model(engines: Engines, steps: _Steps) -> None:
    """Whoever stops reading frees the model for the next one."""
    engine = engines("qwen2_vl")
    stream = engine.stream(PROMPT, Sampling(max_tokens=1500))
    async for _ in stream:
        break
    await stream.aclose()  # type: ignore[attr-defined]
    await engine.generate(PROMPT, Sampling(max_tokens=1))
    assert steps.count < 100


async def test_cancelling_stops_the_model(engines: Engines, steps: _Steps) -> None:
    """A timeout ends a running answer, and one that still waits never runs."""
    engine = engines("qwen2_vl")
    running = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=1500)))
    await asyncio.to_thread(steps.begun.wait)
    waiting = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=1500)))
    await asyncio.sleep(0.01)
    for task in (waiting, running):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await engine.generate(PROMPT, Sampling(max_tokens=1))
    assert steps.count < 100


async def test_closing_frees_the_model(folder: Folders, tmp_path: Path) -> None:
    """The last engine to close frees the weights; twice is fine; a later call loads anew."""
    shutil.copytree(folder("llama"), tmp_path / "own")
    first, second = open_model(tmp_path / "own"), open_model(tmp_path / "own")
    await first.aclose()  # nothing loaded yet
    text = (await first.generate(PROMPT, SHORT)).text
    assert (await second.generate(PROMPT, SHORT)).text == text
    model = weakref.ref((await loaded_model(first)).model)
    await first.aclose()
    await first.aclose()
    assert model() is not None
    assert (await second.generate(PROMPT, SHORT)).text == text
    await second.aclose()
    assert model() is None
    assert (await second.generate(PROMPT, SHORT)).text == text
    await second.aclose()
