"""The guardrail in LiteLLM's proxy as people run it: a process, a configuration, a recording model.

One proxy for all tests, since it takes long to start.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from aiohttp import web
from aiohttp.test_utils import TestServer

from tests.drawing import encode, typed_text
from tests.gateway.common import Upstream, data_url, image_part, png, text_part

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

KEY = "sk-only-for-this-test"
LITELLM = Path(sys.executable).parent / "litellm"


def risky(category: str) -> str:
    reasons = {"textual": "t", "visual": "v", "multimodal": "m"}
    return json.dumps(
        {"verdict": "risky", "category": category, **reasons, "prompt": "A safe question."}
    )


SCRIPT = {
    "bad": risky("violence"),
    "refusable": risky("privacy"),
    "*": '{"verdict": "safe"}',
}


@dataclass
class Proxy:
    """A running proxy and the model behind it."""

    url: str
    upstream: Upstream

    def post(self, path: str, guardrail: str = "closed", **body: Any) -> httpx.Response:
        self.upstream.received.clear()
        return httpx.post(
            f"{self.url}{path}",
            json={"model": "stub", "guardrails": [guardrail], **body},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        )

    def chat(self, content: Any, guardrail: str = "closed", **more: Any) -> httpx.Response:
        messages = [{"role": "user", "content": content}]
        return self.post("/v1/chat/completions", guardrail, messages=messages, **more)

    @property
    def content(self) -> Any:
        """Of the one user message that reached the model."""
        [message] = self.upstream.messages
        return message["content"]


def config(upstream: str, folder: Path) -> Path:
    """A proxy with the guard, and twice with one whose rewriter answers nothing."""
    (folder / "script.json").write_text(json.dumps(SCRIPT))
    (folder / "nothing.json").write_text("{}")
    (folder / "policy.yaml").write_text("name: test\nactions: {privacy: refuse}\nrefusal: No.\n")
    guarded = {
        "rewriter": f"zero-shot:scripted:{folder / 'script.json'}",
        "policy": str(folder / "policy.yaml"),
        "detectors": [],
    }
    broken = {"rewriter": f"zero-shot:scripted:{folder / 'nothing.json'}"}
    path = folder / "config.yaml"
    guardrails = [
        {
            "guardrail_name": name,
            "litellm_params": {
                "guardrail": "vlmguard.integrations.litellm.VLMGuard",
                "mode": "pre_call",
                "vlmguard": {**guarded, **more},
            },
        }
        for name, more in [
            ("closed", {}),
            ("broken", broken),
            ("open", {**broken, "on_failure": "open"}),
        ]
    ]
    model = {"model": "openai/stub", "api_base": upstream, "api_key": "x"}
    told = {
        "model_list": [{"model_name": "stub", "litellm_params": model}],
        "guardrails": guardrails,
        "litellm_settings": {"num_retries": 0},
    }
    path.write_text(yaml.safe_dump(told))
    return path


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MASTER_KEY": KEY,
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """The proxy, once it answers."""
    folder = tmp_path_factory.mktemp("litellm")
    upstream = Upstream()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def serve() -> TestServer:
        app = web.Application(client_max_size=2**28)
        app.router.add_route("*", "/{rest:.*}", upstream.handle)
        server = TestServer(app)
        await server.start_server()
        return server

    server = asyncio.run_coroutine_threadsafe(serve(), loop).result(20)
    path = config(str(server.make_url("/v1")), folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / "log").open("w+")
    process = subprocess.Popen(
        [LITELLM, "--config", path, "--host", "127.0.0.1", "--port", str(port)],
        env=environment(),
        stdout=log,
        stderr=log,
    )
    try:
        running = Proxy(f"http://127.0.0.1:{port}", upstream)
        deadline = time.monotonic() + 300
        while True:
            try:
                httpx.get(f"{running.url}/health/liveliness", timeout=5)
                break
            except httpx.HTTPError:
                assert process.poll() is None, (folder / "log").read_text()[-3000:]
                assert time.monotonic() < deadline, (folder / "log").read_text()[-3000:]
                time.sleep(0.5)
        yield running
        assert "Traceback" not in (folder / "log").read_text()
    finally:
        process.terminate()
        process.wait(20)
        log.close()
        asyncio.run_coroutine_threadsafe(server.close(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_harmless_request_passes(proxy: Proxy) -> None:
    """With headers that tell the decision."""
    response = proxy.chat("hello")
    assert response.status_code == 200, response.text
    assert proxy.content == "hello"
    assert response.headers["x-vlmguard-action"] == "allow"
    assert response.headers["x-vlmguard-policy"] == "test"
    assert response.headers["x-litellm-applied-guardrails"] == "closed"


def test_a_risky_request_reaches_the_model_rewritten(proxy: Proxy) -> None:
    """Plain and streamed; of a stream every piece comes through."""
    response = proxy.chat("bad")
    assert proxy.content == "A safe question."
    assert response.headers["x-vlmguard-action"] == "rewrite"
    client = openai.OpenAI(api_key=KEY, base_url=f"{proxy.url}/v1", max_retries=0)
    with client.chat.completions.create(
        model="stub",
        messages=[{"role": "user", "content": "bad"}],
        stream=True,
        extra_body={"guardrails": ["closed"]},
    ) as stream:
        text = "".join(event.choices[0].delta.content or "" for event in stream if event.choices)
    client.close()
    assert text == "Hello."
    assert proxy.content == "A safe question."


def test_pictures_are_seen_alone_several_and_in_gifs(proxy: Proxy) -> None:
    """Requests without a word, which LiteLLM's unified hook skips, are guarded as well."""
    gif = data_url(encode(typed_text("x", size=(64, 48), font_size=12), "GIF"), "image/gif")
    one, two = data_url(png("one")), data_url(png("two"))
    for parts in ([image_part(one)], [image_part(gif)], [image_part(one), image_part(two)]):
        response = proxy.chat(parts)
        assert response.status_code == 200, response.text
        assert response.headers["x-vlmguard-verdict"] == "safe"
        assert proxy.content == parts
    proxy.chat([image_part(one), text_part("bad"), image_part(two)])
    assert proxy.content == [image_part(one), text_part("A safe question."), image_part(two)]


