"""A circuit breaker: what fails again and again is left alone for a while."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

BreakerState = Literal["closed", "half_open", "open"]


class Breaker:
    """Closed while calls succeed; open after ``failures`` in a row; then one call tries again.

    ::

        closed ── failures in a row ──▶ open ── pause_s ──▶ half_open ── success ──▶ closed
                                          ▲                     │
                                          └────── failure ──────┘

    Ask `allow` before every call and report each with `success` or `failure`. A trial that is
    never reported, since its caller went away, is given up after another ``pause_s``.

    Args:
        failures: how many in a row open it.
        pause_s: seconds that it stays open before one call may try again.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        failures: int = 5,
        pause_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if failures < 1 or pause_s <= 0:
            raise ValueError("a breaker needs failures >= 1 and pause_s > 0")
        self._threshold = failures
        self._pause_s = pause_s
        self._clock = clock
        self._failures = 0
        self._retry_at: float | None = None
        self._trying = False

    @property
    def state(self) -> BreakerState:
        """What the next call would meet."""
        if self._retry_at is None:
            return "closed"
        return "half_open" if self._trying or self._clock() >= self._retry_at else "open"

    @property
    def wait_s(self) -> float:
        """Seconds until a call may try again; 0 when one may now. Fit for ``Retry-After``."""
        return 0.0 if self._retry_at is None else max(0.0, self._retry_at - self._clock())

    def allow(self) -> bool:
        """Whether a call may go ahead. While half open, one does; the others wait for its end."""
        if self._retry_at is None:
            return True
        now = self._clock()
        if now < self._retry_at:
            return False
        self._trying = True
        self._retry_at = now + self._pause_s
        return True

    def success(self) -> None:
        """A call went well. An old call's, that comes in while open, proves nothing."""
        if self._retry_at is None or self._trying:
            self._failures = 0
            self._retry_at = None
            self._trying = False

    def failure(self) -> None:
        """A call failed."""
        self._failures += 1
        if self._trying or (self._retry_at is None and self._failures >= self._threshold):
            self._trying = False
            self._retry_at = self._clock() + self._pause_s
