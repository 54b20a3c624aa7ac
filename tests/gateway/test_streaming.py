"""Streams: byte for byte, as they come, and what happens when one side goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from tests.gateway.common import Running, chunks, listening, running, stream

EVENTS = chunks("Hel", "lo", " \u00e4\u200b")


@pytest.fixture
async def url(gate: Running) -> AsyncIterator[str]:
    """The gateway behind a real socket."""
    async with listening(gate.gateway) as url:
        yield url


def body(text: str = "hi", **more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": text}], "stream": True, **more}


async def test_a_stream_is_guarded_and_passes_byte_for_byte(gate: Running) -> None:
    """The rewrite goes in, and the target's own bytes come out."""

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        return await stream(request, EVENTS)

    gate.upstream.answer = answer
    response = await gate.http.post("/v1/chat/completions", json=body("bad"))
    assert response.content == b"".join(EVENTS)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-vlmguard-action"] == "rewrite"
    assert gate.upstream.messages[0]["content"] == "safe good"


async def test_tokens_come_when_they_are_made(gate: Running, url: str) -> None:
    """Each event reaches the client before the target makes the next one."""
    go = asyncio.Semaphore(0)

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for event in EVENTS:
            await response.write(event)
            await go.acquire()
        return response

    gate.upstream.answer = answer
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/chat/completions", json=body()) as response,
    ):
        for event in EVENTS:
            assert await response.content.readuntil(b"\n\n") == event
            go.release()


async def test_the_official_client_streams_tools_and_text(gate: Running, url: str) -> None:
    """Asynchronous and synchronous, with chunks of tool calls, through a real socket."""
    call = (
        b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"s","choices":'
        b'[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"t","type":"function","function":'
        b'{"name":"f","arguments":"{}"}}]},"finish_reason":"tool_calls"}]}\n\n'
    )

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        return await stream(request, [call, *EVENTS])

    gate.upstream.answer = answer
    wanted: Any = {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "stream": True,
    }
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1") as client:
        seen = [chunk async for chunk in await client.chat.completions.create(**wanted)]
    calls = seen[0].choices[0].delta.tool_calls
    assert calls is not None
    assert calls[0].function is not None
    assert calls[0].function.name == "f"
    assert gate.upstream.last.json["tools"] == wanted["tools"]

    def synchronous() -> str:
        with openai.OpenAI(api_key="k", base_url=f"{url}/v1") as client:
            found = client.chat.completions.create(**wanted)
            return "".join(chunk.choices[0].delta.content or "" for chunk in found)

    assert await asyncio.to_thread(synchronous) == "Hello \u00e4\u200b"


@pytest.mark.parametrize("cut", [0, 30])
async def test_a_target_that_dies_ends_the_stream_with_an_error(
    gate: Running, url: str, cut: int
) -> None:
    """Between two events or within one: the client reads an error, not broken JSON."""

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, [EVENTS[0], EVENTS[1][:cut]])
        assert request.transport is not None
        request.transport.abort()
        return response

    gate.upstream.answer = answer
    async with openai.AsyncOpenAI(api_key="k", base_url=f"{url}/v1", max_retries=0) as client:
        texts: list[str | None] = []

        async def read() -> None:
            found = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            async for chunk in found:
                texts.append(chunk.choices[0].delta.content)  # noqa: PERF401  # until it raises

        with pytest.raises(openai.APIError, match="broke off"):
            await read()
        assert texts == ["Hel"]


