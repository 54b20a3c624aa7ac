"""A target in the gateway's own process, and a real model behind a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest

from tests.engines.conftest import KEY
from tests.gateway.common import Running, data_url, error_of, listening, png, running
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import EngineRejected, EngineUnavailable
from vlmguard.types import Chat, Delta

SEES = frozenset({Capability.STREAMING, Capability.VISION, Capability.JSON_SCHEMA})
USER: Any = [{"role": "user", "content": "bad"}]


def echo(chat: Chat, _sampling: object) -> str:
    return f"You said {chat.messages[-1].text}"


@pytest.fixture
async def local() -> AsyncIterator[Running]:
    """A gateway whose target is an engine."""
    async with running(engine=ScriptedEngine(echo, capabilities=SEES)) as gate:
        yield gate


async def test_chat_completions(local: Running) -> None:
    """The official client reads answers and streams of an engine, and sees its model."""
    client = local.openai
    done = await client.chat.completions.create(model="m", messages=USER)
    assert done.choices[0].message.content == "You said safe good"
    assert (done.model, done.usage and done.usage.completion_tokens) == ("m", 4)
    text = ""
    async for chunk in await client.chat.completions.create(
        model="m", messages=USER, stream=True, stream_options={"include_usage": True}
    ):
        text += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert text == "You said safe good"
    assert chunk.usage is not None
    assert [model.id async for model in client.models.list()] == ["scripted"]
    assert (await client.models.retrieve("scripted")).id == "scripted"


async def test_responses_completions_and_messages(local: Running) -> None:
    """The same engine answers in every form."""
    client = local.openai
    response = await client.responses.create(model="m", input="bad", instructions="Be brief.")
    assert response.output_text == "You said safe good"
    deltas = [
        event.delta
        async for event in await client.responses.create(model="m", input="bad", stream=True)
        if event.type == "response.output_text.delta"
    ]
    assert "".join(deltas) == "You said safe good"
    completion = await client.completions.create(model="m", prompt="bad")
    assert completion.choices[0].text == "You said safe good"
    body = {"model": "m", "max_tokens": 9, "system": "Be brief.", "messages": USER}
    message = (await local.http.post("/v1/messages", json=body)).json()
    assert message["content"] == [{"type": "text", "text": "You said safe good"}]
    assert message["stop_reason"] == "end_turn"
    streamed = await local.http.post("/v1/messages", json=body | {"stream": True})
    assert "event: content_block_delta" in streamed.text


async def test_reports_and_refusals_of_the_guard(local: Running) -> None:
    """The report is added to an engine's answers as well."""
    headers = {"x-vlmguard-report": "true"}
    plain = await local.chat("bad", headers=headers)
    assert plain.json()["vlmguard"]["decision"]["verdict"] == "risky"
    streamed = await local.chat("bad", headers=headers, stream=True)
    assert ": vlmguard {" in streamed.text


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"n": 2}, "n"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"stop": [1]}, "stop"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"seed": "x"}, "seed"),
        ({"logprobs": True}, "logprobs"),
    ],
)
async def test_what_an_engine_cannot_do_is_told(local: Running, more: Any, param: str) -> None:
    """A 400 that names the field."""
    response = await local.chat("hi", **more)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (EngineUnavailable("down"), 502, "target_unavailable"),
        (EngineRejected("too long", context_exceeded=True), 400, "context_length_exceeded"),
    ],
)
async def test_errors_of_an_engine(error: Exception, status: int, code: str) -> None:
    """In OpenAI's form, streamed or not, since they come before the first token."""
    async with running(engine=ScriptedEngine(lambda *_: error)) as gate:
        for stream in (False, True):
            response = await gate.chat("hi", stream=stream)
            assert (response.status_code, error_of(response)["code"]) == (status, code)


class Breaking(ScriptedEngine):
    """Fails after its first word."""

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        async for delta in super().stream(chat, sampling):
            yield delta
            raise EngineUnavailable("the worker died")


