"""Answers that the gateway writes itself, in the form of each endpoint.

It writes one where the policy refuses, and where the target is a model in this process. Pure: no
input or output here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from vlmguard.types import Usage

DONE = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all pieces of an answer have in common.

    Attributes:
        id: of the request, without a prefix.
        created: seconds since 1970.
        model: as the client knows it.
        usage_wanted: tell token counts at the end of a stream.
    """

    id: str
    created: int
    model: str
    usage_wanted: bool = False


class Renderer(Protocol):
    """Writes an answer in one endpoint's form: all at once, or as server-sent events."""

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The answer as one JSON body."""
        ...

    def opening(self) -> bytes:
        """What a stream begins with."""
        ...

    def piece(self, text: str) -> bytes:
        """More text."""
        ...

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """What a stream ends with."""
        ...


class ChatRenderer:
    """``chat.completion`` and ``chat.completion.chunk``."""

    def __init__(self, heading: Heading) -> None:
        self._head = heading
        self._id = f"chatcmpl-{heading.id}"

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": finish_reason,
        }
        return orjson.dumps(self._object("chat.completion", [choice]) | {"usage": _usage(usage)})

    def opening(self) -> bytes:
        """See `Renderer`."""
        return self._chunk({"role": "assistant", "content": ""}, None)

    def piece(self, text: str) -> bytes:
        """See `Renderer`."""
        return self._chunk({"content": text}, None)

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        end = self._chunk({}, finish_reason)
        if self._head.usage_wanted:
            told = self._object("chat.completion.chunk", []) | {"usage": _usage(usage)}
            end += _event(told)
        return end + DONE

    def _chunk(self, delta: dict[str, str], finish_reason: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return _event(self._object("chat.completion.chunk", [choice]))

    def _object(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._head.created,
            "model": self._head.model,
            "choices": choices,
        }


class CompletionRenderer:
    """``text_completion``, plain and streamed."""

    def __init__(self, heading: Heading) -> None:
        self._head = heading

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        return orjson.dumps(self._object(text, finish_reason) | {"usage": _usage(usage)})

    def opening(self) -> bytes:
        """See `Renderer`."""
        return b""

    def piece(self, text: str) -> bytes:
        """See `Renderer`."""
        return _event(self._object(text, None))

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        end = _event(self._object("", finish_reason))
        if self._head.usage_wanted:
            end += _event(self._object("", None) | {"choices": [], "usage": _usage(usage)})
        return end + DONE

    def _object(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish_reason}
        return {
            "id": f"cmpl-{self._head.id}",
            "object": "text_completion",
            "created": self._head.created,
            "model": self._head.model,
            "choices": [choice],
        }


class ResponseRenderer:
    """The ``response`` object and its events."""

    def __init__(self, heading: Heading) -> None:
        self._head = heading
        self._item = f"msg_{heading.id}"
        self._number = 0
        self._text: list[str] = []

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        return orjson.dumps(self._response(text, finish_reason, usage))

    def opening(self) -> bytes:
        """See `Renderer`."""
        started = self._response("", "", None)
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return b"".join(
            [
                self._event("response.created", {"response": started}),
                self._event("response.in_progress", {"response": started}),
                self._event(
                    "response.output_item.added",
                    {"output_index": 0, "item": self._message(None, "in_progress")},
                ),
                self._event("response.content_part.added", {**place, "part": _part("")}),
            ]
        )

    def piece(self, text: str) -> bytes:
        """See `Renderer`."""
        self._text.append(text)
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        return self._event("response.output_text.delta", {**place, "delta": text, "logprobs": []})

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        text = "".join(self._text)
        place = {"item_id": self._item, "output_index": 0, "content_index": 0}
        response = self._response(text, finish_reason, usage)
        return b"".join(
            [
                self._event("response.output_text.done", {**place, "text": text, "logprobs": []}),
                self._event("response.content_part.done", {**place, "part": _part(text)}),
                self._event(
                    "response.output_item.done",
                    {"output_index": 0, "item": self._message(text, "completed")},
                ),
                self._event(f"response.{response['status']}", {"response": response}),
            ]
        )

    def _event(self, kind: str, told: dict[str, Any]) -> bytes:
        event = {"type": kind, "sequence_number": self._number, **told}
        self._number += 1
        return b"event: " + kind.encode() + b"\n" + _event(event)

    def _message(self, text: str | None, status: str) -> dict[str, Any]:
        return {
            "id": self._item,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [] if text is None else [_part(text)],
        }

    def _response(self, text: str, finish_reason: str, usage: Usage | None) -> dict[str, Any]:
        cut = finish_reason == "length"
        done = {"": "in_progress", "length": "incomplete"}.get(finish_reason, "completed")
        return {
            "id": f"resp_{self._head.id}",
            "object": "response",
            "created_at": self._head.created,
            "status": done,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": None,
            "metadata": {},
            "model": self._head.model,
            "output": [self._message(text, "completed")] if finish_reason else [],
            "parallel_tool_calls": False,
            "temperature": None,
            "tool_choice": "none",
            "tools": [],
            "top_p": None,
            "usage": None
            if usage is None
            else {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }


class MessageRenderer:
    """Anthropic's ``message`` and its events."""

    def __init__(self, heading: Heading) -> None:
        self._head = heading

    def whole(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        return orjson.dumps(
            self._message([{"type": "text", "text": text}], _stop(finish_reason), usage)
        )

    def opening(self) -> bytes:
        """See `Renderer`."""
        return _named(
            {"type": "message_start", "message": self._message([], None, Usage())}
        ) + _named(
            {
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            }
        )

    def piece(self, text: str) -> bytes:
        """See `Renderer`."""
        delta = {"type": "text_delta", "text": text}
        return _named({"type": "content_block_delta", "index": 0, "delta": delta})

    def closing(self, finish_reason: str, usage: Usage) -> bytes:
        """See `Renderer`."""
        end = {
            "type": "message_delta",
            "delta": {"stop_reason": _stop(finish_reason), "stop_sequence": None},
            "usage": {"output_tokens": usage.completion_tokens},
        }
        stop = {"type": "content_block_stop", "index": 0}
        return _named(stop) + _named(end) + _named({"type": "message_stop"})

    def _message(
        self, content: list[dict[str, str]], stop: str | None, usage: Usage
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self._head.id}",
            "type": "message",
            "role": "assistant",
            "model": self._head.model,
            "content": content,
            "stop_reason": stop,
            "stop_sequence": None,
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
            },
        }


def _event(told: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(told) + b"\n\n"


def _named(told: dict[str, Any]) -> bytes:
    return b"event: " + str(told["type"]).encode() + b"\n" + _event(told)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _stop(finish_reason: str) -> str:
    return "max_tokens" if finish_reason == "length" else "end_turn"


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
    }
