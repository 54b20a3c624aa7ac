"""What Prometheus gets to see."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vlmguard.errors import EngineTimeout
from vlmguard.gateway.metrics import Metrics
from vlmguard.types import Rewrite, Usage

SAFE = Rewrite(
    verdict="safe",
    risk=0.1,
    category=None,
    action="allow",
    report=None,
    prompt="hello",
    changed=False,
    timings_ms={"perception": 20.0, "verdict": 5.0},
    usage=Usage(prompt_tokens=100, completion_tokens=1, cached_tokens=50),
    policy="balanced",
)


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """(name, labels) → value."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return samples(metrics.render())[name, frozenset(labels.items())]


def test_a_decision_counts_with_its_steps_tokens_and_level() -> None:
    """One call for all of it."""
    metrics = Metrics()
    risky = replace(SAFE, verdict="risky", category="violence", action="rewrite")
    metrics.decision(SAFE, mode="enforce")
    metrics.decision(SAFE, mode="enforce")
    metrics.decision(risky, mode="shadow")
    remembered = replace(SAFE, timings_ms={"cache": 0.01}, usage=Usage())
    metrics.decision(remembered, mode="enforce")
    common = {"policy": "balanced"}
    assert value(metrics, "vlmguard_decisions_total", verdict="safe", action="allow", category="",
                 mode="enforce", **common) == 3  # fmt: skip
    assert value(metrics, "vlmguard_decisions_total", verdict="risky", action="rewrite",
                 category="violence", mode="shadow", **common) == 1  # fmt: skip
    assert value(metrics, "vlmguard_step_seconds_count", step="perception") == 3
    assert value(metrics, "vlmguard_step_seconds_sum", step="perception") == pytest.approx(0.06)
    assert value(metrics, "vlmguard_cache_lookups_total", level="guard") == 1
    assert value(metrics, "vlmguard_tokens_total", model="rewriter", kind="prompt") == 300


def test_what_passed_unguarded_is_a_failure() -> None:
    """By its type only: the message may be anything."""
    metrics = Metrics()
    metrics.decision(replace(SAFE, failure="EngineTimeout: what a prompt"), mode="enforce")
    assert value(metrics, "vlmguard_failures_total", place="passed_unguarded",
                 error="EngineTimeout") == 1  # fmt: skip
    assert b"prompt" not in metrics.render().replace(b'kind="prompt"', b"")


def test_requests_in_flight_go_up_and_down() -> None:
    """Also when one fails."""
    metrics = Metrics()
    with metrics.in_flight(), metrics.in_flight():
        assert value(metrics, "vlmguard_requests_in_flight") == 2
    with pytest.raises(ValueError, match="no"), metrics.in_flight():
        raise ValueError("no")
    assert value(metrics, "vlmguard_requests_in_flight") == 0


def test_the_rest_is_counted_under_its_labels() -> None:
    """Requests, failures, refusals, breakers, lost records."""
    metrics = Metrics()
    metrics.request("/v1/chat/completions", 200, 0.3)
    metrics.failure("rewriter", EngineTimeout("slow"))
    metrics.refused("rate")
    metrics.breaker("target", "open")
    metrics.audit_lost(3)
    with metrics.timed("upstream_first_byte"):
        pass
    route = "/v1/chat/completions"
    assert value(metrics, "vlmguard_request_seconds_count", route=route, status="200") == 1
    assert value(metrics, "vlmguard_failures_total", place="rewriter", error="EngineTimeout") == 1
    assert value(metrics, "vlmguard_refused_total", reason="rate") == 1
    assert value(metrics, "vlmguard_breaker_state", breaker="target") == 2
    assert value(metrics, "vlmguard_audit_records_lost_total") == 3
    assert value(metrics, "vlmguard_step_seconds_count", step="upstream_first_byte") == 1
    metrics.breaker("target", "closed")
    assert value(metrics, "vlmguard_breaker_state", breaker="target") == 0


def test_two_gateways_in_one_process_count_apart() -> None:
    """Each has a registry of its own."""
    one, other = Metrics(), Metrics()
    one.refused("key")
    assert b'reason="key"' not in other.render()


def test_several_workers_show_their_sum(tmp_path: Path) -> None:
    """Two processes, and the gauge of the one that ended is gone."""
    program = (
        "import os, sys; from vlmguard.gateway.metrics import Metrics, forget_worker\n"
        "child = os.fork()\n"
        "metrics = Metrics(); metrics.refused('rate'); metrics.request('/r', 200, 0.1)\n"
        "metrics.breaker('target', 'open'); metrics._in_flight.inc()\n"
        "if not child: os._exit(0)\n"
        "os.waitpid(child, 0); forget_worker(child)\n"
        "sys.stdout.buffer.write(metrics.render())\n"
    )
    env = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, check=True)
    seen = samples(done.stdout)
    answered = frozenset({("route", "/r"), ("status", "200")})
    assert seen["vlmguard_refused_total", frozenset({("reason", "rate")})] == 2
    assert seen["vlmguard_request_seconds_count", answered] == 2
    assert seen["vlmguard_requests_in_flight", frozenset()] == 1
    assert seen["vlmguard_breaker_state", frozenset({("breaker", "target")})] == 2
