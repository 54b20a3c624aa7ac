"""The engine for OpenAI-compatible servers, against servers that this file scripts.

`test_openai_llamacpp` drives it against a real one.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from email.utils import format_datetime
from typing import Any, cast

import httpx
import pytest
import stamina

from vlmguard.engines import Capability, Engine, Sampling, open_engine
from vlmguard.engines.openai import OpenAIEngine
from vlmguard.engines.openai_errors import retry_after_s
from vlmguard.errors import (
    ConfigError,
    EngineError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    UnsupportedCapability,
)
from vlmguard.types import Chat, Delta, Image, Message

CHAT = Chat.of("hello")
PICTURE = Image(data=b"\x89PNG", media_type="image/png")
SECRET = "sk-do-not-show-me"
ANSWER = {
    "model": "served",
    "choices": [{"message": {"content": "hi there"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2},
}


def reply(status: int = 200, body: Any = ANSWER, **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(body, str):
        return httpx.Response(status, text=body, headers=names)
    return httpx.Response(status, json=body, headers=names)


class Script:
    """A transport that gives one scripted response after the other, and keeps the requests."""

    def __init__(self, *responses: httpx.Response | Exception) -> None:
        self.responses = list(responses)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        response = self.responses.pop(0)
        if isinstance(response, Exception):
            raise response
        return response

    def engine(self, url: str = "http://host/v1", **options: Any) -> OpenAIEngine:
        return OpenAIEngine("m", url, transport=httpx.MockTransport(self), **options)

    def body(self, index: int = 0) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.requests[index].content))


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    stamina.set_testing(True, attempts=100, cap=True)  # retries at once
    yield
    stamina.set_testing(False)


def sse(*events: str, end: str = "\n\n") -> bytes:
    return "".join(f"data: {event}{end}" for event in events).encode()


def chunk(text: str | None = None, finish: str | None = None, **more: Any) -> str:
    choice = {"delta": {"content": text}, "finish_reason": finish}
    return json.dumps({"choices": [choice], **more})


def streamed(*parts: bytes, error: Exception | None = None) -> httpx.Response:
    async def content() -> AsyncIterator[bytes]:
        for part in parts:
            yield part
        if error is not None:
            raise error

    return httpx.Response(200, content=content(), headers={"content-type": "text/event-stream"})


async def text_of_stream(engine: Engine, chat: Chat = CHAT) -> str:
    return "".join([delta.text async for delta in engine.stream(chat, Sampling())])


async def test_request_and_answer() -> None:
    """The request carries model, key and pictures; the answer its text, usage and model."""
    script = Script(reply())
    engine = script.engine(key=SECRET)
    completion = await engine.generate(Chat.of("what?", [PICTURE]), Sampling(max_tokens=7))
    assert completion.text == "hi there"
    assert completion.model == "served"
    assert completion.usage.completion_tokens == 2
    [request] = script.requests
    assert str(request.url) == "http://host/v1/chat/completions"
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert script.body()["model"] == "m"
    assert script.body()["max_tokens"] == 7
    assert script.body()["messages"][0]["content"][0]["type"] == "image_url"


async def test_without_a_key_none_is_sent() -> None:
    """Local servers need no key."""
    script = Script(reply())
    await script.engine().generate(CHAT, Sampling())
    assert "authorization" not in script.requests[0].headers


async def test_openai_gets_the_name_its_reasoning_models_know() -> None:
    """At api.openai.com the limit is called max_completion_tokens."""
    script = Script(reply())
    await script.engine("https://api.openai.com/v1").generate(CHAT, Sampling(max_tokens=7))
    assert script.body()["max_completion_tokens"] == 7
    assert "max_tokens" not in script.body()


async def test_prefix() -> None:
    """A prefix is asked for as vLLM takes it, and an echo of it (llama.cpp) is taken off."""
    chat = CHAT.then(Message(role="assistant", text="hi"))
    with pytest.raises(UnsupportedCapability, match="prefix"):
        await Script().engine().generate(chat, Sampling())
    script = Script(reply(), streamed(sse(chunk("h"), chunk("i the"), chunk("re", "stop"))))
    engine = script.engine(capabilities=frozenset(Capability))
    assert (await engine.generate(chat, Sampling())).text == " there"
    assert await text_of_stream(engine, chat) == " there"
    assert script.body()["continue_final_message"] is True
    assert script.body()["add_generation_prompt"] is False


async def test_storm_of_429_is_sat_out(caplog: pytest.LogCaptureFixture) -> None:
    """Overload and failing servers are asked again, and every new try is logged with its reason."""
    busy = [reply(429, {"error": {"message": "slow down"}}), reply(503, "busy"), reply(500, "oh")]
    script = Script(*busy, httpx.ConnectError("refused"), reply())
    with caplog.at_level(logging.WARNING, "vlmguard"):
        assert (await script.engine(key=SECRET).generate(CHAT, Sampling())).text == "hi there"
    assert len(script.requests) == 5
    assert "429 Too Many Requests: slow down; try 2 of 5" in caplog.text
    assert SECRET not in caplog.text


async def test_streams_are_retried_until_they_begin() -> None:
    """The beginning of a stream is retried like any request."""
    script = Script(reply(502, "bad"), streamed(sse(chunk("ok", "stop"), "[DONE]")))
    assert await text_of_stream(script.engine()) == "ok"


async def test_giving_up_says_how_often_it_was_tried() -> None:
    """After the last try the server's own words stand in the error."""
    script = Script(*[reply(503, {"error": {"message": "no GPU free"}}) for _ in range(3)])
    with pytest.raises(EngineUnavailable, match=r"no GPU free \(3 tries\)") as caught:
        await script.engine(retries=2).generate(CHAT, Sampling())
    assert caught.value.retryable
    assert type(caught.value) is EngineUnavailable


