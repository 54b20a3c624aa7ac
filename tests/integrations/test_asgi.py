"""The middleware: what the application receives, what clients get, and what never arrives."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from tests.drawing import encode, typed_text
from tests.gateway.common import Rules, chunks, data_url, error_of, image_part, png, text_part
from vlmguard import Guard
from vlmguard.errors import ConfigError, EngineUnavailable
from vlmguard.images.fetch import Fetcher
from vlmguard.integrations.asgi import VLMGuardMiddleware
from vlmguard.rewriting import Policy
from vlmguard.types import Image

Json = dict[str, Any]


class Owned:
    """An application of somebody who owns a model, behind the middleware."""

    def __init__(self, policy: Policy | None = None, **given: Any) -> None:
        self.received: list[tuple[str, bytes, httpx.Headers]] = []
        self.rules = Rules()
        self.app = Starlette(
            routes=[
                WebSocketRoute("/v1/realtime", self._realtime),
                Route("/{rest:path}", self._answer, methods=["GET", "POST", "OPTIONS"]),
            ]
        )
        guard = Guard(self.rules, policy=policy or Policy())
        self.guarded = VLMGuardMiddleware(self.app, guard=guard, **given)
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app=self.guarded), base_url="http://owned"
        )

    @property
    def body(self) -> Json:
        """The last one that arrived."""
        body: Json = json.loads(self.received[-1][1])
        return body

    async def chat(self, content: Any, **more: Any) -> httpx.Response:
        body = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
        return await self.http.post("/v1/chat/completions", json=body)

    async def _answer(self, request: Request) -> Response:
        body = await request.body()
        self.received.append((request.url.path, body, httpx.Headers(request.headers.raw)))
        assert request.headers.get("content-length", "0") == str(len(body))
        if body and json.loads(body).get("stream"):
            return StreamingResponse(self._events(), media_type="text/event-stream")
        return JSONResponse({"answer": 1}, headers={"x-own": "kept"})

    async def _events(self) -> AsyncIterator[bytes]:
        for event in chunks("Hel", "lo."):
            yield event

    async def _realtime(self, socket: WebSocket) -> None:
        await socket.accept()
        await socket.close()


@pytest.fixture
def owned() -> Owned:
    return Owned()


async def test_a_harmless_request_passes_and_the_answer_is_untouched(owned: Owned) -> None:
    """Unknown fields arrive, the application's headers come back beside the decision's."""
    response = await owned.chat("hello", x_vendor={"deep": [1, None]})
    assert response.json() == {"answer": 1}
    assert response.headers["x-own"] == "kept"
    assert response.headers["x-vlmguard-action"] == "allow"
    assert owned.body["x_vendor"] == {"deep": [1, None]}


async def test_a_risky_request_arrives_rewritten(owned: Owned) -> None:
    """Longer than it came: the content-length is the new body's."""
    response = await owned.chat("bad")
    assert owned.body["messages"][0]["content"] == "safe good"
    assert response.headers["x-vlmguard-action"] == "rewrite"


async def test_streams_pass_as_they_are(owned: Owned) -> None:
    """The events of the application, byte for byte."""
    response = await owned.chat("bad", stream=True)
    assert response.content == b"".join(chunks("Hel", "lo."))
    assert owned.body["messages"][0]["content"] == "safe good"


async def test_a_picture_alone_is_judged(owned: Owned) -> None:
    """Without a word beside it, and in a GIF."""
    gif = encode(typed_text("x", size=(64, 48), font_size=12), "GIF")
    for data, kind in ((png(), "image/png"), (gif, "image/gif")):
        await owned.chat([image_part(data_url(data, kind))])
        assert [image.data for image in owned.rules.seen[-1].images] == [data]
        assert owned.body["messages"][0]["content"] == [image_part(data_url(data, kind))]


