"""What the gateway's tests share."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.engines.conftest import llama_server, smollm2_file
from tests.gateway.common import Running, running

__all__ = ["gate", "llama_server", "smollm2_file"]


@pytest.fixture
async def gate() -> AsyncIterator[Running]:
    """A gateway with the default settings."""
    async with running() as gate:
        yield gate