async def test_refusals_are_not_repeated() -> None:
    """A request that the server refuses is sent once; nor is a used-up quota waited for."""
    for status, body in (
        (400, {"error": {"message": "bad"}}),
        (404, "nothing here"),
        (429, {"error": {"message": "pay", "code": "insufficient_quota"}}),
        (500, {"error": {"message": "image input is not supported"}}),
    ):
        script = Script(reply(status, body))
        with pytest.raises(EngineRejected) as caught:
            await script.engine().generate(CHAT, Sampling())
        assert caught.value.status == status
        assert len(script.requests) == 1


async def test_retry_after_is_honoured() -> None:
    """The server says how long to wait; more than a minute is not waited for."""
    stamina.set_testing(False)
    script = Script(reply(429, retry_after="0.3"), reply())
    began = time.monotonic()
    await script.engine().generate(CHAT, Sampling())
    assert 0.3 <= time.monotonic() - began < 2
    script = Script(reply(429, retry_after="3600"))
    with pytest.raises(EngineUnavailable, match="asks to wait 3600 s"):
        await script.engine().generate(CHAT, Sampling())


def test_retry_after_forms() -> None:
    """Seconds and dates are read; anything else leaves the wait to the backoff."""
    soon = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=20)
    assert 15 < cast("float", retry_after_s(format_datetime(soon))) <= 20
    assert retry_after_s("7") == 7
    assert retry_after_s("-3") == 0
    assert [retry_after_s(odd) for odd in (None, "", "soon", "nan")] == [None] * 4


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (401, {"error": {"message": "no"}}, "No key was sent: set OPENAI_API_KEY"),
        (404, {"detail": "Not Found"}, r"Not Found\. Most servers want a URL that ends in /v1"),
        (400, {"error": "logprobs are not here"}, r"add \?logprobs=false"),
        (400, {"message": "response_format: unknown"}, r"add \?json_schema=false"),
        (422, {"detail": [{"loc": ["stream_options"]}]}, r"add \?stream_usage=false"),
        (400, {"error": {"message": "At most 0 image(s)"}}, r"add \?vision=false"),
        (307, "", "redirects to"),
        (418, "", "I'm a Teapot: no reason given"),
        (499, "<html>" + "x" * 9000, "x …"),
    ],
)
async def test_refusals_say_what_to_do(status: int, body: Any, says: str) -> None:
    """Errors of every server's form are read, shortened, and answered with a fix."""
    script = Script(reply(status, body))
    with pytest.raises(EngineRejected, match=says) as caught:
        await script.engine("http://host/api").generate(CHAT, Sampling())
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "error",
    [
        {"message": "This model's maximum context length is 8 tokens", "type": "invalid_request"},
        {"message": "x", "code": "context_length_exceeded"},
        {"message": "request (9 tokens) exceeds the available context size (8 tokens)"},
        {"message": "The input is longer than the context length"},
    ],
)
async def test_too_long_a_prompt_is_told_apart(error: dict[str, str]) -> None:
    """OpenAI, vLLM, llama.cpp and SGLang each say it in their own way."""
    with pytest.raises(EngineRejected) as caught:
        await Script(reply(400, {"error": error})).engine().generate(CHAT, Sampling())
    assert caught.value.context_exceeded


