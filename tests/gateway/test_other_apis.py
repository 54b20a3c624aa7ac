"""Responses, completions and messages: what is judged, what is refused, what reaches the target."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from aiohttp import web

from tests.gateway.common import Running, data_url, error_of, png, running, stream
from vlmguard.types import Image

URL = data_url(png())


def input_text(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def input_image(url: str) -> dict[str, str]:
    return {"type": "input_image", "image_url": url}


async def test_a_response_of_a_string(gate: Running) -> None:
    """The input is judged; instructions and store stay."""
    body = {"model": "m", "input": "bad", "instructions": "be bad", "store": True}
    response = await gate.http.post("/v1/responses", json=body)
    assert response.headers["x-vlmguard-action"] == "rewrite"
    assert gate.upstream.last.path == "/v1/responses"
    assert gate.upstream.last.json == {**body, "input": "safe good"}


async def test_a_response_of_items(gate: Running) -> None:
    """Messages and outputs of tools are judged with their pictures; the rest stays."""
    data = png("danger")
    gate.rules.bad_pictures.add(Image(data=data, media_type="image/png").sha256)
    items: list[Any] = [
        {"role": "developer", "content": "bad"},
        {"type": "message", "role": "user", "content": [input_text("bad"), input_image(URL)]},
        {"type": "reasoning", "id": "r", "summary": []},
        {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "1", "output": [input_image(data_url(data))]},
        {"role": "assistant", "content": [{"type": "output_text", "text": "bad"}]},
        {"role": "user", "content": "thanks"},
    ]
    response = await gate.http.post("/v1/responses", json={"model": "m", "input": items})
    assert response.status_code == 200
    sent = gate.upstream.last.json["input"]
    assert sent[1]["content"] == [input_text("safe good"), input_image(URL)]
    assert [part["type"] for part in sent[4]["output"]] == ["input_image", "input_text"]
    for unchanged in (0, 2, 3, 5, 6):
        assert sent[unchanged] == items[unchanged]
    assert response.headers["x-vlmguard-verdict"] == "safe"


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({"input": "a", "previous_response_id": "r"}, "previous_response_id", "unsupported_state"),
        ({"input": "a", "conversation": "c"}, "conversation", "unsupported_state"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt", "uninspected_content"),
        ({}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [{"type": "item_reference", "id": "i"}]}, "input[0].type", None),
        ({"input": [{"type": "image_generation_call", "result": "A"}]}, "input[0].type", None),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "input[0].content[0].type",
            "uninspected_content",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].file_id",
            "uninspected_content",
        ),
        ({"input": "a", "instructions": 1}, "instructions", "invalid_value"),
    ],
)
async def test_responses_that_would_go_round_the_guard(
    gate: Running, body: Any, param: str, code: str | None
) -> None:
    """State, references and files that nobody inspected: a 400 that names them."""
    response = await gate.http.post("/v1/responses", json=body)
    error = error_of(response)
    assert (response.status_code, error["param"]) == (400, param)
    assert code is None or error["code"] == code
    assert not gate.upstream.received


async def test_completions(gate: Running) -> None:
    """Each prompt is judged by itself, the suffix as well."""
    body = {"prompt": ["hello", "bad"], "suffix": "bad end", "n": 2}
    response = await gate.http.post("/v1/completions", json=body)
    assert gate.upstream.last.json == {
        "model": "stub",
        "prompt": ["hello", "safe good"],
        "suffix": "safe good end",
        "n": 2,
    }
    assert response.headers["x-vlmguard-verdict"] == "risky"
    await gate.http.post("/v1/completions", json={"prompt": "bad"})
    assert gate.upstream.last.json["prompt"] == "safe good"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": [[1], [2]]}, "prompt[0]"),
        ({"prompt": {"prompt_string": "x", "multimodal_data": []}}, "prompt"),
        ({"prompt": "a", "prompt_embeds": "x"}, "prompt_embeds"),
        ({"prompt": "a", "suffix": 1}, "suffix"),
        ({"prompt": " "}, None),
    ],
)
async def test_wrong_completions(gate: Running, body: Any, param: str | None) -> None:
    """Token numbers cannot be read, so they do not pass."""
    response = await gate.http.post("/v1/completions", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


async def test_messages_of_anthropic(gate: Running) -> None:
    """Text and picture blocks, tool results with pictures; the system prompt stays."""
    data = png("danger")
    gate.rules.bad_pictures.add(Image(data=data, media_type="image/png").sha256)
    picture = {
        "type": "image",
        "source": {
            "type": "base64",
            "media_type": "image/png",
            "data": base64.b64encode(data).decode(),
        },
    }
    body = {
        "model": "claude",
        "max_tokens": 5,
        "system": "bad",
        "messages": [
            {"role": "user", "content": "bad"},
            {
                "role": "assistant",
                "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {}}],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [picture]},
                    {"type": "text", "text": "and this?", "cache_control": {"type": "ephemeral"}},
                ],
            },
        ],
    }
    headers = {"x-api-key": "k", "anthropic-version": "2023-06-01"}
    response = await gate.http.post("/v1/messages", json=body, headers=headers)
    assert response.status_code == 200
    sent = gate.upstream.last
    assert sent.headers["x-api-key"] == "k"
    assert sent.headers["anthropic-version"] == "2023-06-01"
    assert sent.json["system"] == "bad"
    first, called, last = sent.json["messages"]
    assert first["content"] == "safe good"
    assert called == body["messages"][1]  # type: ignore[index]
    result, text = last["content"]
    assert result["content"][0] == picture
    assert result["content"][1]["text"].startswith("safe")
    assert text == {"type": "text", "text": "and this?", "cache_control": {"type": "ephemeral"}}


@pytest.mark.parametrize(
    ("content", "param"),
    [
        ([{"type": "document", "source": {}}], "messages[0].content[0].type"),
        ([{"type": "image", "source": {"type": "file"}}], "messages[0].content[0].source.type"),
        ([{"type": "image"}], "messages[0].content[0].source"),
        ([], "messages[0].content"),
        (7, "messages[0].content"),
    ],
)
async def test_wrong_messages(gate: Running, content: Any, param: str) -> None:
    """Documents and files are not inspected, so they do not pass."""
    body = {"messages": [{"role": "user", "content": content}]}
    response = await gate.http.post("/v1/messages", json=body)
    assert (response.status_code, error_of(response)["param"]) == (400, param)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/completions", {"prompt": "bad"}, ["text_completion", "[DONE]"]),
        ("/v1/messages", {"messages": [{"role": "user", "content": "bad"}]}, ["message_stop"]),
    ],
)
async def test_refusals_have_the_form_of_the_endpoint(
    tmp_path: Any, path: str, body: Any, words: list[str]
) -> None:
    """Plain and streamed."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: hard\ndefault_action: refuse\nrefusal: Not this.\n")
    async with running(policy=str(policy)) as gate:
        plain = await gate.http.post(path, json=body)
        assert "Not this." in plain.text
        streamed = await gate.http.post(path, json=body | {"stream": True})
        assert all(word in streamed.text for word in ["Not this.", *words])


async def test_refused_responses_are_read_by_the_client(tmp_path: Any) -> None:
    """The official client understands a refusal, plain and streamed."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: hard\ndefault_action: refuse\nrefusal: Not this.\n")
    async with running(policy=str(policy)) as gate:
        client = gate.openai
        whole = await client.responses.create(model="m", input="bad")
        assert (whole.output_text, whole.status) == ("Not this.", "completed")
        events = [
            event
            async for event in await client.responses.create(model="m", input="bad", stream=True)
        ]
        assert events[-1].type == "response.completed"
        assert "".join(e.delta for e in events if e.type == "response.output_text.delta")
        assert [event.sequence_number for event in events] == list(range(len(events)))


async def test_a_streamed_response_passes_byte_for_byte(gate: Running) -> None:
    """Events of the responses API are not touched."""
    events = [b'event: response.created\ndata: {"type":"response.created"}\n\n', b"data: x\n\n"]

    async def answer(request: web.Request, _body: Any) -> web.StreamResponse:
        return await stream(request, events)

    gate.upstream.answer = answer
    response = await gate.http.post("/v1/responses", json={"input": "hi", "stream": True})
    assert response.content == b"".join(events)
