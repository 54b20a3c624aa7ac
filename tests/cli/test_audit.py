"""``vlmguard audit`` and ``vlmguard keys`` as a user meets them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner, Result

from vlmguard.cli import audit, keys
from vlmguard.errors import ConfigError, InputError
from vlmguard.gateway.audit import AuditRecord, open_audit
from vlmguard.gateway.keys import KeyStore
from vlmguard.types import RiskReport

NOW = datetime.now(UTC)


def record(number: int, **changes: Any) -> AuditRecord:
    values: dict[str, Any] = {
        "time": NOW - timedelta(minutes=10 - number),
        "request_id": f"req-{number}",
        "route": "/v1/chat/completions",
        "status": 200,
        "key_id": "k_1",
        "policy": "balanced",
        "verdict": "safe",
        "risk": 0.1,
        "action": "allow",
        "latency_ms": {"guard": float(number), "total": 10.0 * number},
        **changes,
    }
    return AuditRecord(**values)


RISKY: dict[str, Any] = {"verdict": "risky", "risk": 0.9, "category": "fraud", "action": "rewrite"}
REPORT = RiskReport(textual="t", visual="v", multimodal="m")
RECORDS = (
    record(1),
    record(2, **RISKY, prompt="=HYPERLINK()", report=REPORT),
    record(3, failure="EngineTimeout: slow", action="monitor", verdict="risky", risk=1.0),
    record(4, request_id="req-4\x1b[31m\nnext", shadow_policy="strict", shadow_verdict="risky"),
)


def write(place: Path, records: Sequence[AuditRecord] = RECORDS) -> None:
    async def run() -> None:
        log = open_audit(place, keep_content=True)
        for item in records:
            await log.record(item)
        await log.aclose()

    asyncio.run(run())


@pytest.fixture(params=["audit.db", "audit.jsonl"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    place = tmp_path / str(request.param)
    write(place)
    return place


def vlmguard(command: str, *arguments: object) -> Result:
    """One command of the tree: building all of it for each call takes most of a second."""
    app = {"audit": audit.app, "keys": keys.app}[command]
    return CliRunner(env={"COLUMNS": "200"}).invoke(
        app, [str(argument) for argument in arguments], catch_exceptions=False
    )


def ids(*arguments: object) -> list[str]:
    lines = vlmguard("audit", *arguments, "--json").stdout.splitlines()
    return [json.loads(line)["request_id"].splitlines()[0] for line in lines]


def test_tail_shows_a_line_a_record(log: Path) -> None:
    """The newest last, and nothing that a client sent breaks the line or the terminal."""
    done = vlmguard("audit", "tail", log, "-n", 3)
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert all(part in lines[0] for part in ("risky", "0.90", "fraud", "rewrite", "k_1", "20.0 ms"))
    assert "EngineTimeout: slow" in lines[1]
    assert "strict: risky" in lines[2]
    assert "\x1b" not in done.stdout


def test_query_filters(log: Path) -> None:
    """By each option, and together."""
    assert ids("query", log) == ["req-1", "req-2", "req-3", "req-4\x1b[31m"]
    assert ids("query", log, "--verdict", "risky", "--category", "fraud") == ["req-2"]
    assert ids("query", log, "--action", "monitor") == ["req-3"]
    assert ids("query", log, "--failed") == ["req-3"]
    assert ids("query", log, "--key", "k_2") == []
    assert ids("query", log, "--request", "req-1") == ["req-1"]
    since = (NOW - timedelta(seconds=450)).isoformat()
    assert ids("query", log, "--since", since, "--limit", 1) == ["req-4\x1b[31m"]
    assert ids("query", log, "--until", (NOW - timedelta(minutes=8)).isoformat()) == ["req-1"]
    assert ids("query", log, "--since", "2999-01-31") == []


def test_stats_count_and_measure(log: Path) -> None:
    """For people and for programs."""
    told = json.loads(vlmguard("audit", "stats", log, "--json").stdout)
    assert told["records"] == 4
    assert told["failed"] == 1
    assert told["by_verdict"] == {"safe": 2, "risky": 2}
    assert told["by_category"] == {"fraud": 1}
    assert told["by_policy"] == {"balanced": 4}
    assert sum(told["by_hour"].values()) == 4
    assert told["latency_ms"]["total"] == {"p50": 20.0, "p90": 40.0, "p95": 40.0, "p99": 40.0}
    text = vlmguard("audit", "stats", log).stdout
    for part in ("4 records, 1 where the guard failed", "fraud", "50.0%", "p99 ms", "total"):
        assert part in text
    assert "0 records" in vlmguard("audit", "stats", log, "--key", "nobody").stdout


def test_exports_are_read_by_other_programs(log: Path, tmp_path: Path) -> None:
    """JSON Lines, CSV without formulas, Parquet with types."""
    lines = vlmguard("audit", "export", log).stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == [200] * 4
    rows = vlmguard("audit", "export", log, "--format", "csv").stdout
    assert "'=HYPERLINK()" in rows
    file = tmp_path / "out.parquet"
    done = vlmguard("audit", "export", log, file, "--verdict", "risky")
    assert "2 records" in done.stderr
    table = pq.read_table(file).to_pylist()
    assert [row["risk"] for row in table] == [0.9, 1.0]
    assert table[0]["time"] == RECORDS[1].time
    assert dict(table[0]["latency_ms"])["total"] == 20.0
    assert table[0]["report"]["visual"] == "v"
    with pytest.raises(ConfigError, match="--force overwrites it"):
        vlmguard("audit", "export", log, file)
    vlmguard("audit", "export", log, file, "--force")
    assert pq.read_table(file).num_rows == 4


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--since", "yesterday"), "--since 'yesterday' is no time"),
        (("--verdict", "bad"), "--verdict is one of safe, risky, not 'bad'"),
        (("--action", "block"), "--action is one of allow"),
    ],
)
def test_wrong_options_are_told(log: Path, arguments: tuple[str, ...], told: str) -> None:
    """With what was meant to be there."""
    with pytest.raises(ConfigError, match=told):
        vlmguard("audit", "query", log, *arguments)


def test_following_ends_quietly_with_control_c(tmp_path: Path) -> None:
    """It waits for the log, shows records as they are written, and leaves with exit code 130."""
    place = tmp_path / "audit.db"
    program = (  # a shell may have told its background jobs to ignore the signal
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vlmguard.cli.main import main; main()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, "audit", "tail", "-f", str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("waiting for")
            write(place, RECORDS[:1])
            assert "req-1" in process.stdout.readline()
            write(place, RECORDS[1:2])
            assert "req-2" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "Traceback" not in errors


# --- keys ---


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    """The token stands alone on standard output, and nowhere else."""
    file = tmp_path / "keys.yaml"
    made = vlmguard("keys", "add", "team a", "--policy", "strict", "--rpm", 60, "--max-body", "20M",
                    "-f", file)  # fmt: skip
    token = made.stdout.strip()
    key = KeyStore(file).check(token)
    assert key is not None
    assert (key.policy, key.requests_per_minute, key.max_body_bytes) == ("strict", 60, 20 << 20)
    listed = vlmguard("keys", "list", "-f", file)
    assert key.id in listed.stdout
    assert token not in listed.stdout
    told = json.loads(vlmguard("keys", "list", "-f", file, "--json").stdout)
    assert "sha256" not in told[0]
    vlmguard("keys", "revoke", "team a", "-f", file)
    assert KeyStore(file).check(token) is None
    assert "no keys in force" in vlmguard("keys", "list", "-f", file).stderr
    assert "revoked" in vlmguard("keys", "list", "-f", file, "--all").stdout


def test_a_keys_policy_is_checked_and_found_from_anywhere(tmp_path: Path) -> None:
    """A file is kept by its whole path."""
    file, policy = tmp_path / "keys.yaml", tmp_path / "mine.yaml"
    policy.write_text("name: mine\n")
    token = vlmguard(
        "keys", "add", "a", "-p", policy, "-f", file, "--mode", "shadow"
    ).stdout.strip()
    key = KeyStore(file).check(token)
    assert key is not None
    assert (key.policy, key.mode) == (str(policy.resolve()), "shadow")
    with pytest.raises(ConfigError, match="there is no policy 'nope'"):
        vlmguard("keys", "add", "b", "-p", "nope", "-f", file)
    with pytest.raises(ConfigError, match="--mode is one of"):
        vlmguard("keys", "add", "b", "--mode", "loud", "-f", file)
    with pytest.raises(ConfigError, match="'lots' is no size"):
        vlmguard("keys", "add", "b", "--max-body", "lots", "-f", file)
    with pytest.raises(InputError, match="no key in force is named 'b'; in force: a"):
        vlmguard("keys", "revoke", "b", "-f", file)