async def test_key_is_never_shown() -> None:
    """Not even when the server sends it back."""
    body = {"error": {"message": f"Incorrect API key provided: {SECRET}"}}
    engine = Script(reply(401, body)).engine(key=SECRET)
    with pytest.raises(EngineRejected, match=r"provided: \*\*\*\. Check the key") as caught:
        await engine.generate(CHAT, Sampling())
    assert SECRET not in f"{caught.value!r} {caught.value.__cause__!r} {engine!r} {vars(engine)}"


@pytest.mark.parametrize(
    "body",
    ["<html>hello</html>", "", [], {"object": "list"}, {"error": {"message": "odd", "code": 500}}],
)
async def test_garbage(body: Any) -> None:
    """A 200 with something else in it is not mistaken for an answer."""
    with pytest.raises(EngineUnavailable):
        await Script(reply(200, body)).engine(retries=0).generate(CHAT, Sampling())


async def test_stream() -> None:
    """Pieces as they come, in whatever way the events are cut and framed; usage at the end."""
    events = sse(
        chunk(None),
        chunk("gr"),
        chunk("üß"),
        chunk("e", "length"),
        json.dumps({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}),
        "[DONE]",
        end="\r\n\r\n",
    )
    noisy = b": ping\r\n\r\nevent: message\r\nid: 7\r\n" + events + b"data: not read any more\n\n"
    script = Script(streamed(*(noisy[at : at + 1] for at in range(len(noisy)))))
    deltas = [delta async for delta in script.engine().stream(CHAT, Sampling())]
    assert [delta.text for delta in deltas] == ["gr", "üß", "e", ""]
    assert deltas[-1].finish_reason == "length"
    assert deltas[-1].usage is not None
    assert deltas[-1].usage.completion_tokens == 4
    assert script.body()["stream"] is True
    assert script.body()["stream_options"] == {"include_usage": True}


async def test_event_over_several_lines() -> None:
    """The data of one event may be spread over lines."""
    event = b'data: {"choices": [\ndata: {"delta": {"content": "a"}, "finish_reason": "stop"}]}\n\n'
    assert await text_of_stream(Script(streamed(event)).engine()) == "a"


async def test_server_that_does_not_stream() -> None:
    """A server that ignores ``stream`` gives everything at once; ``streaming=false`` asks so."""
    assert await text_of_stream(Script(reply()).engine()) == "hi there"
    script = Script(reply())
    blunt = script.engine(capabilities=frozenset())
    deltas = [delta async for delta in blunt.stream(CHAT, Sampling())]
    assert [delta.text for delta in deltas] == ["hi there"]
    assert deltas[0].finish_reason == "stop"
    assert "stream" not in script.body()


