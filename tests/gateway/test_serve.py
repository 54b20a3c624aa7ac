"""``vlmguard serve`` as people run it: a process of its own."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web

from tests.gateway.common import chunks, stream
from tests.gateway.processes import body, serving, stub
from vlmguard.cli.main import main


async def test_a_terminated_gateway_finishes_its_streams(tmp_path: Path) -> None:
    """SIGTERM: the running stream comes to its end, new connections are not taken, secrets stay.

    Before that: the banner's command works, SIGHUP reads the policy again, and the log has a line.
    """
    policy = tmp_path / "p.yaml"
    policy.write_text("name: first\n")
    go = asyncio.Event()

    async def slow(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, chunks("Hel")[:1])
        await go.wait()
        for event in chunks("lo."):
            await response.write(event)
        return response

    async with (
        stub() as (upstream, target),
        serving(
            *(tmp_path, "--target", target, "--policy", str(policy)),
            *("--target-key-env", "STUB_KEY", "--audit", str(tmp_path / "a.sqlite")),
            STUB_KEY="sk-very-secret-key",
        ) as gateway,
        aiohttp.ClientSession() as session,
    ):
        url = f"{gateway.url}/v1/chat/completions"
        async with session.post(url, json=body("bad thing")) as response:
            assert response.status == 200
            assert response.headers["x-vlmguard-action"] == "rewrite"
            assert response.headers["x-vlmguard-policy"] == "first"
        assert upstream.messages[0]["content"] == "safe good"
        assert upstream.last.headers["authorization"] == "Bearer sk-very-secret-key"
        policy.write_text("name: second\n")
        gateway.process.send_signal(signal.SIGHUP)
        await gateway.until("changed and is in force")
        upstream.answer = slow
        async with session.post(url, json=body("hi", stream=True)) as response:
            assert response.headers["x-vlmguard-policy"] == "second"
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.until("Waiting for connections")
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get(f"{gateway.url}/health/live")
            go.set()
            assert (await response.content.read()).endswith(chunks("lo.")[0] + b"data: [DONE]\n\n")
        assert await gateway.end() == -signal.SIGTERM
        assert "POST /v1/chat/completions 200" in gateway.said
        assert "sk-very-secret-key" not in gateway.said
        assert "bad thing" not in gateway.said


@pytest.mark.slow
async def test_several_workers(tmp_path: Path) -> None:
    """They share a port, their numbers add up, and they end together, after their streams."""
    go = asyncio.Event()

    async def slow(request: web.Request, _body: Any) -> web.StreamResponse:
        response = await stream(request, chunks("Hel")[:1])
        await go.wait()
        await response.write(chunks("lo.")[0])
        return response

    async with (
        stub() as (upstream, target),
        serving(tmp_path, "--target", target, "--workers", "2") as gateway,
    ):
        await gateway.until("startup complete")
        url = f"{gateway.url}/v1/chat/completions"
        for _ in range(10):  # a connection each, so that both get some
            async with httpx.AsyncClient() as client:
                assert (await client.post(url, json=body("hi"))).status_code == 200
        async with httpx.AsyncClient() as client:
            told = (await client.get(f"{gateway.url}/metrics")).text
        counted = re.findall(r"^vlmguard_decisions_total\{.*\} (\S+)$", told, re.MULTILINE)
        assert sum(map(float, counted)) == 10
        upstream.answer = slow
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, json=body("hi", stream=True)) as response,
        ):
            await response.content.readuntil(b"\n\n")
            gateway.process.send_signal(signal.SIGTERM)
            await gateway.until("Waiting for connections")
            go.set()
            assert await response.content.read() == chunks("lo.")[0]
        assert await gateway.end() == 0


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--mode", "maybe"], "none of enforce"),
        (["--policy", "nope", "--target", "openai:m@http://x/v1"], "'nope'"),
        (["--target", "openai:m@http://x/v1", "--target-key-env", "NO_K"], "NO_K is not set"),
        (["--target", "openai:"], "names no model"),
        (["--keys", "/no/keys.yaml", "--target", "openai:m@http://x/v1"], "/no/keys.yaml"),
        (["--audit", "log.txt", "--target", "openai:m@http://x/v1"], "names no form"),
        (["--config", "/no/file.yaml"], "/no/file.yaml"),
        (["--allow-route", "files"], "is no route"),
        (["--host", "no.such.host.invalid"], "cannot listen on"),
        (["--defence", "ecso", "--target", "openai:m@http://x/v1"], "target's answer"),
    ],
)
def test_mistakes_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    """Exit code 2, what is wrong, and the fix."""
    monkeypatch.setattr(sys, "argv", ["vlmguard", "serve", "--port", "0", *flags])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert says in capsys.readouterr().err


def test_a_taken_port_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is loaded."""
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        monkeypatch.setattr(sys, "argv", ["vlmguard", "serve", "--port", port])
        with pytest.raises(SystemExit):
            main()
    assert f"port {port} on 127.0.0.1 is taken" in capsys.readouterr().err
