"""Chat completions: what is judged, what reaches the target, what comes back."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
from aiohttp import web

from tests.drawing import encode, typed_text
from tests.gateway.common import (
    COMPLETION,
    Running,
    data_url,
    error_of,
    image_part,
    png,
    running,
    text_part,
)
from vlmguard.images.fetch import Fetcher
from vlmguard.types import Image


async def test_a_harmless_request_passes_with_all_its_fields(gate: Running) -> None:
    """Fields that nobody here knows reach the target, and its answer comes back as it is."""
    more = {"temperature": 0.1, "seed": 2**62, "x_vendor": {"deep": [1, None, "ä\u200b"]}}
    response = await gate.chat("Hello \u200bthere", **more)
    assert response.json() == COMPLETION
    assert gate.upstream.last.json == {
        "model": "stub",
        "messages": [{"role": "user", "content": "Hello \u200bthere"}],
        **more,
    }
    assert response.headers["x-vlmguard-verdict"] == "safe"
    assert response.headers["x-vlmguard-action"] == "allow"
    assert response.headers["x-vlmguard-policy"] == "balanced"
    assert response.headers["x-vlmguard-rewriter"] == "rules"
    assert float(response.headers["x-vlmguard-risk"]) == pytest.approx(0.1)
    assert float(response.headers["x-vlmguard-latency-ms"]) > 0
    assert len(response.headers["x-vlmguard-request-id"]) == 24


async def test_a_risky_request_reaches_the_target_rewritten(gate: Running) -> None:
    """The rewrite stands where the prompt stood, and headers say so."""
    response = await gate.chat("do bad things")
    assert gate.upstream.messages == [{"role": "user", "content": "safe do good things"}]
    assert response.headers["x-vlmguard-verdict"] == "risky"
    assert response.headers["x-vlmguard-action"] == "rewrite"


async def test_several_texts_become_one_and_pictures_stay(gate: Running) -> None:
    """The first text part gets the rewrite, the others go, pictures keep their place."""
    one, two = data_url(png("one")), data_url(png("two"))
    await gate.chat(
        [text_part("bad"), image_part(one), text_part("second"), image_part(two) | {"x": 1}]
    )
    assert gate.upstream.messages[0]["content"] == [
        text_part("safe good\nsecond"),
        image_part(one),
        image_part(two) | {"x": 1},
    ]
    assert len(gate.rules.seen[0].messages[0].images) == 2


async def test_a_picture_alone_is_judged(gate: Running) -> None:
    """An image-only message gets a text when its picture is risky."""
    data = png("danger")
    gate.rules.bad_pictures.add(Image(data=data, media_type="image/png").sha256)
    response = await gate.chat([image_part(data_url(data))])
    assert response.headers["x-vlmguard-verdict"] == "risky"
    picture, text = gate.upstream.messages[0]["content"]
    assert picture == image_part(data_url(data))
    assert text["text"].startswith("safe")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "JPEG", "BMP"])
async def test_other_formats_reach_the_target_byte_for_byte(gate: Running, kind: str) -> None:
    """What is inspected is what is sent, whatever the client calls it."""
    data = encode(typed_text("hi", size=(64, 48), font_size=12), kind)
    await gate.chat([text_part("what?"), image_part(data_url(data, "image/png"))])
    url = gate.upstream.messages[0]["content"][1]["image_url"]["url"]
    head, _, sent = url.partition(",")
    assert base64.b64decode(sent) == data
    assert head.lower() == f"data:image/{'bmp' if kind == 'BMP' else kind.lower()};base64"
    assert gate.rules.seen[0].messages[0].images[0].data == data


@pytest.mark.parametrize(
    "spelling",
    ["  {url}", "\n\t{url} ", "DATA:image/png;base64,{rest}", "data: image/png; base64,{rest}"],
)
async def test_odd_spellings_of_data_urls_do_not_slip_through(gate: Running, spelling: str) -> None:
    """Leading blanks and odd capitals: inspected, and sent on in the one normal form."""
    url = data_url(png())
    odd = spelling.format(url=url, rest=url.partition(",")[2])
    await gate.chat([text_part("what?"), image_part(odd)])
    assert gate.upstream.messages[0]["content"][1] == image_part(url)
    assert len(gate.rules.seen[0].images) == 1


async def test_a_remote_picture_is_fetched_once_and_sent_as_data() -> None:
    """The target gets the very bytes that were inspected, and no URL to fetch."""

    class Counting(Fetcher):
        fetched = 0

        async def fetch_image(self, url: str) -> Image:
            type(self).fetched += 1
            return Image(data=png(url.strip()), media_type="image/png", source=url)

    async with running(fetcher=Counting()) as gate:
        for _ in range(2):
            await gate.chat([text_part("what?"), image_part(" https://example.com/a.png")])
        sent = gate.upstream.messages[0]["content"][1]["image_url"]["url"]
        assert sent == data_url(png("https://example.com/a.png"))
        assert Counting.fetched == 1


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1:80/a.png",
        "http://2130706433/a.png",
        "http://[::ffff:10.0.0.1]/a.png",
        "https://0x7f.1/a.png",
        "ftp://example.com/a.png",
        "file:///etc/passwd",
        "/etc/passwd",
    ],
)
async def test_forbidden_addresses_are_not_fetched(gate: Running, url: str) -> None:
    """Metadata, loopback, private addresses in any spelling, and other schemes: a 400."""
    response = await gate.chat([text_part("what?"), image_part(url)])
    assert response.status_code == 400
    assert error_of(response)["param"] == "messages[0].content[1].image_url.url"
    assert not gate.upstream.received


async def test_the_operator_limits_the_hosts_of_pictures() -> None:
    """Only listed domains are fetched from; or none at all."""
    async with running(image_domains=("example.org",)) as gate:
        response = await gate.chat([image_part("https://example.com/a.png")])
        assert "example.com" in error_of(response)["message"]
    async with running(remote_images=False) as gate:
        response = await gate.chat([image_part("https://example.com/a.png")])
        assert "switched off" in error_of(response)["message"]


async def test_too_many_pictures(gate: Running) -> None:
    """The policy's cap holds before any picture is decoded."""
    response = await gate.chat([image_part("data:,x") for _ in range(17)])
    assert error_of(response)["code"] == "too_many_images"


