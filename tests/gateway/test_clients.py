"""Clients that hang up, dawdle, or speak HTTP oddly: nobody else notices, and nothing is left."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.gateway.common import Running, chunks, listening, running, stream

BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
REQUEST = HEAD % len(BODY) + BODY


@pytest.fixture
async def url(gate: Running) -> AsyncIterator[str]:
    """The gateway behind a real socket."""
    async with listening(gate.gateway) as url:
        yield url


async def connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = url.removeprefix("http://").partition(":")
    return await asyncio.open_connection(host, int(port))


async def in_flight(gate: Running, count: int) -> None:
    """Wait until so many requests are being answered."""
    async with asyncio.timeout(20):
        while f"_in_flight {count}.0" not in (await gate.http.get("/metrics")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_slow_clients_do_not_hold_up_others() -> None:
    """Two hundred of them dawdle with head or body; requests of others are answered meanwhile."""
    settings: Any = {"header_timeout_s": 1.0, "body_timeout_s": 1.0}
    async with (
        running(**settings) as gate,
        listening(gate.gateway) as url,
        aiohttp.ClientSession() as session,
    ):
        dawdling = []
        for number in range(200):
            reader, writer = await connect(url)
            writer.write(REQUEST[:60] if number % 2 else REQUEST[:-5])
            dawdling.append((reader, writer))
        for _ in range(5):
            async with session.post(f"{url}/v1/chat/completions", data=BODY) as response:
                assert response.status == 200
        async with asyncio.timeout(20):
            told = await asyncio.gather(*(reader.read() for reader, _ in dawdling))
        assert all(one.startswith(b"HTTP/1.1 408 ") for one in told)
        for _, writer in dawdling:
            writer.close()
        await in_flight(gate, 0)


@pytest.mark.parametrize(
    ("begun", "drop"), [(REQUEST[:50], b"x"), (HEAD % 10_000, b" ")], ids=["head", "body"]
)
async def test_dripping_does_not_buy_time(begun: bytes, drop: bytes) -> None:
    """A byte now and then does not start the clock anew."""
    async with (
        running(header_timeout_s=0.3, body_timeout_s=0.3) as gate,
        listening(gate.gateway) as url,
    ):
        reader, writer = await connect(url)
        writer.write(begun)
        answer = asyncio.create_task(reader.read())
        async with asyncio.timeout(10):
            while not answer.done():
                writer.write(drop)
                await asyncio.wait([answer], timeout=0.05)
        with suppress(ConnectionResetError):  # a drop that came late may cost it the answer
            assert answer.result().startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_client_that_closes_its_half(gate: Running, url: str) -> None:
    """A complete request, then end of file: taken for hanging up, as servers here do."""
    seen, ended = asyncio.Event(), asyncio.Event()

    async def answer(_request: web.Request, _body: Any) -> web.StreamResponse:
        seen.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return web.Response()

    gate.upstream.answer = answer
    reader, writer = await connect(url)
    writer.write(REQUEST)
    await seen.wait()
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
        await ended.wait()
    writer.close()
    await in_flight(gate, 0)


@pytest.mark.parametrize("sent", [20, 60, len(REQUEST) - 5])
async def test_a_client_that_leaves_within_its_request(gate: Running, url: str, sent: int) -> None:
    """In the head or in the body: nothing is asked, nothing is left, nothing is an error."""
    for _ in range(20):
        _, writer = await connect(url)
        writer.write(REQUEST[:sent])
        await writer.drain()
        writer.transport.abort()
    await in_flight(gate, 0)
    assert not gate.upstream.received
    shown = (await gate.http.get("/metrics")).text
    assert "vlmguard_failures_total{" not in shown


async def test_many_clients_leave_in_the_middle_of_their_streams(gate: Running, url: str) -> None:
    """Each stream of the target ends; those of the clients that stay go on."""
    go = asyncio.Event()
    ended = asyncio.Semaphore(0)

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, chunks("a")[:1])
        try:
            await go.wait()
            await response.write(chunks("a")[1])
        finally:
            ended.release()
        return response

    gate.upstream.answer = answer
    body = json.loads(BODY) | {"stream": True}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        responses = []
        for _ in range(40):
            response = await session.post(f"{url}/v1/chat/completions", json=body)
            await response.content.readuntil(b"\n\n")
            responses.append(response)
        for response in responses[::2]:
            response.close()
        await in_flight(gate, 20)
        async with asyncio.timeout(20):
            for _ in range(20):
                await ended.acquire()
        go.set()
        assert [await response.read() for response in responses[1::2]] == [chunks("a")[1]] * 20
    await in_flight(gate, 0)


async def test_a_client_that_does_not_read_is_let_go() -> None:
    """An endless answer is not kept for it for ever; the target's work ends."""
    ended = asyncio.Event()

    async def endless(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, [])
        try:
            while True:
                await response.write(b"data: %s\n\n" % (b"x" * 65_536))
        finally:
            ended.set()

    async with running(send_timeout_s=0.3) as gate, listening(gate.gateway) as url:
        gate.upstream.answer = endless
        _, writer = await connect(url)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # of a socket
        body = json.dumps(json.loads(BODY) | {"stream": True}).encode()
        writer.write(HEAD % len(body) + body)
        async with asyncio.timeout(20):
            await ended.wait()
        await in_flight(gate, 0)
        writer.close()


async def test_who_leaves_does_not_spoil_a_shared_decision(gate: Running, url: str) -> None:
    """Two ask the same at once; the first hangs up, the second gets the answer."""
    started, go = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        await go.wait()

    gate.rules.before = slow
    _, first = await connect(url)
    first.write(REQUEST)
    await started.wait()
    async with aiohttp.ClientSession() as session:
        second = asyncio.create_task(session.post(f"{url}/v1/chat/completions", data=BODY))
        await in_flight(gate, 2)
        first.transport.abort()
        await in_flight(gate, 1)
        go.set()
        async with await second as response:
            assert response.status == 200
    assert len(gate.rules.seen) == 1


async def test_health_and_numbers_are_no_load(gate: Running) -> None:
    """Machines are added by the number of requests in flight; asking for it adds none."""
    for path in ("/health/live", "/health/ready", "/openapi.json", "/metrics"):
        assert (await gate.http.get(path)).status_code == 200
    assert "vlmguard_requests_in_flight 0.0" in (await gate.http.get("/metrics")).text


async def test_every_refusal_is_counted_once(tmp_path: Any) -> None:
    """Under its reason: key, rate, or the error's code."""
    from vlmguard.gateway.keys import add_key

    keys = tmp_path / "keys.yaml"
    token = {"authorization": f"Bearer {add_key(keys, 'k', requests_per_minute=4)[0]}"}
    async with running(keys=keys, max_body_bytes=1000) as gate:
        await gate.chat("hi", headers={"authorization": "Bearer nobody's"})
        await gate.chat("hi")
        await gate.chat("x" * 2000, headers=token)
        await gate.http.post("/v1/chat/completions", content=b"{", headers=token)
        await gate.http.post("/v1/rewrite", json={"prompt": 7}, headers=token)
        await gate.chat(7, headers=token)
        await gate.chat("hi", headers=token)
        await gate.http.get("/v1/files", headers=token)
        shown = (await gate.http.get("/metrics")).text
    lines = [line for line in shown.splitlines() if line.startswith("vlmguard_refused_total{")]
    counted = {line.split('"')[1]: float(line.split()[-1]) for line in lines}
    assert counted == {
        "key": 2,
        "body_too_large": 1,
        "invalid_json": 1,
        "invalid_value": 2,
        "rate": 1,
        "route_not_allowed": 1,
    }