@pytest.mark.parametrize(
    ("content", "code"),
    [
        ([image_part("data:image/png;base64,AAAA")], "invalid_image"),
        ([image_part("http://169.254.169.254/latest/meta-data")], "invalid_image"),
        ([{"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}], None),
    ],
)
def test_what_cannot_be_inspected_is_refused(
    proxy: Proxy, content: list[Any], code: str | None
) -> None:
    """Named, as a 400 in OpenAI's form; nothing reaches the model."""
    response = proxy.chat(content)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["provider_specific_fields"]["code"] == (code or "uninspected_content")
    assert error["param"].startswith("messages[0].content[0]")
    assert not proxy.upstream.received


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "refusable"}]}),
        ("/v1/completions", {"prompt": "refusable"}),
        ("/v1/responses", {"input": "refusable"}),
    ],
)
def test_a_refusal_is_an_answer(
    proxy: Proxy, path: str, body: dict[str, Any], *, stream: bool
) -> None:
    """Plain and streamed; the model is not asked."""
    response = proxy.post(path, stream=stream, **body)
    assert response.status_code == 200, response.text
    assert '"No."' in response.text
    assert not proxy.upstream.received


def test_a_failure_is_closed_and_open_by_choice(proxy: Proxy) -> None:
    """A rewriter without an answer: an error, or the original with a header that says so."""
    response = proxy.chat("bad", "broken")
    assert response.status_code == 503, response.text
    error = response.json()["error"]
    assert error["provider_specific_fields"]["code"] == "guard_failed"
    assert response.headers["retry-after"] == "1"
    assert not proxy.upstream.received
    response = proxy.chat("bad", "open")
    assert response.status_code == 200, response.text
    assert proxy.content == "bad"
    assert response.headers["x-vlmguard-failure"] == "EngineRejected"


def test_no_field_of_litellm_leads_round_the_guard(proxy: Proxy) -> None:
    """Fallbacks and extra bodies may hold other messages than those that were reviewed."""
    bad = [{"role": "user", "content": "bad"}]
    for more in (
        {"extra_body": {"messages": bad}},
        {"fallbacks": [{"model": "stub", "messages": bad}]},
    ):
        response = proxy.chat("hello", **more)
        assert response.status_code == 400, response.text
        assert not proxy.upstream.received


def test_a_wrong_setting_stops_the_proxy(tmp_path: Path) -> None:
    """LiteLLM would start without a guardrail that raises a `ValueError`."""
    path = config("http://127.0.0.1:9/v1", tmp_path)
    path.write_text(path.read_text().replace("mode: pre_call", "mode: post_call"))
    done = subprocess.run(
        [LITELLM, "--config", path, "--host", "127.0.0.1", "--port", "0"],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "the guard runs as pre_call only" in done.stdout + done.stderr
