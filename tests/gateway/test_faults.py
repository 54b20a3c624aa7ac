"""What stands behind the gateway goes wrong: rewriter, target, Redis, disk."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from tests.gateway.common import Rules, error_of, listening, running
from tests.gateway.faults import Behaviour, faulty, hangs, head, read_audit, resets, says, sends
from tests.gateway.redis_server import RedisServer
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.keys import add_key

SAFE = '{"verdict": "safe"}'


def policy_file(path: Path, on_failure: str, *, timeout_s: float = 20) -> str:
    path.write_text(f"name: p\non_failure: {on_failure}\ntimeout_s: {timeout_s}\n")
    return str(path)


def metric(text: str, name: str) -> float:
    """The value of one line of ``/metrics``."""
    return float(next(line for line in text.splitlines() if line.startswith(name)).split()[-1])


REWRITERS = {
    "hangs": (hangs(), "EngineTimeout"),
    "hangs within": (hangs(head(length=100) + b'{"choi'), "EngineTimeout"),
    "dies": (resets, "EngineUnavailable"),
    "closes early": (sends(head(length=100) + b'{"choi'), "EngineUnavailable"),
    "no HTTP": (sends(b"\x00\xff\x16 nonsense\r\n\r\n"), "EngineUnavailable"),
    "no JSON": (sends(head(length=2) + b"<>"), "EngineUnavailable"),
    "no verdict": (says("Roses are red. zz-private-words"), "RewriteParseError"),
    "another verdict": (says('{"verdict": "maybe"}'), "RewriteParseError"),
    "nothing": (says(""), "RewriteParseError"),
    "500": (sends(head(500, length=2) + b"{}"), "EngineUnavailable"),
}


@pytest.mark.parametrize("on_failure", ["closed", "open"])
@pytest.mark.parametrize("kind", REWRITERS)
async def test_a_faulty_rewriter(kind: str, on_failure: str, tmp_path: Path) -> None:
    """Closed: an error that clients read. Open: the request passes; header and record say so."""
    behaviour, failure = REWRITERS[kind]
    audit = tmp_path / "a.sqlite"
    timeout_s = 0.3 if failure == "EngineTimeout" else 20
    policy = policy_file(tmp_path / "p.yaml", on_failure, timeout_s=timeout_s)
    async with (
        faulty(behaviour) as server,
        running(
            rewriter=f"openai:r@{server.url}?retries=0", policy=policy, audit=str(audit)
        ) as gate,
    ):
        response = await gate.chat("hi")
    [record] = read_audit(audit)
    if on_failure == "closed":
        told = error_of(response)
        assert (response.status_code, told["code"], record.status) == (503, "guard_failed", 503)
        assert not gate.upstream.received
        assert record.verdict is None
    else:
        assert (response.status_code, record.status) == (200, 200)
        assert response.headers["x-vlmguard-failure"] == failure
        assert (response.headers["x-vlmguard-action"], record.action) == ("monitor", "monitor")
        assert gate.upstream.messages[0]["content"] == "hi"
    assert failure in str(record.failure) or record.failure == "guard_failed"
    assert "127.0.0.1" not in response.text + str(response.headers)
    assert "zz-private-words" not in response.text + str(response.headers)


async def test_the_rewriters_breaker_opens_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After failures in a row nobody asks it; after a pause one request tries, then all do."""
    quick = partial(Breaker, failures=3, pause_s=0.2)
    monkeypatch.setattr("vlmguard.gateway.gateway.Breaker", quick)
    policy = policy_file(tmp_path / "p.yaml", "closed")
    async with (
        faulty(resets) as server,
        running(rewriter=f"openai:r@{server.url}?retries=0", policy=policy) as gate,
    ):
        statuses = [(await gate.chat(f"hi {number}")).status_code for number in range(6)]
        assert statuses == [503] * 6
        assert server.asked == 3
        ready = await gate.http.get("/health/ready")
        assert (ready.status_code, list(ready.json()["problems"])) == (503, ["rewriter"])
        shown = (await gate.http.get("/metrics")).text
        assert metric(shown, 'vlmguard_breaker_state{breaker="rewriter"}') == 2
        server.behaviour = says(SAFE)
        await asyncio.sleep(0.25)
        assert (await gate.chat("again")).status_code == 200
        assert (await gate.chat("and again")).status_code == 200
        assert (await gate.http.get("/health/ready")).status_code == 200


