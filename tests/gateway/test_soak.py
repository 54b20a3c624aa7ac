"""A gateway under load while everything behind it goes wrong: not one request is unaccounted for.

``VLMGUARD_SOAK_S`` sets the seconds; ten minutes by default.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.gateway.common import COMPLETION, chunks, data_url, image_part, png, stream, text_part
from tests.gateway.faults import read_audit
from tests.gateway.processes import SCRIPT, serving
from tests.gateway.redis_server import RedisServer

SECONDS = float(os.environ.get("VLMGUARD_SOAK_S", "600"))
CLIENTS = 12
STORM_S = 5.0
"""So often the weather changes: for a while all is well, then much fails, then everything."""
WEATHER = (0.02, 0.3, 1.0, 0.1)
"""Share of calls that fail, of target and rewriter, from one time to the next."""

FAILING = ("open", "closed")
"""What the policy says about failures of the guard, in turn."""


class Weather:
    """Decides what fails: the target and the rewriter, never both for the same reason."""

    def __init__(self, seed: int) -> None:
        self._dice = random.Random(seed)
        self._start = time.monotonic()

    def fault(self, kinds: tuple[str, ...], shift: int) -> str | None:
        """One of the kinds, or none."""
        at = int((time.monotonic() - self._start) / STORM_S) + shift
        if self._dice.random() >= WEATHER[at % len(WEATHER)]:
            return None
        return self._dice.choice(kinds)


@dataclass(slots=True)
class Model:
    """An OpenAI-compatible server, target or rewriter, that fails by the weather.

    Attributes:
        faults: how often each kind happened.
        waited_for: marks of requests that are answered only when their client has left.
    """

    weather: Weather
    shift: int
    faults: Counter[str] = field(default_factory=Counter)
    waited_for: dict[str, asyncio.Event] = field(default_factory=dict)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if (leaving := self.waited_for.get(str(body.get("user")))) is not None:
            leaving.set()
            await asyncio.sleep(60)
        kinds = ("500", "429", "abort", "garbage", "hang", "half")
        fault = self.weather.fault(kinds, self.shift)
        if fault is not None:
            self.faults[fault] += 1
            return await self._fail(request, fault)
        if body.get("stream"):
            return await stream(request, chunks("Hel", "lo."))
        risky = "bad" in json.dumps(body["messages"][-1])
        content = SCRIPT["bad" if risky else "*"] if self.shift else "Hello."
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": content}
        return web.json_response({**COMPLETION, "choices": [{**choice, "message": message}]})

    async def _fail(self, request: web.Request, fault: str) -> web.StreamResponse:
        if fault in {"500", "429"}:
            return web.json_response({"error": {"message": "no"}}, status=int(fault))
        if fault == "hang":
            await asyncio.sleep(3)
        if fault == "garbage":
            return web.Response(body=b"\x00<html>", content_type="application/json")
        if fault == "half":
            return await self._half(request)
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _half(self, request: web.Request) -> web.StreamResponse:
        response = await stream(request, chunks("Hel")[:1])
        assert request.transport is not None
        request.transport.abort()
        return response


@asynccontextmanager
async def served(model: Model) -> AsyncIterator[str]:
    """The base URL of a model's server."""
    app = web.Application(client_max_size=2**26)
    app.router.add_post("/v1/chat/completions", model.handle)
    async with TestServer(app) as server:
        yield str(server.make_url("/v1"))


@dataclass(slots=True)
class Count:
    """What the clients saw.

    Attributes:
        asked: requests that the gateway has read whole.
        answered: request id → status, of those that were answered.
        left: requests whose client hung up.
    """

    asked: int = 0
    answered: dict[str, int] = field(default_factory=dict)
    left: int = 0