async def test_a_remote_picture_is_fetched_once_and_sent_as_bytes() -> None:
    """The application never sees the URL."""

    class Known(Fetcher):
        async def fetch_image(self, url: str) -> Image:
            assert url.strip() == "https://pictures.example/a.png"
            return Image(data=png(), media_type="image/png")

    owned = Owned(fetcher=Known())
    await owned.chat([text_part("hi"), image_part(" https://pictures.example/a.png")])
    assert owned.body["messages"][0]["content"][1] == image_part(data_url(png()))


async def test_private_addresses_are_not_fetched(owned: Owned) -> None:
    """The metadata service of a cloud is no picture."""
    response = await owned.chat([image_part("http://169.254.169.254/latest/meta-data")])
    assert response.status_code == 400
    assert error_of(response)["code"] == "invalid_image"
    assert not owned.received


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "bad"}]}),
        ("/v1/responses", {"input": "bad"}),
        ("/v1/completions", {"prompt": "bad"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "bad"}]}),
    ],
)
async def test_a_refusal_is_an_answer(path: str, body: Json, *, stream: bool) -> None:
    """In the form of each endpoint, plain and streamed; the application is not asked."""
    owned = Owned(Policy(default_action="refuse", refusal="No, thanks."))
    response = await owned.http.post(path, json={"model": "m", "stream": stream, **body})
    assert response.status_code == 200
    assert "No, thanks." in response.text
    assert response.headers["content-type"].startswith(
        "text/event-stream" if stream else "application/json"
    )
    assert response.headers["x-vlmguard-action"] == "refuse"
    assert not owned.received


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/images/generations"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "//v1/chat/completions"),
        ("PUT", "/v1/chat/completions"),
        ("POST", "/v1/models/%2e%2e/chat/completions"),
        ("GET", "/v1/models/../chat/completions"),
        ("POST", "/invocations"),
        ("GET", "/"),
    ],
)
async def test_no_other_way_leads_to_the_model(owned: Owned, method: str, path: str) -> None:
    """What the guard cannot review is refused by name."""
    url = httpx.URL("http://owned").copy_with(raw_path=path.encode())
    response = await owned.http.request(method, url)
    assert response.status_code == 404
    assert error_of(response)["code"] == "route_not_allowed"
    assert not owned.received


async def test_listed_routes_and_models_pass() -> None:
    """Models and embeddings always, others where the owner lists them, below them as well."""
    owned = Owned(allow_routes=("GET /health", "/v1/files/*", "GET /"))
    for method, path in [
        ("GET", "/v1/models"),
        ("GET", "/v1/models/org/m"),
        ("POST", "/v1/embeddings"),
        ("GET", "/health"),
        ("POST", "/v1/files/a/content"),
        ("GET", "/"),
        ("OPTIONS", "/v1/chat/completions"),
    ]:
        assert (await owned.http.request(method, path)).status_code == 200, path
    assert (await owned.http.post("/health")).status_code == 404
    assert not owned.rules.seen


async def test_a_mounted_application_is_guarded_below_its_root() -> None:
    """As Starlette's own routing sees it."""
    owned = Owned()
    outer = httpx.ASGITransport(app=Starlette(routes=[Mount("/api", app=owned.guarded)]))
    async with httpx.AsyncClient(transport=outer, base_url="http://owned") as http:
        body = {"messages": [{"role": "user", "content": "bad"}]}
        await http.post("/api/v1/chat/completions", json=body)
    assert owned.body["messages"][0]["content"] == "safe good"


def test_websockets_are_refused_unless_listed() -> None:
    """They may lead to a model as well."""
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        TestClient(Owned().guarded).websocket_connect("/v1/realtime"),
    ):
        pass
    assert closed.value.code == 1008
    with TestClient(Owned(allow_routes=("/v1/realtime",)).guarded).websocket_connect(
        "/v1/realtime"
    ):
        pass


async def test_a_failure_is_closed() -> None:
    """An error in OpenAI's form, without the words of the failure; the model is not asked."""
    owned = Owned()
    owned.rules.before = _down
    response = await owned.chat("hello")
    assert response.status_code == 503
    assert error_of(response)["code"] == "guard_failed"
    assert "secret-host" not in response.text
    assert not owned.received


