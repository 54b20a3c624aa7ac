"""How many requests a minute a key may send.

The generic cell rate algorithm (GCRA): one number a key, the time at which its allowance will be
whole again. The installed limiters either wait instead of answering, or keep a timestamp a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmguard.gateway.redis_link import RedisLink

_MANY = 10_000
"""Keys after which those whose allowance is whole again are forgotten."""

# The same steps as `RateLimits._admit_here`, on Redis' own clock, in one round trip.
# KEYS: the key. ARGV: seconds a request, seconds of burst. Answer: seconds to wait, as text.
_SCRIPT = """
local now = redis.call('TIME')
now = now[1] + now[2] / 1000000
local whole = math.max(tonumber(redis.call('GET', KEYS[1]) or now), now)
local wait = whole + ARGV[1] - ARGV[2] - now
if wait > 0.000001 then return tostring(wait) end
whole = whole + ARGV[1]
redis.call('SET', KEYS[1], string.format('%.6f', whole), 'PX', math.ceil((whole - now) * 1000))
return '0'
"""


class RateLimits:
    """Admits up to ``per_minute`` requests a minute for each key.

    A key that was quiet may send a minute's worth at once; from then on they come back evenly. In
    memory the count is each worker's own; with Redis it is one for all. While Redis is gone, each
    worker counts by itself.

    Args:
        redis: shared by the gateway's workers.
        clock: monotonic seconds; of the count in memory.
    """

    def __init__(
        self, redis: RedisLink | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._redis = redis
        self._clock = clock
        self._whole_at: dict[str, float] = {}

    async def admit(self, key_id: str, per_minute: float | None) -> float | None:
        """Count one request.

        Args:
            key_id: whose.
            per_minute: how many are allowed; ``None`` is no limit.

        Returns:
            ``None`` when it may go ahead, else the seconds after which the next one may
            (fit for ``Retry-After``, rounded up). A refused request does not count.
        """
        if per_minute is None:
            return None
        each, burst = 60.0 / per_minute, max(60.0, 60.0 / per_minute)
        if self._redis is not None:
            arguments = (f"{each:.9f}", f"{burst:.9f}")
            told = await self._redis.ask(
                lambda redis: redis.eval(_SCRIPT, 1, f"vlmguard:rate:{key_id}", *arguments)
            )
            if told is not None:
                wait = float(told)
                return wait if wait > 0 else None
        return self._admit_here(key_id, each, burst)

    def _admit_here(self, key_id: str, each: float, burst: float) -> float | None:
        now = self._clock()
        whole = max(self._whole_at.get(key_id, now), now)
        wait = whole + each - burst - now
        if wait > 1e-9:  # sums of fractions do not come out even
            return wait
        if len(self._whole_at) >= _MANY:
            self._whole_at = {key: at for key, at in self._whole_at.items() if at > now}
        self._whole_at[key_id] = whole + each
        return None