@pytest.mark.parametrize(
    ("response", "error", "says"),
    [
        (streamed(sse(chunk("a"))), EngineUnavailable, "before it was complete"),
        (streamed(b""), EngineUnavailable, "before it was complete"),
        (streamed(sse(chunk("a")), error=httpx.ReadError("reset")), EngineUnavailable, "middle"),
        (streamed(sse(chunk("a")), error=httpx.ReadTimeout("")), EngineTimeout, "nothing came"),
        (streamed(sse("{broken")), EngineUnavailable, "not JSON"),
        (streamed(sse("[]")), EngineUnavailable, "not a chat completion"),
        (streamed(sse('{"error": {"message": "boom"}}')), EngineUnavailable, "boom"),
        (streamed(sse('{"error": {"message": "no", "code": 400}}')), EngineRejected, "no"),
    ],
)
async def test_streams_that_break(
    response: httpx.Response, error: type[EngineError], says: str
) -> None:
    """An answer that breaks off is an error, never a short answer."""
    with pytest.raises(error, match=says) as caught:
        await text_of_stream(Script(response).engine())
    assert type(caught.value) is error


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def raw_server(behave: Behaviour) -> AsyncIterator[tuple[str, list[str]]]:
    """A socket that behaves badly: its URL, and the peers that connected."""
    peers: list[str] = []

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(str(writer.get_extra_info("peername")))
        try:
            await behave(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1", peers
    finally:
        server.close()


async def read_request(reader: asyncio.StreamReader) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    await reader.readexactly(length)


async def test_connections_are_kept() -> None:
    """Calls one after the other share a connection; calls at once have one each."""
    body = json.dumps(ANSWER).encode()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            await asyncio.sleep(0.01)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n")
            writer.write(b"content-length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_server(behave) as (url, peers):
        engine = OpenAIEngine("m", url)
        for _ in range(4):
            await engine.generate(CHAT, Sampling())
        assert len(peers) == 1
        await asyncio.gather(*(engine.generate(CHAT, Sampling()) for _ in range(4)))
        assert len(peers) == 4
        await engine.aclose()
        await engine.aclose()
        assert (await engine.generate(CHAT, Sampling())).text == "hi there"  # opens anew
        await engine.aclose()


async def test_slow_server() -> None:
    """No byte in ``timeout`` is a timeout, and is not tried again."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with raw_server(behave) as (url, peers):
        engine = open_engine(f"openai:m@{url}?timeout=0.1")
        with pytest.raises(EngineTimeout, match=r"nothing came for 0\.1 s"):
            await engine.generate(CHAT, Sampling())
        assert len(peers) == 1
        await engine.aclose()


async def test_server_that_hangs_up() -> None:
    """Hanging up before and in the middle of an answer is retried, then told."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        if len(peers) % 2:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{")

    async with raw_server(behave) as (url, peers):
        engine = open_engine(f"openai:m@{url}?retries=3")
        with pytest.raises(EngineUnavailable, match=r"\(4 tries\)"):
            await engine.generate(CHAT, Sampling())
        assert len(peers) == 4
        await engine.aclose()


async def test_leaving_a_stream_hangs_up() -> None:
    """When the reader goes, the server sees the connection end and can stop generating."""
    gone = asyncio.Event()

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        writer.write(sse(chunk("a")))
        assert await reader.read() == b""
        gone.set()

    async with raw_server(behave) as (url, _):
        engine = OpenAIEngine("m", url)
        stream = cast("AsyncGenerator[Delta, None]", engine.stream(CHAT, Sampling()))
        assert (await anext(stream)).text == "a"
        await stream.aclose()
        await asyncio.wait_for(gone.wait(), 2)
        await engine.aclose()


async def test_nobody_there() -> None:
    """A port where nothing listens is told with its host."""
    engine = open_engine("openai:m@http://127.0.0.1:1/v1?retries=0")
    with pytest.raises(EngineUnavailable, match=r"cannot talk to 127\.0\.0\.1"):
        await engine.generate(CHAT, Sampling())
    await engine.aclose()


@pytest.mark.parametrize(
    ("spec", "model", "url"),
    [
        ("openai:m@http://h:8000/v1", "m", "http://h:8000/v1"),
        ("openai:m@http://h:8000/v1/", "m", "http://h:8000/v1"),
        ("openai:org/m:7b@http://h/v1", "org/m:7b", "http://h/v1"),
        ("openai:@cf/meta/x@https://h/ai/v1", "@cf/meta/x", "https://h/ai/v1"),
        ("openai:m@http://h", "m", "http://h"),
        ("openai:m", "m", "https://api.openai.com/v1"),
        ("openai:m@2024-01-01", "m@2024-01-01", "https://api.openai.com/v1"),
    ],
)
def test_model_and_url(spec: str, model: str, url: str) -> None:
    """The URL is what follows the last ``@`` before http; it is taken as given."""
    engine = cast("OpenAIEngine", open_engine(spec))
    assert engine.spec == f"openai:{model}@{url}"
    assert engine._model == model
    assert open_engine(engine.spec).spec == engine.spec


def test_url_and_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """OPENAI_BASE_URL and OPENAI_API_KEY are the defaults; key_env names another variable."""
    monkeypatch.setenv("OPENAI_BASE_URL", "http://h:1/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("OTHER", f" {SECRET}2\n")
    engine = cast("OpenAIEngine", open_engine("openai:m"))
    assert engine.spec == "openai:m@http://h:1/v1"
    assert engine._endpoint._key is not None
    assert engine._endpoint._key.get_secret_value() == SECRET
    engine = cast("OpenAIEngine", open_engine("openai:m?key_env=OTHER"))
    assert engine._endpoint._key is not None
    assert engine._endpoint._key.get_secret_value() == f"{SECRET}2"


def test_capabilities_by_option() -> None:
    """Prefix only when asked for; everything else unless switched off."""
    default = {"vision", "streaming", "logprobs", "json_schema"}
    assert open_engine("openai:m@http://h/v1").capabilities == default
    spec = "openai:m@http://h/v1?vision=false&logprobs=0&json_schema=false&prefix=true"
    assert open_engine(spec).capabilities == {"streaming", "prefix"}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("openai:", "names no model"),
        ("openai:@http://h/v1", "names no model"),
        ("openai:http://h/v1", "names no model"),
        ("openai:m@localhost:8000/v1", "write the URL in full: …@http://localhost:8000/v1"),
        ("openai:m@http://h/v1/chat/completions", "without /chat/completions"),
        ("openai:m@http://h:99999/v1", "is not a URL"),
        ("openai:m@http://", "is not a URL"),
        ("openai:m@http://h/v1?timeout=0", "more than 0"),
        ("openai:m@http://h/v1?timeout=inf", "more than 0"),
        ("openai:m@http://h/v1?retries=-1", "0 to 100"),
        ("openai:m@http://h/v1?key_env=NOT_SET_HERE", "NOT_SET_HERE is not set"),
        ("openai:m@http://h/v1?colour=red", "unknown option 'colour'"),
    ],
)
def test_bad_specs(spec: str, says: str) -> None:
    """A spec that cannot work is refused when it is opened, with the fix."""
    with pytest.raises(ConfigError, match=says):
        open_engine(spec)


