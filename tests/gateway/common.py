"""A gateway in this event loop, before an upstream that records what it received."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import openai
import uvicorn
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.drawing import encode, typed_text
from vlmguard.gateway.app import create_app
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.serve import listen, make_config, url_of
from vlmguard.gateway.settings import Settings
from vlmguard.rewriting import Policy
from vlmguard.types import Chat, Rewrite, RiskReport

Json = dict[str, Any]
Answer = Callable[[web.Request, Json], Awaitable[web.StreamResponse]]

COMPLETION: Json = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello."},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


class Rules:
    """A rewriter that finds turns with the word "bad", or with certain pictures, risky."""

    name = "rules"
    fingerprint = "rules-1"

    def __init__(self) -> None:
        self.seen: list[Chat] = []
        self.bad_pictures: set[str] = set()
        self.before: Callable[[], Awaitable[None]] | None = None

    async def load(self) -> None:
        pass

    async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
        self.seen.append(chat)
        if self.before:
            await self.before()
        turn = chat.messages[-1]
        risky = "bad" in turn.text or any(i.sha256 in self.bad_pictures for i in turn.images)
        action = policy.action_for("violence") if risky else "allow"
        prompt = f"safe {turn.text.replace('bad', 'good')}" if action == "rewrite" else turn.text
        return Rewrite(
            verdict="risky" if risky else "safe",
            risk=0.9 if risky else 0.1,
            category="violence" if risky else None,
            action=action,
            report=RiskReport(textual="t", visual="v", multimodal="m") if risky else None,
            prompt=prompt,
            changed=prompt != turn.text,
            rewriter=self.name,
            policy=policy.name,
        )


@dataclass(slots=True)
class Received:
    """A request that reached the upstream."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Json:
        parsed: Json = json.loads(self.body)
        return parsed


@dataclass
class Upstream:
    """An OpenAI-compatible server that answers as told."""

    received: list[Received] = field(default_factory=list)
    answer: Answer | None = None
    cancelled: int = 0

    @property
    def last(self) -> Received:
        return self.received[-1]

    @property
    def messages(self) -> list[Json]:
        """Of the last request."""
        messages: list[Json] = self.last.json["messages"]
        return messages

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.received.append(Received(request.method, request.path_qs, headers, body))
        parsed = json.loads(body) if body else {}
        try:
            if self.answer is not None:
                return await self.answer(request, parsed)
            if parsed.get("stream"):
                return await stream(request, chunks("Hel", "lo."))
            return web.json_response(COMPLETION)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


def chunks(*texts: str) -> list[bytes]:
    """A streamed chat completion, in a server's own spelling of JSON."""
    events = [
        b'data: {"id":"c", "object":"chat.completion.chunk", "created":1, "model":"stub", '
        b'"choices":[{"index":0, "delta":{"content":%s}, "finish_reason":null}]}\n\n'
        % json.dumps(text).encode()
        for text in texts
    ]
    return [*events, b"data: [DONE]\n\n"]


async def stream(request: web.Request, events: list[bytes]) -> web.StreamResponse:
    """Answer with server-sent events."""
    response = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(event)
    return response


@dataclass
class Running:
    """A gateway with what stands before and behind it."""

    gateway: Gateway
    upstream: Upstream
    rules: Rules
    http: httpx.AsyncClient

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key="client-key",
            base_url="http://gateway/v1",
            http_client=cast("Any", self.http),  # its own fork of httpx by type only
            max_retries=0,
        )

    async def chat(self, *content: Any, **more: Any) -> httpx.Response:
        """A chat-completions request; every content is a user's message."""
        messages = [{"role": "user", "content": one} for one in content]
        headers = more.pop("headers", {})
        body = {"model": "stub", "messages": messages, **more}
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)


@asynccontextmanager
async def running(
    rules: Rules | None = None, upstream: Upstream | None = None, **settings: Any
) -> AsyncIterator[Running]:
    """A gateway in front of a recording upstream, asked without a socket in between.

    Args:
        rules: who decides, unless the settings name a ``rewriter``.
        upstream: the target, unless the settings name one.
        settings: of the gateway.
    """
    upstream = upstream or Upstream()
    rules = rules or Rules()
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{rest:.*}", upstream.handle)
    async with TestServer(app) as server:
        target = settings.pop("target", f"openai:stub@{server.make_url('/v1')}")
        engine, fetcher = settings.pop("engine", None), settings.pop("fetcher", None)
        gateway = Gateway(
            Settings(target=target, log_level="error", **settings),
            rewriter=None if "rewriter" in settings else rules,
            engine=engine,
            fetcher=fetcher,
        )
        await gateway.open()
        transport = httpx.ASGITransport(app=create_app(gateway))
        try:
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gateway", timeout=20
            ) as http:
                yield Running(gateway, upstream, rules, http)
        finally:
            await gateway.aclose()


@asynccontextmanager
async def listening(gateway: Gateway) -> AsyncIterator[str]:
    """The same gateway behind a real socket; gives its base URL, without ``/v1``."""
    bound = listen(Settings(port=0))
    config = make_config(gateway.settings, _without_lifespan(gateway))
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve(sockets=[bound]))
    while not server.started:  # noqa: ASYNC110  # uvicorn tells nobody
        await asyncio.sleep(0.005)
    try:
        yield url_of(bound)
    finally:
        server.should_exit = True
        await task


def _without_lifespan(gateway: Gateway) -> Any:
    """`running` opens and closes the gateway itself."""
    app = create_app(gateway)

    @asynccontextmanager
    async def nothing(_app: object) -> AsyncIterator[None]:
        yield

    app.router.lifespan_context = nothing
    return app


def data_url(data: bytes, media_type: str = "image/png") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def png(text: str = "hello") -> bytes:
    """A small picture with a word on it."""
    return encode(typed_text(text, size=(64, 48), font_size=12))


def image_part(url: str) -> Json:
    return {"type": "image_url", "image_url": {"url": url}}


def text_part(text: str) -> Json:
    return {"type": "text", "text": text}


def error_of(response: httpx.Response) -> Json:
    """The error of a response, in OpenAI's form."""
    body = response.json()
    assert set(body["error"]) == {"message", "type", "param", "code"}
    error: Json = body["error"]
    return error