async def test_the_whole_conversation_is_judged_and_remembered(gate: Running) -> None:
    """Each turn is judged once; earlier rewrites stay; a bad turn does not trip later ones."""
    first = [{"role": "user", "content": "bad one"}]
    body = {"model": "stub", "messages": first}
    await gate.http.post("/v1/chat/completions", json=body)
    assert len(gate.rules.seen) == 1
    body["messages"] = [
        *first,
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "thanks"},
    ]
    response = await gate.http.post("/v1/chat/completions", json=body)
    assert len(gate.rules.seen) == 2
    assert response.headers["x-vlmguard-verdict"] == "safe"
    assert [m["content"] for m in gate.upstream.messages] == ["safe good one", "ok", "thanks"]


async def test_only_user_content_is_judged(gate: Running) -> None:
    """System prompts, prefills, tool calls, names and unknown keys stay as they are."""
    messages = [
        {"role": "system", "content": "never do bad things"},
        {"role": "developer", "content": [text_part("bad")]},
        {"role": "user", "name": "Ann", "content": "hello", "x": 1},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "content": "bad weather"},
        {"role": "assistant", "content": "The bad weather"},
    ]
    response = await gate.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 200
    assert gate.upstream.messages == messages
    assert gate.upstream.last.json["model"] == "stub"


async def test_pictures_in_tool_results_are_judged(gate: Running) -> None:
    """A picture that a tool returned is inspected, and a rewrite stands beside it."""
    data = png("danger")
    gate.rules.bad_pictures.add(Image(data=data, media_type="image/png").sha256)
    messages = [
        {"role": "user", "content": "look"},
        {"role": "tool", "tool_call_id": "1", "content": [image_part(data_url(data))]},
    ]
    response = await gate.http.post("/v1/chat/completions", json={"messages": messages})
    assert response.headers["x-vlmguard-verdict"] == "risky"
    picture, text = gate.upstream.messages[1]["content"]
    assert picture == image_part(data_url(data))
    assert text["text"].startswith("safe")


async def test_a_refused_earlier_turn_is_withheld(tmp_path: Any) -> None:
    """Its text and pictures do not reach the target."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: hard\ndefault_action: refuse\nrefusal: No.\n")
    async with running(policy=str(policy)) as gate:
        await gate.chat([text_part("bad"), image_part(data_url(png()))], "thanks")
        first, second = gate.upstream.messages
        assert [part["type"] for part in first["content"]] == ["text"]
        assert "withheld" in first["content"][0]["text"]
        assert second["content"] == "thanks"


async def test_a_refusal_is_an_ordinary_answer(tmp_path: Any) -> None:
    """Plain and streamed, in the policy's words, and the target is not asked."""
    policy = tmp_path / "p.yaml"
    policy.write_text("name: hard\ndefault_action: refuse\nrefusal: Not this.\n")
    async with running(policy=str(policy)) as gate:
        client = gate.openai
        messages: Any = [{"role": "user", "content": "bad"}]
        whole = await client.chat.completions.with_raw_response.create(
            model="stub", messages=messages
        )
        completion = whole.parse()
        assert completion.choices[0].message.content == "Not this."
        assert completion.choices[0].finish_reason == "stop"
        assert whole.headers["x-vlmguard-action"] == "refuse"
        text, finish = "", None
        async for chunk in await client.chat.completions.create(
            model="stub", messages=messages, stream=True, stream_options={"include_usage": True}
        ):
            for choice in chunk.choices:
                text += choice.delta.content or ""
                finish = choice.finish_reason or finish
        assert (text, finish, chunk.usage is not None) == ("Not this.", "stop", True)
        assert not gate.upstream.received


