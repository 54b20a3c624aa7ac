"""One hosted model behind several HTTP clients.

The connection pool of httpx looks at all pairs of its connections on every request, so that 64 at
once cost three times the processor time of eight times eight (``benchmarks/synth_throughput.py``).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.types import Chat, Completion, Delta

_AT_ONCE = 8  # calls for each client
_MOST = 16


class SpreadEngine:
    """Sends each call through the client that has the least to do, the first of equals.

    Args:
        open_one: opens the same model again, with a client of its own.
        concurrency: calls that are expected at once.
    """

    def __init__(self, open_one: Callable[[], Engine], concurrency: int) -> None:
        count = min(_MOST, max(1, -(-concurrency // _AT_ONCE)))
        self._engines = [open_one() for _ in range(count)]
        self._busy = [0] * count

    @property
    def spec(self) -> str:
        """The model's."""
        return self._engines[0].spec

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The model's."""
        return self._engines[0].capabilities

    async def load(self) -> None:
        """Load the model."""
        for engine in self._engines:
            await engine.load()

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once; raises as the model does."""
        with self._least_busy() as engine:
            return await engine.generate(chat, sampling)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece; raises as the model does."""
        with self._least_busy() as engine:
            async for delta in engine.stream(chat, sampling):
                yield delta

    async def aclose(self) -> None:
        """Close all clients."""
        await asyncio.gather(*(engine.aclose() for engine in self._engines))

    @contextmanager
    def _least_busy(self) -> Iterator[Engine]:
        at = self._busy.index(min(self._busy))
        self._busy[at] += 1
        try:
            yield self._engines[at]
        finally:
            self._busy[at] -= 1
