"""Bodies that nobody would write: never an error of our own, never a crash."""

from __future__ import annotations

import asyncio
import json
import queue
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

from tests.gateway.common import Running, data_url, listening, png, running
from vlmguard.gateway.wire import ChatRequest, CompletionRequest, ErrorAnswer, ResponseRequest

SLOW = (pytest.mark.slow, pytest.mark.timeout(600))
PATHS = ("/v1/chat/completions", "/v1/responses", "/v1/completions", "/v1/messages", "/v1/rewrite")

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=12)
    | st.sampled_from(
        ["user", "assistant", "tool", "system", "text", "image_url", "input_image", "bad"]
    )
    | st.sampled_from(["data:,x", data_url(png()), "http://127.0.0.1/x", "\u0000"])
    | st.sampled_from(["message", "function_call_output"])
)
NAMES = st.sampled_from(
    [
        *ChatRequest.model_fields,
        *CompletionRequest.model_fields,
        *ResponseRequest.model_fields,
        *[
            "role",
            "content",
            "type",
            "text",
            "image_url",
            "url",
            "output",
            "source",
            "data",
            "media_type",
            "images",
            "x",
        ],
    ]
)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=5),
    max_leaves=16,
)
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "image_url", "input_text", "input_image", "image", "x"])},
    optional={
        "text": LEAVES,
        "image_url": LEAVES | st.fixed_dictionaries({"url": LEAVES}),
        "source": ANYTHING,
        "content": ANYTHING,
    },
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "system", "tool", "x"])},
    optional={
        "content": LEAVES | st.lists(PART | LEAVES, max_size=3),
        "type": st.sampled_from(["message", "function_call_output", "item_reference"]),
        "output": ANYTHING,
        "name": LEAVES,
    },
)
BODY = ANYTHING | st.fixed_dictionaries(
    {},
    optional={
        "messages": st.lists(MESSAGE, max_size=4) | ANYTHING,
        "input": LEAVES | st.lists(MESSAGE, max_size=4),
        "prompt": LEAVES | st.lists(LEAVES, max_size=3),
        "images": st.lists(LEAVES, max_size=3),
        "stream": LEAVES,
        "model": LEAVES,
        "system": ANYTHING,
        "instructions": LEAVES,
        "stream_options": ANYTHING,
    },
)


def written(body: Any) -> bytes:
    """As JSON, lone surrogates included."""
    return json.dumps(body).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=SLOW)])
def test_fuzzed_bodies(count: int) -> None:
    """Bodies on every guarded endpoint: answered, or refused with a named field."""
    with asyncio.Runner() as runner:
        context = running()
        gate = runner.run(context.__aenter__())

        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        )
        @given(path=st.sampled_from(PATHS), raw=BODY.map(written) | st.binary(max_size=200))
        def send(path: str, raw: bytes) -> None:
            response = runner.run(gate.http.post(path, content=raw))
            assert response.status_code in {200, 400}, response.text
            if response.status_code == 400:
                ErrorAnswer.model_validate_json(response.content)

        try:
            send()
        finally:
            runner.run(context.__aexit__(None, None, None))


@contextmanager
def served() -> Iterator[str]:
    """The URL of a gateway in a thread of its own."""
    url: queue.SimpleQueue[str] = queue.SimpleQueue()
    done = threading.Event()

    async def run() -> None:
        async with running() as gate, listening(gate.gateway) as where:
            url.put(where)
            await asyncio.to_thread(done.wait)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    try:
        yield url.get(timeout=10)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    ("count", "paths"), [(3, "/v1/(completions|rewrite)"), pytest.param(50, ".*", marks=SLOW)]
)
def test_the_openapi_description_holds(count: int, paths: str) -> None:
    """Schemathesis: answers are as described, and what does not fit the schema is refused."""
    with served() as url:
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        for operation in schema.get_all_operations():
            found: Any = operation.ok()  # type: ignore[union-attr]  # an error would raise
            if not re.fullmatch(paths, found.path):
                continue
            _check(found, schemathesis.GenerationMode.POSITIVE, count)
            if found.body:
                _check(found, schemathesis.GenerationMode.NEGATIVE, count)


def _check(operation: Any, mode: schemathesis.GenerationMode, count: int) -> None:
    @settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        # What fits the schema may still be refused: an undecodable picture, nothing to answer.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    send()


async def test_the_description_names_every_route(gate: Running) -> None:
    """What is documented is served."""
    told = (await gate.http.get("/openapi.json")).json()
    assert told["openapi"].startswith("3.1")
    for path, methods in told["paths"].items():
        for method in methods:
            response = await gate.http.request(method, path)
            assert response.status_code != 404, path