async def test_upstream_errors_pass_unchanged(gate: Running) -> None:
    """Status, body and headers of the target's refusal reach the client."""

    async def refuse(_request: web.Request, _body: Any) -> web.StreamResponse:
        told = {"error": {"message": "no such model", "type": "t", "param": "model", "code": "x"}}
        return web.json_response(told, status=404, headers={"x-ratelimit-remaining": "7"})

    gate.upstream.answer = refuse
    with pytest.raises(openai.NotFoundError) as caught:
        await gate.openai.chat.completions.create(
            model="gone", messages=[{"role": "user", "content": "hi"}]
        )
    assert caught.value.body == {
        "message": "no such model",
        "type": "t",
        "param": "model",
        "code": "x",
    }
    assert caught.value.response.headers["x-ratelimit-remaining"] == "7"
    assert gate.upstream.last.json["model"] == "gone"


async def test_whose_key_the_target_gets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator's where there is one, else the client's."""
    async with running() as gate:
        await gate.chat("hi", headers={"authorization": "Bearer mine", "cookie": "c=1"})
        assert gate.upstream.last.headers["authorization"] == "Bearer mine"
        assert "cookie" not in gate.upstream.last.headers
    monkeypatch.setenv("TARGET_KEY", "operators-key")
    async with running(target_key_env="TARGET_KEY") as gate:
        await gate.chat("hi", headers={"authorization": "Bearer mine"})
        assert gate.upstream.last.headers["authorization"] == "Bearer operators-key"


async def test_names_of_models(gate: Running) -> None:
    """Kept as the client writes it, unless the operator maps it."""
    await gate.chat("hi", model="anything")
    assert gate.upstream.last.json["model"] == "anything"
    async with running(model_names={"gpt": "stub-7b"}) as mapped:
        await mapped.chat("hi", model="gpt")
        assert mapped.upstream.last.json["model"] == "stub-7b"
    async with running(force_model=True) as forced:
        await forced.chat("hi", model="gpt")
        assert forced.upstream.last.json["model"] == "stub"


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "JSON"),
        (b"{", "JSON"),
        (b"[1]", "object"),
        (b"\xff\xfe", "JSON"),
        (b'{"messages": NaN}', "JSON"),
        (b"[" * 100_000, "JSON"),
    ],
)
async def test_bodies_that_are_no_json_object(gate: Running, raw: bytes, says: str) -> None:
    """A 400 in OpenAI's form."""
    response = await gate.http.post("/v1/chat/completions", content=raw)
    assert response.status_code == 400
    assert says in error_of(response)["message"]


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["hi"]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [image_part("data:image/png;base64,AA")]}]},
            "messages[0].content[0].image_url.url",
        ),
        (
            {"messages": [{"role": "system", "content": [image_part(data_url(png()))]}, USER]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [USER, {"role": "assistant", "content": [image_part("data:,")]}]},
            "messages[1].content[0].type",
        ),
        ({"messages": [USER], "stream": "yes"}, "stream"),
        ({"messages": [USER], "model": 7}, "model"),
        ({"messages": [USER], "chat_template": "{{ x }}"}, "chat_template"),
        ({"messages": [USER], "prompt_embeds": "AAAA"}, "prompt_embeds"),
    ],
)
async def test_a_wrong_field_is_named(gate: Running, body: Any, param: str) -> None:
    """A 400 that names the field, and nothing reaches the target."""
    response = await gate.http.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    error = error_of(response)
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert not gate.upstream.received