async def test_garbage_does_not_open_the_breaker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else whoever makes a rewriter stumble would shut out all others."""
    monkeypatch.setattr("vlmguard.gateway.gateway.Breaker", partial(Breaker, failures=2))
    policy = policy_file(tmp_path / "p.yaml", "closed")
    async with (
        faulty(says("no")) as server,
        running(rewriter=f"openai:r@{server.url}?retries=0", policy=policy) as gate,
    ):
        for number in range(4):
            assert (await gate.chat(f"hi {number}")).status_code == 503
        server.behaviour = says(SAFE)
        assert (await gate.chat("again")).status_code == 200


WRONG_LENGTH = head().replace(b"\r\n\r\n", b"\r\ncontent-length: x\r\n\r\n")
ENDLESS_HEAD = b"HTTP/1.1 200 OK\r\nx: " + b"x" * 100_000
CHUNKED = head().replace(b"\r\n\r\n", b"\r\ntransfer-encoding: chunked\r\n\r\n")
TARGETS: dict[str, tuple[Behaviour, int, str]] = {
    "hangs": (hangs(), 504, "target_timeout"),
    "hangs within": (hangs(head(length=100) + b"{"), 504, "target_timeout"),
    "dies": (resets, 502, "target_unavailable"),
    "says nothing": (sends(b""), 502, "target_unavailable"),
    "no HTTP": (sends(b"\x00\xff\x16 nonsense\r\n\r\n"), 502, "target_unavailable"),
    "a wrong length": (sends(WRONG_LENGTH), 502, "target_unavailable"),
    "an endless head": (sends(ENDLESS_HEAD), 502, "target_unavailable"),
    "closes early": (sends(head(length=100) + b'{"choi'), 502, "target_broke_off"),
    "half a chunk": (sends(CHUNKED + b"ff\r\n{"), 502, "target_broke_off"),
}


@pytest.mark.parametrize("kind", TARGETS)
async def test_a_faulty_target(kind: str, tmp_path: Path) -> None:
    """An error in OpenAI's form that says what happened, with a record of the same status."""
    behaviour, status, code = TARGETS[kind]
    audit = tmp_path / "a.sqlite"
    async with (
        faulty(behaviour) as server,
        running(target=f"openai:m@{server.url}", target_timeout_s=0.2, audit=str(audit)) as gate,
    ):
        response = await gate.chat("hi")
        told = error_of(response)
        assert (response.status_code, told["code"]) == (status, code)
        assert response.headers["x-vlmguard-verdict"] == "safe"
        assert "127.0.0.1" not in response.text
        shown = (await gate.http.get("/metrics")).text
        assert metric(shown, 'vlmguard_failures_total{error="') == 1
    [record] = read_audit(audit)
    assert (record.status, record.failure, record.verdict) == (status, code, "safe")


async def test_an_answer_that_is_no_json_passes_as_it_is() -> None:
    """The client is told what the target said."""
    async with (
        faulty(sends(head(length=9) + b'"usage" {')) as server,
        running(target=f"openai:m@{server.url}") as gate,
    ):
        response = await gate.chat("hi")
        assert (response.status_code, response.content) == (200, b'"usage" {')


