"""A bounded memory of finished computations that also shares the ones in flight.

``functools.lru_cache`` does not await, ``async_lru`` is bound to one event loop; callers here use
``asyncio.run`` repeatedly in one process, and many wait for the same picture at once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(slots=True)
class _Flight(Generic[Value]):
    """A computation under way, and how many wait for it."""

    task: asyncio.Task[Value]
    waiters: int = 0


class Memo(Generic[Key, Value]):
    """Remembers up to ``size`` results, forgetting the least recently used.

    Errors are not remembered. A computation goes on while anybody waits for it: one caller's
    cancellation does not disturb the others, the last one's cancels it.

    Args:
        size: results to keep; 0 keeps none but still shares what is in flight.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._done: OrderedDict[Key, Value] = OrderedDict()
        self._flights: dict[tuple[asyncio.AbstractEventLoop, Key], _Flight[Value]] = {}

    def peek(self, key: Key) -> Value | None:
        """The remembered result, if there is one; counts as a use."""
        if key not in self._done:
            return None
        self._done.move_to_end(key)
        return self._done[key]

    async def get(self, key: Key, compute: Callable[[], Awaitable[Value]]) -> Value:
        """The remembered result, or that of ``compute``, called once for all who wait."""
        if key in self._done:
            self._done.move_to_end(key)
            return self._done[key]
        place = (asyncio.get_running_loop(), key)
        flight = self._flights.get(place)
        if flight is None:
            flight = _Flight(task=asyncio.ensure_future(self._keep(key, compute)))
            self._flights[place] = flight
        flight.waiters += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.waiters -= 1
            if flight.waiters == 0:
                # Whoever comes after a cancellation starts anew instead of joining a dead task.
                flight.task.cancel()
                if self._flights.get(place) is flight:
                    del self._flights[place]

    async def _keep(self, key: Key, compute: Callable[[], Awaitable[Value]]) -> Value:
        value = await compute()
        if self._size > 0:
            self._done[key] = value
            self._done.move_to_end(key)
            while len(self._done) > self._size:
                self._done.popitem(last=False)
        return value
