"""Decisions that outlive a guard: in this process for a while, and in Redis for all workers.

A `Guard` remembers by itself; this is the level behind it (`vlmguard.defences.DecisionStore`). It
outlives the reload of a policy, and a restart where there is Redis. The keys are the guard's: they
hold the policy's and the rewriter's fingerprints, the texts and the pictures.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from vlmguard.types import Rewrite

if TYPE_CHECKING:
    from vlmguard.gateway.redis_link import RedisLink

STORED_VERSION = 1
"""Of the stored form; part of the key in Redis, so that another version's is never read."""

Level = Literal["memory", "redis", "none"]
_REWRITE: TypeAdapter[Rewrite] = TypeAdapter(Rewrite)


def pack(rewrite: Rewrite) -> bytes:
    """A decision as JSON, exactly: `unpack` gives an equal one.

    Raises:
        ValueError: it holds text that is not valid Unicode.
    """
    try:
        return _REWRITE.dump_json(rewrite)
    except PydanticSerializationError as error:
        raise ValueError(str(error)) from None


def unpack(data: bytes | str) -> Rewrite:
    """What `pack` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        return _REWRITE.validate_json(data)
    except ValidationError as error:
        raise ValueError(f"not a stored decision: {error.error_count()} wrong fields") from None


@dataclass(frozen=True, slots=True)
class _Kept:
    rewrite: Rewrite
    until: float


class DecisionCache:
    """Remembers decisions by key: the least recently used go first, none is older than ``ttl_s``.

    Never raises: what cannot be stored or read is decided anew.

    Args:
        redis: a level for all workers behind the one in memory. It holds prompts, rewrites and
            texts from pictures in clear for ``ttl_s``, and whoever can write to it can make
            decisions: keep it private.
        size: decisions in memory; 0 keeps none there.
        ttl_s: seconds that a decision is remembered.
        on_lookup: told of every lookup: the level that answered, or ``"none"``.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        redis: RedisLink | None = None,
        *,
        size: int = 4096,
        ttl_s: float = 86_400.0,
        on_lookup: Callable[[Level], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if size < 0 or ttl_s <= 0:
            raise ValueError("a decision cache needs size >= 0 and ttl_s > 0")
        self._redis = redis
        self._size = size
        self._ttl_s = ttl_s
        self._on_lookup = on_lookup
        self._clock = clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()

    async def get(self, key: str) -> Rewrite | None:
        """The remembered decision, if there is one."""
        kept = self._kept.get(key)
        if kept is not None and self._clock() < kept.until:
            self._kept.move_to_end(key)
            self._on_lookup("memory")
            return kept.rewrite
        if kept is not None:
            del self._kept[key]
        if self._redis is not None:
            data = await self._redis.ask(lambda redis: redis.get(_place(key)))
            found = None if data is None else _unpack_or_none(data)
            if found is not None:
                self._keep(key, found)
                self._on_lookup("redis")
                return found
        self._on_lookup("none")
        return None

    async def put(self, key: str, rewrite: Rewrite) -> None:
        """Remember a decision."""
        self._keep(key, rewrite)
        if self._redis is None:
            return
        try:
            data = pack(rewrite)
        except ValueError:
            return
        ttl_ms = max(1, round(self._ttl_s * 1000))
        await self._redis.ask(lambda redis: redis.set(_place(key), data, px=ttl_ms))

    def _keep(self, key: str, rewrite: Rewrite) -> None:
        if not self._size:
            return
        self._kept[key] = _Kept(rewrite, self._clock() + self._ttl_s)
        self._kept.move_to_end(key)
        while len(self._kept) > self._size:
            self._kept.popitem(last=False)


def _place(key: str) -> str:
    return f"vlmguard:decision:{STORED_VERSION}:{key}"


def _unpack_or_none(data: bytes | str) -> Rewrite | None:
    try:
        return unpack(data)
    except ValueError:
        return None