async def test_a_body_of_another_kind_that_breaks_off() -> None:
    """The client's connection breaks off as well, and does not look like a whole answer."""
    start = CHUNKED.replace(b"application/json", b"audio/mpeg")
    async with (
        faulty(sends(start + b"3\r\nabc\r\n")) as server,
        running(target=f"openai:m@{server.url}", allow_routes=("/v1/audio/*",)) as gate,
        listening(gate.gateway) as url,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(f"{url}/v1/audio/speech", data=b"{}") as response:
            assert response.status == 200
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
        async with session.get(f"{url}/metrics") as shown:
            text = await shown.text()
    assert metric(text, 'vlmguard_failures_total{error="ClientPayloadError"') == 1
    assert metric(text, "vlmguard_requests_in_flight") == 0


async def test_the_targets_breaker_opens_and_recovers(monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is open the target is not asked, and clients are told when to try again."""
    quick = partial(Breaker, failures=3, pause_s=0.2)
    monkeypatch.setattr("vlmguard.gateway.upstream.Breaker", quick)
    async with faulty(resets) as server, running(target=f"openai:m@{server.url}") as gate:
        statuses = [(await gate.chat("hi")).status_code for _ in range(5)]
        assert statuses == [502, 502, 502, 503, 503]
        assert server.asked == 3
        assert int((await gate.chat("hi")).headers["retry-after"]) >= 1
        server.behaviour = says("Hello.")
        await asyncio.sleep(0.25)
        assert [(await gate.chat("hi")).status_code for _ in range(3)] == [200] * 3


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A real one."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


async def test_redis_comes_and_goes(redis: RedisServer, tmp_path: Path) -> None:
    """Workers share decisions and limits while it is there; without, each goes on by itself."""
    keys = tmp_path / "keys.yaml"
    token = {"authorization": f"Bearer {add_key(keys, 'k', requests_per_minute=30)[0]}"}
    first, second = Rules(), Rules()
    async with (
        running(first, redis=redis.url, keys=keys) as one,
        running(second, redis=redis.url, keys=keys) as two,
    ):
        assert (await one.chat("bad", headers=token)).status_code == 200
        shared = await two.chat("bad", headers=token)
        assert shared.headers["x-vlmguard-action"] == "rewrite"
        assert not second.seen
        redis.stop()
        for number in range(3):
            response = await two.chat(f"bad {number}", headers=token)
            assert response.headers["x-vlmguard-action"] == "rewrite"
        assert len(second.seen) == 3
        limited = [(await two.chat("hi", headers=token)).status_code for _ in range(30)]
        assert {200, 429} == set(limited)
        assert (await two.http.get("/health/ready")).status_code == 200


async def test_redis_is_connected_to_before_the_first_request(redis: RedisServer) -> None:
    """So that nobody's request waits for that, or does without."""
    async with running(redis=redis.url), Redis.from_url(redis.url) as other:
        assert len(await other.client_list()) == 2


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here; test_audit fills one by a limit")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(filler: Path) -> None:
    """Take all the room that there is."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 512)


@pytest.mark.parametrize("form", ["sqlite", "jsonl"])
@pytest.mark.parametrize("audit_full", ["fail", "continue"])
async def test_a_full_disk(disk: Path, form: str, audit_full: Any) -> None:
    """Requests fail or go on, as the operator chose, and all is well once there is room again."""
    audit = disk / f"a.{form}"
    statuses = []
    async with running(audit=str(audit), audit_full=audit_full) as gate:
        statuses.append((await gate.chat("first")).status_code)
        filler = disk / "filler"
        fill(filler)
        refused = 0
        while refused < 3:  # what is left of the last page may still take a record
            response = await gate.chat("while it is full")
            lost = metric((await gate.http.get("/metrics")).text, "vlmguard_audit_records_lost")
            statuses.append(response.status_code)
            refused = int(lost) if audit_full == "continue" else statuses.count(503)
        if audit_full == "fail":
            assert error_of(response)["code"] == "audit_failed"
            assert len(gate.upstream.received) > statuses.count(200)  # asked, but not passed on
        else:
            assert set(statuses) == {200}
        filler.unlink()
        statuses.append((await gate.chat("last")).status_code)
        assert statuses[-1] == 200
    kept = len(read_audit(audit))
    assert kept == (statuses.count(200) if audit_full == "fail" else len(statuses) - refused)
