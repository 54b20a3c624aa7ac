"""What the gateway's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.engines.conftest import llama_server, smollm2_file
from tests.gateway.common import Running, running
from tests.gateway.redis_server import RedisServer

__all__ = ["gate", "llama_server", "smollm2_file"]


@pytest.fixture
async def gate() -> AsyncIterator[Running]:
    """A gateway with the default settings."""
    async with running() as gate:
        yield gate


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A real Redis."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
