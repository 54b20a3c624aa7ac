"""Time that a test moves."""

from __future__ import annotations


class Clock:
    """Stands in for `time.monotonic`.

    Attributes:
        now: seconds; not 0 at first, as a real clock's are not.
    """

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now