@pytest.mark.parametrize(
    ("path", "body", "end"),
    [
        ("chat/completions", {"messages": USER}, 'data: {"error":{"message":"the worker died"'),
        ("completions", {"prompt": "hi"}, 'data: {"error":{"message":"the worker died"'),
        ("responses", {"input": "hi"}, "event: error\ndata: {"),
        ("messages", {"messages": USER, "max_tokens": 9}, 'event: error\ndata: {"type":"error"'),
    ],
)
async def test_an_engine_that_fails_within_its_answer(path: str, body: Any, end: str) -> None:
    """The stream ends with an error event in the endpoint's own form, after what there was."""
    async with running(engine=Breaking(["first second"])) as gate:
        response = await gate.http.post(f"/v1/{path}", json={"model": "m", "stream": True, **body})
        last = response.text.strip().split("\n\n")[-1]
        assert "first" in response.text
        assert last.startswith(end)
        assert "the worker died" in last


async def test_pictures_reach_an_engine_that_sees(local: Running) -> None:
    """As pictures, the very bytes that were judged."""
    await local.chat([{"type": "image_url", "image_url": {"url": data_url(png())}}])
    target = local.gateway.target
    [(chat, _)] = target.engine.calls  # type: ignore[union-attr]  # it is an engine
    assert chat.images[0].data == png()


async def test_shadow_and_off_ask_the_engine_as_it_is() -> None:
    """Without the decision being carried out."""
    for mode in ("shadow", "off"):
        async with running(engine=ScriptedEngine(echo), mode=mode) as gate:
            answer = (await gate.chat("bad")).json()["choices"][0]["message"]["content"]
            assert answer == "You said bad"


async def test_other_routes_are_not_there(local: Running) -> None:
    """An engine has no embeddings."""
    response = await local.http.post("/v1/embeddings", json={"input": "a"})
    assert (response.status_code, error_of(response)["code"]) == (404, "not_found")


async def test_a_real_server_behind_the_gateway(
    llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """llama.cpp answers the official client through the gateway: plain, streamed, tools, JSON."""
    monkeypatch.setenv("LLAMA_KEY", KEY)
    target = f"openai:smollm2@{llama_server}/v1?key_env=LLAMA_KEY"
    async with (
        running(target=target) as gate,
        listening(gate.gateway) as url,
        openai.AsyncOpenAI(api_key="x", base_url=f"{url}/v1", max_retries=0) as client,
    ):
        options: Any = {"model": "smollm2", "max_tokens": 6, "temperature": 0, "seed": 1}
        asked: Any = [{"role": "user", "content": "Say hello."}]
        whole = await client.chat.completions.with_raw_response.create(messages=asked, **options)
        assert whole.headers["x-vlmguard-verdict"] == "safe"
        text = whole.parse().choices[0].message.content
        assert text
        streamed = ""
        async for chunk in await client.chat.completions.create(
            messages=asked, stream=True, **options
        ):
            streamed += "".join(choice.delta.content or "" for choice in chunk.choices)
        assert streamed == text
        schema: Any = {"type": "object", "properties": {"v": {"enum": ["a"]}}, "required": ["v"]}
        formatted = await client.chat.completions.create(
            messages=asked,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "v", "schema": schema},
            },
            **(options | {"max_tokens": 24}),
        )
        assert '"v"' in (formatted.choices[0].message.content or "")
        assert (await client.completions.create(prompt="Hello", **options)).choices[0].text
        with pytest.raises(openai.BadRequestError):
            await client.chat.completions.create(
                messages=[{"role": "user", "content": "word " * 3000}], **options
            )
        assert [model.id async for model in client.models.list()]


async def test_a_real_model_cannot_see_and_says_so(
    llama_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's own error about pictures passes through."""
    monkeypatch.setenv("LLAMA_KEY", KEY)
    target = f"openai:smollm2@{llama_server}/v1?key_env=LLAMA_KEY"
    async with running(target=target) as gate:
        response = await gate.chat([{"type": "image_url", "image_url": {"url": data_url(png())}}])
        assert response.status_code in {400, 500, 501}
        assert "error" in response.json()
