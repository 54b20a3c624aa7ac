"""A guard that asks a store before it decides."""

from __future__ import annotations

import asyncio

import pytest

from vlmguard import Guard
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import VLMGuardError
from vlmguard.rewriting import Policy, PromptedRewriter
from vlmguard.types import Chat, Rewrite, Usage

SAFE = '{"verdict": "safe"}'


class Shelf:
    """A store for all guards of a test."""

    def __init__(self) -> None:
        self.kept: dict[str, Rewrite] = {}
        self.asked = 0

    async def get(self, key: str) -> Rewrite | None:
        self.asked += 1
        await asyncio.sleep(0)
        return self.kept.get(key)

    async def put(self, key: str, rewrite: Rewrite) -> None:
        self.kept[key] = rewrite


def guard(shelf: Shelf, *answers: str, policy: Policy | str = "balanced") -> Guard:
    rewriter = PromptedRewriter(ScriptedEngine(list(answers), spec="judge"))
    return Guard(rewriter, policy=policy, store=shelf)


async def test_a_second_guard_takes_what_the_first_decided() -> None:
    """Its rewriter, which could not answer, is not asked; the decision costs no tokens."""
    shelf = Shelf()
    first = await guard(shelf, SAFE).rewrite("hello")
    second = await guard(shelf).rewrite("hello")
    assert first.calls > 0
    assert (second.verdict, second.risk, second.prompt) == (first.verdict, first.risk, "hello")
    assert (second.calls, second.usage) == (0, Usage())
    assert list(second.timings_ms) == ["store"]


async def test_another_policy_decides_anew() -> None:
    """The key holds the rules."""
    shelf = Shelf()
    await guard(shelf, SAFE).rewrite("hello")
    await guard(shelf, SAFE, policy="strict").rewrite("hello")
    assert len(shelf.kept) == 2


async def test_what_is_remembered_or_in_flight_does_not_ask_the_store() -> None:
    """One question for many who wait for the same decision."""
    shelf = Shelf()
    one = guard(shelf, SAFE)
    await asyncio.gather(*(one.prepare(Chat.of("hello")) for _ in range(5)))
    await one.rewrite("hello")
    assert shelf.asked == 1


async def test_a_failure_is_not_kept() -> None:
    """Neither under a closed nor under an open policy."""
    shelf = Shelf()
    with pytest.raises(VLMGuardError):
        await guard(shelf, "nonsense", "nonsense").rewrite("hello")
    passed = await guard(shelf, "nonsense", "nonsense", policy=Policy(on_failure="open")).rewrite(
        "hello"
    )
    assert passed.failure
    assert shelf.kept == {}
