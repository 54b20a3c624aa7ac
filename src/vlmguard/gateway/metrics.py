"""What the gateway counts, for Prometheus.

With one worker the numbers live in this process. With several, set ``PROMETHEUS_MULTIPROC_DIR`` to
an empty folder before this module is imported: every worker writes there, and any of them shows
the sum.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version

from vlmguard.errors import MissingExtra
from vlmguard.gateway.breaker import BreakerState
from vlmguard.types import Rewrite, Usage

try:
    from prometheus_client import (
        CONTENT_TYPE_LATEST,
        CollectorRegistry,
        Counter,
        Gauge,
        Histogram,
        generate_latest,
    )
    from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
except ImportError as error:  # pragma: no cover - tests run with the extra
    raise MissingExtra("the gateway's metrics", "serve") from error

CONTENT_TYPE = CONTENT_TYPE_LATEST
"""Of what `Metrics.render` gives."""

_FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Seconds. From a remembered decision (under a millisecond) to a model on a loaded CPU."""
_WHOLE = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Seconds of a whole request, a long streamed answer included."""
_STATES: Mapping[BreakerState, int] = {"closed": 0, "half_open": 1, "open": 2}
_MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """All numbers of one gateway. Children of labels are looked up once and kept.

    The values of labels come from us and from the operator (policies, categories, routes), never
    from requests, so that their number stays small.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self._decisions = Counter(
            "vlmguard_decisions",
            "Decisions about user turns.",
            ("verdict", "action", "category", "policy", "mode"),
            registry=registry,
        )
        self._steps = Histogram(
            "vlmguard_step_seconds",
            "Time of one step: guard, perception, verdict, rewrite, upstream_first_byte …",
            ("step",),
            buckets=_FAST,
            registry=registry,
        )
        self._requests = Histogram(
            "vlmguard_request_seconds",
            "Whole requests, up to the last byte of the answer; their count is that of requests.",
            ("route", "status"),
            buckets=_WHOLE,
            registry=registry,
        )
        self._in_flight = Gauge(
            "vlmguard_requests_in_flight",
            "Requests that are being answered.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self._lookups = Counter(
            "vlmguard_cache_lookups",
            "Decisions asked for, by the level that remembered them (none: decided anew).",
            ("level",),
            registry=registry,
        )
        self._failures = Counter(
            "vlmguard_failures", "What failed.", ("place", "error"), registry=registry
        )
        self._refused = Counter(
            "vlmguard_refused",
            "Requests turned away before a decision: key, rate, body, route …",
            ("reason",),
            registry=registry,
        )
        self._tokens = Counter(
            "vlmguard_tokens",
            "Tokens, as the models counted them.",
            ("model", "kind"),
            registry=registry,
        )
        self._breakers = Gauge(
            "vlmguard_breaker_state",
            "Circuit breakers: 0 closed, 1 half open, 2 open; of several workers the worst.",
            ("breaker",),
            multiprocess_mode="livemax",
            registry=registry,
        )
        self._lost = Counter(
            "vlmguard_audit_records_lost",
            "Audit records that could not be written.",
            registry=registry,
        )
        Gauge(
            "vlmguard_build_info",
            "Always 1; the version is a label.",
            ("version",),
            multiprocess_mode="livemax",
            registry=registry,
        ).labels(version("vlmguard-r1")).set(1)
        self._decision_of: dict[tuple[str, ...], Counter] = {}
        self._step_of: dict[str, Histogram] = {}
        self._request_of: dict[tuple[str, int], Histogram] = {}
        self._lookup_of: dict[str, Counter] = {}

    def decision(self, rewrite: Rewrite, *, mode: str) -> None:
        """Count one decision with its steps, tokens and cache level.

        Args:
            rewrite: the decision.
            mode: ``enforce``, ``shadow`` or ``off``.
        """
        labels = (rewrite.verdict, rewrite.action, rewrite.category or "", rewrite.policy, mode)
        child = self._decision_of.get(labels)
        if child is None:
            child = self._decision_of[labels] = self._decisions.labels(*labels)
        child.inc()
        if "cache" in rewrite.timings_ms:  # remembered by the guard itself
            self.lookup("guard")
        for step, elapsed in rewrite.timings_ms.items():
            self.step(step, elapsed / 1000)
        if rewrite.failure is not None:  # "Type: message"; let through under an open policy
            kind = rewrite.failure.partition(":")[0]
            self._failures.labels("passed_unguarded", kind if kind.isidentifier() else "").inc()
        if rewrite.usage != _NO_TOKENS:
            self.tokens("rewriter", rewrite.usage)

    def step(self, step: str, seconds: float) -> None:
        """Note how long a step took."""
        child = self._step_of.get(step)
        if child is None:
            child = self._step_of[step] = self._steps.labels(step)
        child.observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Note that a request was answered, up to its last byte."""
        labels = (route, status)
        child = self._request_of.get(labels)
        if child is None:
            child = self._request_of[labels] = self._requests.labels(route, str(status))
        child.observe(seconds)

    @contextmanager
    def in_flight(self) -> Iterator[None]:
        """Count a request as being answered until its last byte."""
        self._in_flight.inc()
        try:
            yield
        finally:
            self._in_flight.dec()

    def lookup(self, level: str) -> None:
        """Count the level that remembered a decision: guard, memory, redis or none."""
        child = self._lookup_of.get(level)
        if child is None:
            child = self._lookup_of[level] = self._lookups.labels(level)
        child.inc()

    def failure(self, place: str, error: Exception) -> None:
        """Count a failure of the rewriter, perception, target, audit, redis and so on."""
        self._failures.labels(place, type(error).__name__).inc()

    def refused(self, reason: str) -> None:
        """Count a request that was turned away for its key, rate, body, route or image."""
        self._refused.labels(reason).inc()

    def tokens(self, model: str, usage: Usage) -> None:
        """Count tokens of the ``rewriter`` or of the ``target``."""
        self._tokens.labels(model, "prompt").inc(usage.prompt_tokens)
        self._tokens.labels(model, "completion").inc(usage.completion_tokens)
        self._tokens.labels(model, "cached").inc(usage.cached_tokens)

    def breaker(self, name: str, state: BreakerState) -> None:
        """Show the state of the ``rewriter``'s or the ``target``'s circuit breaker."""
        self._breakers.labels(name).set(_STATES[state])

    def audit_lost(self, count: int) -> None:
        """Count audit records that were dropped."""
        self._lost.inc(count)

    def render(self) -> bytes:
        """All numbers in Prometheus' text format. With several workers it reads their files."""
        if _MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)

    @contextmanager
    def timed(self, step: str) -> Iterator[None]:
        """Note how long the block took, whether it succeeded or not."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.step(step, time.perf_counter() - start)


_NO_TOKENS = Usage()


def forget_worker(pid: int) -> None:
    """Take a worker that ended out of the gauges. Called by whoever started it."""
    if _MULTIPROCESS in os.environ:
        mark_process_dead(pid)  # type: ignore[no-untyped-call]