async def test_uninspected_content_may_be_allowed() -> None:
    """By the operator, by name."""
    async with running(allow_uninspected=("input_audio",)) as gate:
        part = {"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}
        response = await gate.chat([text_part("hi"), part])
        assert response.status_code == 200
        assert gate.upstream.messages[0]["content"][1] == part


async def test_keys_twice_in_an_object_reach_the_target_once(gate: Running) -> None:
    """What a second reader would take for the messages is what was judged."""
    first, second = (
        b'"messages":[{"role":"user","content":"%s"}]' % word for word in (b"bad", b"hi")
    )
    raw = b"{%s,%s}" % (first, second)
    await gate.http.post("/v1/chat/completions", content=raw)
    assert gate.upstream.last.body.count(b"messages") == 1
    assert gate.upstream.messages == [USER]


async def test_other_routes_are_refused(gate: Running) -> None:
    """Nothing goes round the guard: neither unknown routes, nor odd paths, nor methods."""
    for method, path, status in [
        ("POST", "/v1/audio/speech", 404),
        ("POST", "/chat/completions", 404),
        ("GET", "/", 404),
        ("GET", "/v1/models/a/%2e%2e/b", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models", 405),
    ]:
        response = await gate.http.request(method, path)
        assert response.status_code == status, path
        assert error_of(response)["code"] in {"route_not_allowed", "method_not_allowed"}
    assert not gate.upstream.received


async def test_routes_that_pass() -> None:
    """Models, embeddings, and what the operator lists."""
    async with running(allow_routes=("POST /v1/audio/*", "/v1/files")) as gate:
        for method, path in [
            ("GET", "/v1/models"),
            ("GET", "/v1/models/org/name"),
            ("POST", "/v1/embeddings?x=1"),
            ("POST", "/v1/audio/speech"),
            ("GET", "/v1/files"),
        ]:
            response = await gate.http.request(method, path, content=b'{"input": "a"}')
            assert response.status_code == 200, path
            assert (gate.upstream.last.method, gate.upstream.last.path) == (method, path)
        assert (await gate.http.get("/v1/audio/speech")).status_code == 405


async def test_the_report_is_added_on_request(gate: Running) -> None:
    """In the body, or as a comment at the end of a stream."""
    response = await gate.chat("bad", headers={"x-vlmguard-report": "true"})
    told = response.json()["vlmguard"]
    assert told["decision"]["category"] == "violence"
    assert told["decision"]["report"] == {"textual": "t", "visual": "v", "multimodal": "m"}
    assert told["request_id"] == response.headers["x-vlmguard-request-id"]
    plain = await gate.chat("bad")
    assert "vlmguard" not in plain.json()
    streamed = await gate.chat("bad", stream=True, headers={"x-vlmguard-report": "true"})
    last = streamed.text.strip().split("\n\n")[-1]
    assert last.startswith(": vlmguard ")
    assert json.loads(last.removeprefix(": vlmguard "))["decision"]["verdict"] == "risky"


async def test_the_decision_alone(gate: Running) -> None:
    """``/v1/rewrite`` shows report and rewrite, and the target is not asked."""
    response = await gate.http.post(
        "/v1/rewrite", json={"prompt": "bad", "images": [data_url(png())]}
    )
    told = response.json()
    assert (told["verdict"], told["prompt"], told["changed"]) == ("risky", "safe good", True)
    assert told["id"] == response.headers["x-vlmguard-request-id"]
    chat = await gate.http.post("/v1/rewrite", json={"messages": [USER]})
    assert chat.json()["verdict"] == "safe"
    assert not gate.upstream.received
    for body, param in [
        ({"prompt": 1}, "prompt"),
        ({"images": ["nope"]}, "images[0]"),
        ({"prompt": "a", "messages": [USER]}, "messages"),
        ({}, None),
    ]:
        wrong = await gate.http.post("/v1/rewrite", json=body)
        assert (wrong.status_code, error_of(wrong)["param"]) == (400, param)


async def test_another_defence_is_served() -> None:
    """One that changes the input works as the guard does; one that needs the answer is refused."""
    async with running(defence="self-reminder") as gate:
        response = await gate.chat("hello")
        assert response.status_code == 200
        assert "hello" in gate.upstream.messages[0]["content"]
        assert gate.upstream.messages[0]["content"] != "hello"
    async with running(defence="figstep-prompt") as gate:
        await gate.chat("hello")
        assert [m["role"] for m in gate.upstream.messages] == ["system", "user"]


async def test_a_body_over_the_limit() -> None:
    """413, by its declared length and by its counted one."""
    async with running(max_body_bytes=1000) as gate:
        response = await gate.chat("x" * 2000)
        assert (response.status_code, error_of(response)["code"]) == (413, "body_too_large")

        async def pieces() -> Any:
            for _ in range(30):
                yield b"x" * 100

        response = await gate.http.post("/v1/chat/completions", content=pieces())
        assert response.status_code == 413


async def test_metrics_and_health(gate: Running) -> None:
    """Numbers move, and health is told apart: the process, and whether requests can be answered."""
    await gate.chat("bad")
    told = (await gate.http.get("/metrics")).text
    assert 'vlmguard_decisions_total{action="rewrite",category="violence"' in told
    assert (await gate.http.get("/health/live")).json() == {"status": "ok"}
    ready = await gate.http.get("/health/ready")
    assert (ready.status_code, ready.json()["problems"]) == (200, {})
