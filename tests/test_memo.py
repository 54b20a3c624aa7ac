"""The memory of finished computations, and the sharing of those in flight."""

from __future__ import annotations

import asyncio

import pytest

from vlmguard.memo import Memo


class Counter:
    """Counts how often it computes."""

    def __init__(self) -> None:
        self.calls = 0
        self.release = asyncio.Event()

    async def compute(self) -> int:
        self.calls += 1
        await self.release.wait()
        return self.calls


async def test_concurrent_callers_share_one_computation() -> None:
    """Ten requests for the same picture decode it once."""
    memo, counter = Memo[str, int](8), Counter()
    waiting = [asyncio.create_task(memo.get("k", counter.compute)) for _ in range(10)]
    await asyncio.sleep(0)
    counter.release.set()
    assert await asyncio.gather(*waiting) == [1] * 10
    assert await memo.get("k", counter.compute) == 1
    assert memo.peek("k") == 1


async def test_a_cancelled_caller_does_not_disturb_the_others() -> None:
    """A client that hangs up takes nobody with it."""
    memo, counter = Memo[str, int](8), Counter()
    first = asyncio.create_task(memo.get("k", counter.compute))
    second = asyncio.create_task(memo.get("k", counter.compute))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    counter.release.set()
    assert await second == 1


async def test_the_last_caller_to_leave_cancels_and_the_next_starts_anew() -> None:
    """Nothing runs for nobody, and nobody joins a dead computation."""
    memo, counter = Memo[str, int](8), Counter()
    only = asyncio.create_task(memo.get("k", counter.compute))
    await asyncio.sleep(0)
    only.cancel()
    await asyncio.sleep(0)
    counter.release.set()
    assert await memo.get("k", counter.compute) == 2


async def test_errors_are_told_to_all_and_not_remembered() -> None:
    """The next request tries again."""
    memo = Memo[str, int](8)
    attempts = 0

    async def fail_once() -> int:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0)
        if attempts == 1:
            raise ValueError("boom")
        return attempts

    outcomes = await asyncio.gather(
        *(memo.get("k", fail_once) for _ in range(3)), return_exceptions=True
    )
    assert all(isinstance(outcome, ValueError) for outcome in outcomes)
    assert await memo.get("k", fail_once) == 2


async def test_the_least_recently_used_result_goes_first() -> None:
    """Bounded memory."""
    memo = Memo[int, int](2)

    async def ten() -> int:
        return 10

    for key in (1, 2):
        await memo.get(key, ten)
    memo.peek(1)
    await memo.get(3, ten)
    assert memo.peek(1) == 10
    assert memo.peek(2) is None


def test_it_works_across_event_loops() -> None:
    """People call asyncio.run repeatedly in one process."""
    memo = Memo[str, int](2)

    async def one() -> int:
        return 1

    async def fail() -> int:
        pytest.fail("was remembered")

    assert asyncio.run(memo.get("k", one)) == 1
    assert asyncio.run(memo.get("k", fail)) == 1
