"""Tokens of the target in the audit log: of streams too, though their records come before them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.gateway.common import Rules, Running, chunks, running, stream
from tests.gateway.faults import read_audit
from tests.gateway.test_inprocess import echo
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.gateway.streaming import usage_in_events, without_usage
from vlmguard.types import Usage

TOLD = (
    b'data: {"id":"c", "choices":[], "usage":{"prompt_tokens":7, "completion_tokens":3, '
    b'"prompt_tokens_details":{"cached_tokens":5}}}\n\n'
)
COUNTED = Usage(prompt_tokens=7, completion_tokens=3, cached_tokens=5)
TEXT = [*chunks("Hel", "lo.")[:2]]
DONE = b"data: [DONE]\n\n"


def event(name: str, **values: Any) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (
        name.encode(),
        json.dumps(values | {"type": name}).encode(),
    )


STREAMS = {
    "/v1/chat/completions": [*TEXT, TOLD, DONE],
    "/v1/completions": [*TEXT, TOLD, DONE],
    "/v1/responses": [
        event("response.created", response={"id": "r", "usage": None}),
        event("response.output_text.delta", delta="Hello."),
        event(
            "response.completed",
            response={
                "id": "r",
                "usage": {
                    "input_tokens": 7,
                    "output_tokens": 3,
                    "input_tokens_details": {"cached_tokens": 5},
                },
            },
        ),
    ],
    "/v1/messages": [
        event(
            "message_start",
            message={
                "usage": {"input_tokens": 7, "output_tokens": 1, "cache_read_input_tokens": 5}
            },
        ),
        event("content_block_delta", delta={"type": "text_delta", "text": "Hello."}),
        event("message_delta", delta={}, usage={"output_tokens": 3}),
        event("message_stop"),
    ],
}
USER: Any = [{"role": "user", "content": "hi"}]
BODIES: dict[str, Any] = {
    "/v1/chat/completions": {"messages": USER, "stream_options": {"include_usage": True}},
    "/v1/completions": {"prompt": "hi", "stream_options": {"include_usage": True}},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": USER, "max_tokens": 9},
}


def streams(gate: Running, events: list[bytes]) -> None:
    """Have the target stream these."""

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        return await stream(request, events)

    gate.upstream.answer = answer


@pytest.mark.parametrize("form", ["sqlite", "jsonl"])
@pytest.mark.parametrize("path", STREAMS)
async def test_what_a_stream_tells_at_its_end_is_recorded(
    path: str, form: str, tmp_path: Path
) -> None:
    """In every API's words, in both forms of log, in the one record; and the client sees it."""
    audit = tmp_path / f"a.{form}"
    async with running(audit=str(audit)) as gate:
        streams(gate, STREAMS[path])
        response = await gate.http.post(path, json={"model": "m", "stream": True, **BODIES[path]})
        assert response.content == b"".join(STREAMS[path])
        shown = (await gate.http.get("/metrics")).text
    [record] = read_audit(audit)
    assert (record.streamed, record.usage) == (True, COUNTED)
    assert 'vlmguard_tokens_total{kind="completion",model="target"} 3.0' in shown


@pytest.mark.parametrize("mode", ["enforce", "shadow", "off"])
@pytest.mark.parametrize("options", [None, {"include_usage": False, "x_other": 1}])
async def test_an_operator_may_count_streams_whose_clients_did_not_ask(
    mode: str, options: Any, tmp_path: Path
) -> None:
    """With ``stream_usage`` the target is asked, and the client's stream is as without it."""
    audit = tmp_path / "a.sqlite"
    more = {} if options is None else {"stream_options": options}
    async with running(mode=mode, audit=str(audit), stream_usage=True) as gate:
        streams(gate, [*TEXT, TOLD, DONE])
        response = await gate.chat("hi", stream=True, **more)
        assert response.content == b"".join([*TEXT, DONE])
        asked = gate.upstream.last.json["stream_options"]
        assert asked == {**(options or {}), "include_usage": True}
    [record] = read_audit(audit)
    assert record.usage == COUNTED


async def test_a_client_that_asks_sees_what_it_asked_for() -> None:
    """Also where the operator counts."""
    async with running(stream_usage=True) as gate:
        streams(gate, [*TEXT, TOLD, DONE])
        response = await gate.chat("hi", stream=True, stream_options={"include_usage": True})
        assert response.content == b"".join([*TEXT, TOLD, DONE])


async def test_nobody_is_asked_unless_the_operator_wants_it(tmp_path: Path) -> None:
    """The request goes on as the client wrote it; a stream that tells nothing counts nothing."""
    audit = tmp_path / "a.sqlite"
    async with running(audit=str(audit)) as gate:
        streams(gate, [*TEXT, DONE])
        await gate.chat("hi", stream=True)
        assert "stream_options" not in gate.upstream.last.json
    [record] = read_audit(audit)
    assert record.usage == Usage()


@pytest.mark.parametrize("odd", [{"stream": False}, {"stream": True, "stream_options": "all"}])
async def test_other_requests_stay_as_they_are(odd: Any) -> None:
    """Whole answers tell their tokens anyway, and malformed options are the target's to refuse."""
    async with running(stream_usage=True) as gate:
        await gate.chat("hi", **odd)
        assert gate.upstream.last.json.get("stream_options") == odd.get("stream_options")


async def test_a_stream_that_ends_before_its_shadow_decision(tmp_path: Path) -> None:
    """Its record, written after it, has the tokens as well."""
    audit = tmp_path / "a.sqlite"
    rules, go = Rules(), asyncio.Event()

    async def wait() -> None:
        await go.wait()

    rules.before = wait
    async with running(rules, mode="shadow", audit=str(audit)) as gate:
        streams(gate, [*TEXT, TOLD, DONE])
        await gate.chat("hi", stream=True, stream_options={"include_usage": True})
        assert read_audit(audit) == []
        go.set()
    [record] = read_audit(audit)
    assert (record.verdict, record.usage) == ("safe", COUNTED)


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_model_in_this_process_counts_too(streamed: bool, tmp_path: Path) -> None:
    """Nobody need ask for it."""
    audit = tmp_path / "a.sqlite"
    async with running(engine=ScriptedEngine(echo), audit=str(audit)) as gate:
        await gate.chat("hi", stream=streamed)
    [record] = read_audit(audit)
    assert record.usage.completion_tokens == 3


def test_only_the_chunk_that_tells_nothing_else_is_left_out() -> None:
    """Chunks with text stay, whatever they tell beside it, in every spelling of line ends."""
    both = b'data: {"choices":[{"delta":{"content":"a"}}],"usage":{"prompt_tokens":1}}\n\n'
    null = b'data: {"choices":[],"usage":null}\n\n'
    for kept in (both, null, DONE, b": comment\n\n", b'data: "usage" {\n\n', TEXT[0]):
        assert without_usage(kept + TOLD + kept) == kept + kept
    windows = TOLD.replace(b"\n", b"\r\n")
    assert without_usage(windows) == b""
    assert without_usage(TOLD.rstrip()) == b""


def test_counts_of_odd_streams() -> None:
    """The most that was told; nothing where nothing can be read."""
    assert usage_in_events(b"", b'data: "usage"\n\n', b'data: {"usage": [1]}\n\n') == Usage()
    growing = b"".join(
        b'data: {"usage":{"prompt_tokens":4,"completion_tokens":%d}}\n\n' % n for n in (1, 2, 3)
    )
    assert usage_in_events(growing) == Usage(prompt_tokens=4, completion_tokens=3)
