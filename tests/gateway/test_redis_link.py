"""A Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from tests.gateway.redis_server import RedisServer
from vlmguard.errors import ConfigError
from vlmguard.gateway.redis_link import RedisLink


async def ping(link: RedisLink) -> bool:
    return await link.ask(lambda redis: redis.ping()) is not None


async def back(link: RedisLink) -> None:
    async with asyncio.timeout(10):
        while not await ping(link):  # noqa: ASYNC110  # another process is waited for
            await asyncio.sleep(0.02)


async def test_a_stop_is_told_once_and_the_return_too(
    server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Two lines, however many requests there are meanwhile."""
    link = RedisLink(server.url, timeout_s=5, pause_s=0.05)
    with caplog.at_level(logging.WARNING, "vlmguard"):
        await back(link)
        server.stop()
        for _ in range(20):
            assert not await ping(link)
            await asyncio.sleep(0.01)
        assert not link.up
        server.start()
        await back(link)
    assert link.up
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    assert f"Redis at 127.0.0.1:{server.port} is gone" in told[0]
    assert told[1].endswith("is back")
    await link.aclose()


async def test_a_redis_that_hangs_costs_one_timeout_a_pause(server: RedisServer) -> None:
    """Requests after the first do not wait; when it goes on, answers are not mixed up."""
    link = RedisLink(server.url, timeout_s=1, pause_s=60)
    await back(link)
    server.freeze()
    assert not await ping(link)
    start = time.perf_counter()
    for _ in range(100):
        assert not await ping(link)
    assert time.perf_counter() - start < 50  # a hundred timeouts would be 100 s
    server.thaw()
    await link.aclose()

    again = RedisLink(server.url, timeout_s=5, pause_s=0.02)
    await back(again)
    assert await again.ask(lambda redis: redis.set("a", "b"))
    assert await again.ask(lambda redis: redis.get("a")) == b"b"
    await again.aclose()


async def test_a_wrong_url_is_told_without_its_password() -> None:
    """At once, not at the first command."""
    with pytest.raises(ConfigError, match="Redis URL") as caught:
        RedisLink("http://user:hush@localhost")
    assert "hush" not in str(caught.value)
    with pytest.raises(ConfigError, match="Redis URL"):
        RedisLink("redis://localhost:port")