async def test_a_failure_is_open_by_choice() -> None:
    """The original passes, and a header says so."""
    owned = Owned(Policy(on_failure="open"))
    owned.rules.before = _down
    response = await owned.chat("bad")
    assert response.headers["x-vlmguard-failure"] == "EngineUnavailable"
    assert owned.body["messages"][0]["content"] == "bad"


@pytest.mark.parametrize("mode", ["shadow", "off"])
async def test_other_modes_change_nothing(mode: str) -> None:
    """The very bytes arrive; in shadow mode the decision is made beside the request."""
    owned = Owned(mode=mode)
    raw = b'{ "model":"m", "messages":[{"role":"user","content":"bad"}] }'
    response = await owned.http.post("/v1/chat/completions", content=raw)
    await owned.guarded._reviewer.aclose()
    assert owned.received[-1][1] == raw
    assert response.headers["x-vlmguard-mode"] == mode
    assert len(owned.rules.seen) == (1 if mode == "shadow" else 0)


async def test_a_failing_shadow_disturbs_nobody() -> None:
    """Neither a body that cannot be read, nor a rewriter that is down."""
    owned = Owned(mode="shadow")
    owned.rules.before = _down
    assert (await owned.chat("bad")).status_code == 200
    assert (await owned.http.post("/v1/responses", json={"input": 3})).status_code == 200
    await owned.guarded._reviewer.aclose()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "invalid_value"),
        (b'{"messages": "%s"}' % (b"a" * 2000), 413, "body_too_large"),
    ],
)
async def test_bodies_that_cannot_be_used(body: bytes, status: int, code: str) -> None:
    """Named in OpenAI's form, before the application sees anything."""
    owned = Owned(max_body_bytes=1000)
    response = await owned.http.post("/v1/chat/completions", content=body)
    assert response.status_code == status
    assert error_of(response)["code"] == code
    assert not owned.received


async def test_a_client_that_hangs_up_ends_the_review() -> None:
    """The rewriter is cancelled, and the application never asked."""
    owned = Owned()
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    owned.rules.before = hang
    events = [{"type": "http.request", "body": b'{"messages":[{"role":"user","content":"x"}]}'}]

    async def receive() -> Json:
        if events:
            return events.pop()
        await begun.wait()
        return {"type": "http.disconnect"}

    async def send(_event: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/v1/chat/completions", "headers": []}
    await owned.guarded(scope, receive, send)
    await asyncio.wait_for(cancelled.wait(), 5)  # its task ends on its own
    assert not owned.received


def test_it_is_added_as_any_middleware() -> None:
    """`add_middleware`, with the lifespan that loads the model."""
    app = Starlette(routes=[Route("/health", lambda _request: Response("up"))])
    app.add_middleware(
        VLMGuardMiddleware,  # type: ignore[arg-type]  # Starlette's own spelling of ASGI's types
        guard=Guard(Rules(), policy="strict"),
        allow_routes=("GET /health",),
    )
    with TestClient(app) as client:
        assert client.get("/health").text == "up"
        assert client.get("/docs").status_code == 404


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"polcy": "strict"}, "polcy: no such field; fields: policy, rewriter"),
        ({"mode": "observe"}, "mode: Input should be 'enforce', 'shadow' or 'off'"),
        ({"allow_routes": ["health"]}, "allow_routes: 'health' is no route"),
        ({"policy": "nope"}, "nope"),
        ({"rewriter": "self"}, "openai:MODEL@URL"),
        ({"image_domains": ["https://a"]}, "not a host name"),
        ({"rewriter": "nope:x"}, "nope"),
    ],
)
def test_wrong_settings_are_named(given: Json, said: str) -> None:
    """At the start, not with the first request."""
    with pytest.raises(ConfigError, match=None) as caught:
        VLMGuardMiddleware(Starlette(), **given)
    assert said in str(caught.value)


async def _down() -> None:
    raise EngineUnavailable("secret-host:8000 is down")