@pytest.mark.parametrize(
    "spec",
    [f"openai:m@http://h/v1?api_key={SECRET}", f"openai:m@http://user:{SECRET}@h/v1?nonsense=1"],
)
def test_keys_in_a_spec_are_refused_without_repeating_them(spec: str) -> None:
    """A spec goes into logs and traces, so no key may stand in it."""
    with pytest.raises(ConfigError, match="environment") as caught:
        open_engine(spec)
    assert SECRET not in str(caught.value)


def test_key_with_odd_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A key that cannot be sent is told by its variable, not by its value."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\n-π")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        open_engine("openai:m@http://h/v1")
    assert "π" not in str(caught.value)


async def test_many_requests_at_once_share_few_connections_each() -> None:
    """Forty in flight are spread over five clients; one after the other, one client is enough."""
    most, now = 0, 0

    async def answer(_: httpx.Request) -> httpx.Response:
        nonlocal most, now
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return reply()

    engine = OpenAIEngine("m", "http://host/v1", transport=httpx.MockTransport(answer))
    await engine.generate(CHAT, Sampling())
    await engine.generate(CHAT, Sampling())
    clients = engine._endpoint._of_this_loop()
    assert len(clients) == 1
    await asyncio.gather(*(engine.generate(CHAT, Sampling()) for _ in range(40)))
    assert most == 40
    assert len(clients) == 5
    await engine.aclose()


async def test_streams_count_until_they_are_closed() -> None:
    """An open stream keeps its place; read to the end or left early, it gives it back."""
    body = sse(chunk("a"), chunk("b", "stop"), "[DONE]")
    script = Script(*(streamed(body) for _ in range(10)), reply(500), reply(400))
    engine = script.engine(retries=0)
    clients = engine._endpoint._of_this_loop()
    open_ones = [engine.stream(CHAT, Sampling()) for _ in range(10)]
    for one in open_ones:
        await anext(one)
    assert [counted.requests for counted in clients._all] == [8, 2]
    async for _ in open_ones[0]:
        pass
    for one in open_ones[1:]:
        await cast("AsyncGenerator[Delta, None]", one).aclose()
    for _ in range(2):
        with pytest.raises(EngineError):
            await text_of_stream(engine)
    assert [counted.requests for counted in clients._all] == [0, 0]