class Client:
    """Asks one thing after another, in many ways."""

    def __init__(
        self, number: int, session: aiohttp.ClientSession, count: Count, target: Model
    ) -> None:
        self._number = number
        self._session = session
        self._count = count
        self._target = target
        self._dice = random.Random(number)
        self._asked = 0

    async def run(self, until: float) -> None:
        """Until then."""
        while time.monotonic() < until:
            self._asked += 1
            if self._dice.random() < 0.05:
                await self._leave()
            else:
                await self._ask()

    def _body(self, **more: Any) -> dict[str, Any]:
        mark = f"{self._number}-{self._asked}"
        word = self._dice.choice(["bad", "good", "good"])
        content: Any = f"{word} {mark if self._dice.random() < 0.5 else 'again'}"
        if self._dice.random() < 0.1:
            content = [text_part(content), image_part(data_url(png(word)))]
        if self._dice.random() < 0.05:
            content = [{"type": "image_url"}]  # a 400
        messages = [{"role": "user", "content": content}]
        return {"model": "m", "messages": messages, "user": mark, **more}

    async def _ask(self) -> None:
        body = self._body(stream=self._dice.random() < 0.4)
        self._count.asked += 1
        async with self._session.post("v1/chat/completions", json=body) as response:
            name = response.headers["x-vlmguard-request-id"]
            assert name not in self._count.answered
            self._count.answered[name] = response.status
            await response.read()
            if response.status == 503:  # a breaker is open: as clients do, wait a little
                await asyncio.sleep(0.05)

    async def _leave(self) -> None:
        """Hang up once the target works on it, or once there is an answer before that."""
        body = self._body()
        seen = self._target.waited_for[body["user"]] = asyncio.Event()
        self._count.asked += 1
        task = asyncio.create_task(self._session.post("v1/chat/completions", json=body))
        waits = asyncio.create_task(seen.wait())
        await asyncio.wait([task, waits], return_when=asyncio.FIRST_COMPLETED)
        waits.cancel()
        if task.done():
            async with task.result() as response:
                self._count.answered[response.headers["x-vlmguard-request-id"]] = response.status
                await response.read()
            return
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        self._count.left += 1


async def trouble(redis: RedisServer, policy: Path) -> None:
    """Redis comes and goes, and the policy changes."""
    for turn in range(10_000):
        await asyncio.sleep(STORM_S * 0.7)
        await asyncio.to_thread(redis.stop if turn % 2 == 0 else redis.start)
        rules = f"name: turn{turn}\ntimeout_s: 1\non_failure: {FAILING[turn % 2]}\n"
        await asyncio.to_thread(policy.write_text, rules)


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + 180)
async def test_requests_decisions_and_answers_agree(tmp_path: Path) -> None:
    """As many records as requests; each answer's status is its record's; numbers say the same."""
    weather = Weather(seed=1)
    target, rewriter = Model(weather, shift=0), Model(weather, shift=1)
    redis = RedisServer(tmp_path)
    redis.start()
    policy, audit, config = tmp_path / "p.yaml", tmp_path / "a.sqlite", tmp_path / "c.yaml"
    policy.write_text("name: first\ntimeout_s: 1\non_failure: closed\n")
    config.write_text("target_timeout_s: 1\n")
    count = Count()
    async with (
        served(target) as target_url,
        served(rewriter) as rewriter_url,
        serving(
            *(tmp_path, "--target", f"openai:m@{target_url}", "--config", str(config)),
            *("--rewriter", f"openai:r@{rewriter_url}?retries=0", "--detectors", "none"),
            *("--policy", str(policy), "--audit", str(audit), "--redis", redis.url),
            *("--log-level", "error"),
            until="gateway on",
        ) as gateway,
        aiohttp.ClientSession(f"{gateway.url}/") as session,
    ):
        log = asyncio.create_task(gateway.end(SECONDS + 120))
        troubling = asyncio.create_task(trouble(redis, policy))
        until = time.monotonic() + SECONDS
        clients = [Client(number, session, count, target) for number in range(CLIENTS)]
        await asyncio.gather(*(client.run(until) for client in clients))
        troubling.cancel()
        await asyncio.gather(troubling, return_exceptions=True)
        async with session.get("metrics") as response:
            shown = await response.text()
        gateway.process.send_signal(signal.SIGTERM)
        await log
    redis.stop()
    records = read_audit(audit)
    sys.stdout.write(_summary(count, target, rewriter))
    kept = {record.request_id: record.status for record in records}
    assert len(records) == len(kept) == count.asked == len(count.answered) + count.left
    assert {name: kept.get(name) for name in count.answered} == count.answered
    gone = [status for name, status in kept.items() if name not in count.answered]
    assert gone == [499] * count.left
    requests = re.findall(r'_seconds_count\{route="/v1/chat/completions".*\} (\S+)', shown)
    assert sum(map(float, requests)) == count.asked
    decisions = re.findall(r"^vlmguard_decisions_total\{.*\} (\S+)", shown, re.MULTILINE)
    assert sum(map(float, decisions)) == sum(record.verdict is not None for record in records)
    assert "vlmguard_requests_in_flight 0.0" in shown
    assert {200, 400, 429, 500, 502, 503, 504} <= set(kept.values())
    assert "unexpected error" not in gateway.said


def _summary(count: Count, target: Model, rewriter: Model) -> str:
    statuses = dict(sorted(Counter(count.answered.values()).items()))
    return (
        f"\n{count.asked} requests in {SECONDS:g} s, {count.left} clients left; "
        f"answered {statuses}\nfaults of the target {dict(target.faults)}"
        f"\nfaults of the rewriter {dict(rewriter.faults)}\n"
    )
