"""The OpenAI bodies, pure."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmguard.engines.base import Sampling
from vlmguard.engines.wire import EchoFilter, join, messages_body, read_piece, request_body
from vlmguard.errors import EngineUnavailable, InputError
from vlmguard.types import Chat, Image, Message, Usage

PICTURE = Image(data=b"\x89PNG", media_type="image/png")


def whole(message: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"message": message, "finish_reason": "stop"}], **more}


def test_messages() -> None:
    """Text stays a string; pictures come as data URLs before the text, all of them."""
    chat = Chat.of("what?", [PICTURE, PICTURE], system="be kind").then(
        Message(role="assistant", text="a cat")
    )
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw=="}}
    assert messages_body(chat) == [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": [picture, picture, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a cat"},
    ]


def test_picture_without_text() -> None:
    """A picture alone is sent without an empty text beside it."""
    [message] = messages_body(Chat.of("", [PICTURE]))
    assert [part["type"] for part in message["content"]] == ["image_url"]


def test_request_leaves_out_what_was_not_asked() -> None:
    """Servers differ in what they know: only what is asked for is sent."""
    body = request_body(Chat.of("x"), Sampling())
    assert set(body) == {"messages", "max_tokens", "temperature", "top_p"}
    body = request_body(
        Chat.of("x"),
        Sampling(seed=0, stop=("a",), top_logprobs=2, json_schema={"type": "object"}),
    )
    assert body["seed"] == 0
    assert body["stop"] == ["a"]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["response_format"]["json_schema"]["schema"] == {"type": "object"}
    assert body["response_format"]["json_schema"]["strict"] is True


@pytest.mark.parametrize("chat", [Chat(messages=()), Chat.of("\ud800")], ids=["empty", "surrogate"])
def test_what_cannot_be_sent(chat: Chat) -> None:
    """An empty conversation and broken Unicode are refused before anything is sent."""
    with pytest.raises(InputError):
        request_body(chat, Sampling())


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "yes"}, "yes"),
        ({"content": None}, ""),
        ({}, ""),
        ({"content": None, "refusal": "I cannot"}, "I cannot"),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "ab"),
        ({"content": "x", "reasoning_content": "hm", "tool_calls": None}, "x"),
    ],
)
def test_reading_a_message(message: dict[str, Any], text: str) -> None:
    """Plain text, parts, refusals and nothing at all, as different servers write them."""
    assert read_piece(whole(message), "engine").text == text


def test_reading_usage_and_logprobs() -> None:
    """Counts and alternatives arrive; what a server leaves out is zero or nothing."""
    token = {"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": -2}]}
    logprobs = {"content": [token]}
    body = {
        "model": "m",
        "choices": [{"message": {"content": "a"}, "finish_reason": "length", "logprobs": logprobs}],
        "usage": {
            "prompt_tokens": 5,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 3},
        },
    }
    piece = read_piece(body, "engine")
    assert piece.usage == Usage(prompt_tokens=5, completion_tokens=1, cached_tokens=3)
    assert piece.logprobs[0].top == (("b", -2.0),)
    assert (piece.finish_reason, piece.model) == ("length", "m")
    few = whole({}, usage={"prompt_tokens": 5, "prompt_tokens_details": None})
    assert read_piece(few, "engine").usage == Usage(prompt_tokens=5)
    assert read_piece({"choices": []}, "engine").text == ""


@pytest.mark.parametrize("body", [None, [], "text", 3, {}, {"choices": None}, {"choices": [1]}])
def test_something_else(body: object) -> None:
    """JSON that is no chat completion is told as such, with the engine and the place."""
    with pytest.raises(EngineUnavailable, match="engine sent something that is not a chat compl"):
        read_piece(body, "engine")


def test_join() -> None:
    """Pieces give one answer; an echoed prefix goes; no logprobs unless asked for."""
    pieces = [
        read_piece({"choices": [{"delta": {"content": text}}]}, "e") for text in ("{", "a", "b")
    ]
    assert join(pieces, logprobs=False, model="m", prefix="{").text == "ab"
    completion = join(pieces, logprobs=True, model="m")
    assert (completion.text, completion.logprobs, completion.finish_reason) == ("{ab", (), "stop")


@given(st.text("ab{", max_size=8), st.text("ab{", max_size=8), st.lists(st.integers(0, 16)))
def test_echo_filter_is_removeprefix(prefix: str, rest: str, cuts: list[int]) -> None:
    """However the stream is cut, the filter gives what `removeprefix` gives on the whole."""
    for text in (prefix + rest, rest):
        echo = EchoFilter(prefix)
        edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
        pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
        assert "".join(map(echo.feed, pieces)) + echo.rest() == text.removeprefix(prefix)
