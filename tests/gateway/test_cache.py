"""Decisions in memory and in a real Redis."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gateway.clock import Clock
from tests.gateway.redis_server import RedisServer
from vlmguard.gateway.cache import DecisionCache, pack, unpack
from vlmguard.gateway.redis_link import RedisLink
from vlmguard.types import ImageEvidence, ObjectLabel, Rewrite, RiskReport, TextBox, Usage

SAFE = Rewrite(
    verdict="safe",
    risk=0.1,
    category=None,
    action="allow",
    report=None,
    prompt="hello",
    changed=False,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
numbers = st.floats(0, 1, allow_nan=False)
counts = st.integers(0, 2**31)
boxes = st.builds(
    TextBox,
    text=texts,
    confidence=numbers,
    box=st.tuples(numbers, numbers, numbers, numbers),
    hidden=st.booleans(),
)
evidence = st.builds(
    ImageEvidence,
    sha256=texts,
    width=counts,
    height=counts,
    text=st.lists(boxes, max_size=2).map(tuple),
    objects=st.lists(st.builds(ObjectLabel, label=texts, probability=numbers), max_size=2).map(
        tuple
    ),
    nudity=st.none() | numbers,
    description=st.none() | texts,
    failed=st.dictionaries(texts, texts, max_size=2),
)
rewrites = st.builds(
    Rewrite,
    verdict=st.sampled_from(["safe", "risky"]),
    risk=numbers,
    category=st.none() | texts,
    action=st.sampled_from(["allow", "monitor", "rewrite", "refuse"]),
    report=st.none() | st.builds(RiskReport, textual=texts, visual=texts, multimodal=texts),
    prompt=texts,
    changed=st.booleans(),
    evidence=st.lists(evidence, max_size=2).map(tuple),
    timings_ms=st.dictionaries(texts, st.floats(0, 1e6), max_size=3),
    usage=st.builds(Usage, prompt_tokens=counts, completion_tokens=counts, cached_tokens=counts),
    calls=counts,
    rewriter=texts,
    policy=texts,
    failure=st.none() | texts,
)


@settings(max_examples=25, deadline=None)
@given(rewrites)
def test_a_decision_comes_back_exactly_as_it_was_stored(rewrite: Rewrite) -> None:
    """Every field, to the last bit of every number."""
    assert unpack(pack(rewrite)) == rewrite


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b'{"verdict":"fine"}', b"\xff"])
def test_what_is_no_stored_decision_is_refused(data: bytes) -> None:
    """Nothing of it passes for a verdict."""
    with pytest.raises(ValueError, match="not a stored decision"):
        unpack(data)


async def test_the_least_recently_used_is_forgotten_first() -> None:
    """A use counts as recent."""
    cache = DecisionCache(size=2)
    await cache.put("a", SAFE)
    await cache.put("b", SAFE)
    assert await cache.get("a") is SAFE
    await cache.put("c", SAFE)
    assert await cache.get("b") is None
    assert await cache.get("a") is SAFE


async def test_a_decision_is_not_remembered_for_longer_than_its_time() -> None:
    """However often it is used."""
    clock = Clock()
    cache = DecisionCache(ttl_s=10, clock=clock)
    await cache.put("a", SAFE)
    clock.now += 9
    assert await cache.get("a") is SAFE
    clock.now += 1
    assert await cache.get("a") is None


async def test_workers_share_decisions_through_redis(server: RedisServer) -> None:
    """The second finds there what the first decided, and in memory from then on."""
    links = [RedisLink(server.url, timeout_s=5) for _ in range(2)]
    levels: list[str] = []
    first = DecisionCache(links[0])
    second = DecisionCache(links[1], on_lookup=levels.append)
    assert await second.get("k") is None
    await first.put("k", SAFE)
    assert await second.get("k") == SAFE
    assert await second.get("k") == SAFE
    assert levels == ["none", "redis", "memory"]
    assert await links[0].ask(lambda redis: redis.pttl("vlmguard:decision:1:k")) in range(
        80_000_000, 86_400_001
    )
    for link in links:
        await link.aclose()


async def test_a_damaged_entry_in_redis_is_a_miss(server: RedisServer) -> None:
    """Whoever wrote it."""
    link = RedisLink(server.url, timeout_s=5)
    await link.ask(lambda redis: redis.set("vlmguard:decision:1:k", b"{}"))
    cache = DecisionCache(link)
    assert await cache.get("k") is None
    await cache.put("k", SAFE)
    assert await DecisionCache(link, size=0).get("k") == SAFE
    await link.aclose()


async def test_without_redis_memory_goes_on_and_redis_is_used_again_when_it_is_back(
    server: RedisServer,
) -> None:
    """No request fails for it."""
    link = RedisLink(server.url, timeout_s=5, pause_s=0.02)
    cache = DecisionCache(link)
    await cache.put("a", SAFE)
    server.stop()
    assert await cache.get("a") == SAFE
    assert await cache.get("b") is None
    await cache.put("b", SAFE)
    assert await cache.get("b") == SAFE
    server.start()
    async with asyncio.timeout(10):
        while True:
            await cache.put("c", SAFE)
            if await DecisionCache(link, size=0).get("c") == SAFE:
                break
            await asyncio.sleep(0.02)
    await link.aclose()


async def test_text_that_is_not_unicode_stays_in_memory(server: RedisServer) -> None:
    """It has no JSON form, and that is no error."""
    link = RedisLink(server.url, timeout_s=5)
    odd = replace(SAFE, rewriter="\ud800")
    cache = DecisionCache(link)
    await cache.put("k", odd)
    assert await cache.get("k") is odd
    assert await DecisionCache(link, size=0).get("k") is None
    await link.aclose()
