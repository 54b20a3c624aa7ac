"""Requests a minute, by a clock that the test moves, and with a real Redis."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.clock import Clock
from tests.gateway.redis_server import RedisServer
from vlmguard.gateway.limits import RateLimits
from vlmguard.gateway.redis_link import RedisLink


async def admitted(limits: RateLimits, key: str, per_minute: float, tries: int) -> int:
    return sum([await limits.admit(key, per_minute) is None for _ in range(tries)])


async def test_a_minutes_worth_may_come_at_once_and_then_evenly() -> None:
    """60 a minute: sixty, then one a second; the wait is told exactly."""
    clock = Clock()
    limits = RateLimits(clock=clock)
    assert await admitted(limits, "k", 60, 100) == 60
    wait = await limits.admit("k", 60)
    assert wait == pytest.approx(1.0)
    clock.now += 1.0
    assert await admitted(limits, "k", 60, 3) == 1
    clock.now += 3600
    assert await admitted(limits, "k", 60, 100) == 60


async def test_keys_do_not_share_their_allowance() -> None:
    """One that is used up leaves the other's whole; no limit is no limit."""
    limits = RateLimits(clock=Clock())
    assert await admitted(limits, "a", 5, 10) == 5
    assert await admitted(limits, "b", 5, 10) == 5
    assert await limits.admit("a", None) is None


async def test_less_than_one_a_minute_is_allowed_too() -> None:
    """Half a request a minute is one every two minutes."""
    clock = Clock()
    limits = RateLimits(clock=clock)
    assert await limits.admit("k", 0.5) is None
    assert await limits.admit("k", 0.5) == pytest.approx(120)
    clock.now += 120
    assert await limits.admit("k", 0.5) is None


@settings(max_examples=40, deadline=None)
@given(
    per_minute=st.integers(1, 600),
    gaps=st.lists(st.floats(0, 30, allow_nan=False), min_size=1, max_size=200),
)
def test_no_stretch_of_time_sees_more_than_its_share(per_minute: int, gaps: list[float]) -> None:
    """In t seconds at most a burst and t seconds' worth are admitted."""

    async def run() -> None:
        clock = Clock()
        limits = RateLimits(clock=clock)
        start, count = clock.now, 0
        for gap in gaps:
            clock.now += gap
            count += await limits.admit("k", per_minute) is None
            assert count <= per_minute + per_minute * (clock.now - start) / 60 + 1e-6

    asyncio.run(run())


async def test_two_workers_share_one_allowance_in_redis(server: RedisServer) -> None:
    """Ten a minute between two limiters are ten, and the wait is told."""
    links = [RedisLink(server.url, timeout_s=5) for _ in range(2)]
    workers = [RateLimits(link) for link in links]
    results = await asyncio.gather(*(workers[i % 2].admit("k", 10) for i in range(30)))
    assert results.count(None) == 10
    waits = [wait for wait in results if wait is not None]
    assert all(0 < wait <= 6 for wait in waits)
    for link in links:
        await link.aclose()


async def test_the_allowance_grows_back_in_redis(server: RedisServer) -> None:
    """By Redis' own clock: 60 a minute is one a second."""
    link = RedisLink(server.url, timeout_s=5)
    limits = RateLimits(link)
    await link.ask(lambda redis: redis.set("vlmguard:rate:k", time.time() + 60))
    wait = await limits.admit("k", 60)
    assert wait is not None
    await asyncio.sleep(wait)
    assert await limits.admit("k", 60) is None
    await link.aclose()


async def test_without_redis_each_worker_counts_by_itself(server: RedisServer) -> None:
    """A limit that cannot be shared is still a limit."""
    link = RedisLink(server.url, pause_s=60)
    limits = RateLimits(link, clock=Clock())
    server.stop()
    assert await admitted(limits, "k", 4, 10) == 4
    await link.aclose()
