"""The circuit breaker, by a clock that the test moves."""

from __future__ import annotations

import pytest

from tests.gateway.clock import Clock
from vlmguard.gateway.breaker import Breaker


@pytest.fixture
def clock() -> Clock:
    return Clock()


def opened(clock: Clock) -> Breaker:
    breaker = Breaker(failures=3, pause_s=10, clock=clock)
    for _ in range(3):
        assert breaker.allow()
        breaker.failure()
    return breaker


def test_it_opens_after_failures_in_a_row_only(clock: Clock) -> None:
    """A success in between starts the count anew."""
    breaker = Breaker(failures=3, pause_s=10, clock=clock)
    for _ in range(5):
        breaker.failure()
        breaker.failure()
        breaker.success()
    assert breaker.state == "closed"
    assert opened(clock).state == "open"


def test_open_refuses_until_the_pause_is_over(clock: Clock) -> None:
    """And tells how long that is."""
    breaker = opened(clock)
    clock.now += 4
    assert not breaker.allow()
    assert breaker.wait_s == 6
    clock.now += 6
    assert breaker.state == "half_open"
    assert breaker.wait_s == 0


def test_half_open_lets_one_call_try(clock: Clock) -> None:
    """Success closes it, failure opens it for another pause."""
    breaker = opened(clock)
    clock.now += 10
    assert breaker.allow()
    assert not breaker.allow()
    breaker.failure()
    assert breaker.state == "open"
    clock.now += 10
    assert breaker.allow()
    breaker.success()
    assert breaker.allow()
    breaker.failure()
    assert breaker.allow()  # the count began anew


def test_a_trial_that_nobody_reports_does_not_keep_it_shut(clock: Clock) -> None:
    """Its caller was cancelled; after a pause another may try."""
    breaker = opened(clock)
    clock.now += 10
    assert breaker.allow()
    clock.now += 10
    assert breaker.allow()
    assert not breaker.allow()


def test_an_old_calls_result_does_not_move_an_open_breaker(clock: Clock) -> None:
    """Neither a success nor a failure that comes in late."""
    breaker = opened(clock)
    breaker.success()
    assert breaker.state == "open"
    clock.now += 9
    breaker.failure()
    assert breaker.wait_s == 1


def test_senseless_settings_are_refused() -> None:
    """A breaker that opens after no failure, or for no time."""
    with pytest.raises(ValueError, match="failures"):
        Breaker(failures=0)
    with pytest.raises(ValueError, match="pause_s"):
        Breaker(pause_s=0)