async def test_a_target_that_falls_silent(gate: Running) -> None:
    """After the timeout the stream ends with an error event."""
    silent = asyncio.Event()

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, EVENTS[:1])
        await silent.wait()
        return response

    async with running(upstream=gate.upstream, target_timeout_s=0.1) as quick:
        quick.upstream.answer = answer
        response = await quick.http.post("/v1/chat/completions", json=body())
        last = response.text.strip().split("\n\n")[-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "target_timeout"
        silent.set()


async def test_a_target_that_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    """A 502 in OpenAI's form; the inner address is only in the log; after some, a 503 at once."""
    async with running(target="openai:m@http://127.0.0.1:9/v1") as gate:
        statuses = []
        for _ in range(6):
            response = await gate.chat("hi")
            statuses.append(response.status_code)
            assert "127.0.0.1" not in response.text
        assert statuses == [502] * 5 + [503]
        reasons = [line for line in caplog.messages if line.startswith("the target cannot")]
        assert len(reasons) == 5
        assert "127.0.0.1:9" in reasons[0]
        assert (await gate.http.get("/health/ready")).status_code == 503


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_cancels_the_target(
    gate: Running, url: str, streamed: bool
) -> None:
    """In the middle of a stream, or while it waits for a whole answer."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        if streamed:
            await stream(request, EVENTS[:1])
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()
        return web.Response()

    gate.upstream.answer = answer
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(
            session.post(f"{url}/v1/chat/completions", json=body(stream=streamed))
        )
        await started.wait()
        if streamed:
            response = await task
            await response.content.readuntil(b"\n\n")
            response.close()
        else:
            task.cancel()
        async with asyncio.timeout(5):
            await ended.wait()


async def test_a_client_that_leaves_cancels_the_decision(gate: Running, url: str) -> None:
    """Nobody waits for it any more."""
    started, ended = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        started.set()
        try:
            await asyncio.sleep(30)
        finally:
            ended.set()

    gate.rules.before = slow
    async with aiohttp.ClientSession() as session:
        task = asyncio.create_task(session.post(f"{url}/v1/chat/completions", json=body()))
        await started.wait()
        task.cancel()
        async with asyncio.timeout(5):
            await ended.wait()
    assert not gate.upstream.received


async def test_many_streams_at_once(gate: Running, url: str) -> None:
    """Two hundred streams run side by side, each with its own bytes."""
    together = asyncio.Barrier(200)

    async def answer(request: web.Request, asked: Any) -> web.StreamResponse:
        response = await stream(request, EVENTS[:1])
        await together.wait()
        await response.write(b"data: %s\n\n" % asked["user"].encode())
        return response

    gate.upstream.answer = answer
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def one(number: int) -> bytes:
            asked = body(user=f"u{number}")
            async with session.post(f"{url}/v1/chat/completions", json=asked) as response:
                return await response.read()

        answers = await asyncio.gather(*(one(number) for number in range(200)))
    assert answers == [EVENTS[0] + b"data: u%d\n\n" % number for number in range(200)]


async def raw(url: str, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Everything the server says until it closes."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(pause_s)
    async with asyncio.timeout(5):
        told = await reader.read()
    writer.close()
    return told


async def test_slow_clients_are_let_go() -> None:
    """Of the head, and of the body: 408 in OpenAI's form, and the connection closes."""
    async with (
        running(header_timeout_s=0.1, body_timeout_s=0.1) as gate,
        listening(gate.gateway) as url,
    ):
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n"
        for pieces in [
            (),
            (b"POST ",),
            (head, b"x-a: 1\r\n"),
            (head + b"content-length: 9\r\n\r\n{",),
        ]:
            told = await raw(url, *pieces)
            assert told.startswith(b"HTTP/1.1 408 ")
            assert b'"code":"request_timeout"' in told


async def test_odd_http(url: str) -> None:
    """Malformed requests, endless heads and half-closed connections do no harm."""
    assert (await raw(url, b"\x16\x03\x01 hello\r\n\r\n")).startswith(b"HTTP/1.1 400 ")
    told = await raw(url, b"GET / HTTP/1.1\r\n", b"x-a: " + b"a" * 70_000)
    assert told.startswith(b"HTTP/1.1 431 ")
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\n")
    writer.write_eof()
    async with asyncio.timeout(5):
        await reader.read()
    writer.close()


async def test_requests_in_a_row_on_one_connection(url: str) -> None:
    """Kept alive, and pipelined."""
    ask = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"
    last = b"GET /health/live HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    assert (await raw(url, ask + ask + last)).count(b"HTTP/1.1 200 ") == 3
