"""Between our types and the bodies of the OpenAI chat-completions API.

Shared by the engines that speak it: llama.cpp in this process and every HTTP server. Pure: no
input or output here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from vlmguard.engines.base import Sampling
from vlmguard.errors import EngineUnavailable, InputError
from vlmguard.types import Chat, Completion, Message, TokenLogprob, Usage


def messages_body(chat: Chat) -> list[dict[str, Any]]:
    """The ``messages`` of a request; pictures as ``data:`` URLs before the text.

    Raises:
        InputError: no message, or text that is not valid Unicode.
    """
    if not chat.messages:
        raise InputError("the conversation is empty: give at least one message")
    return [{"role": m.role, "content": _content(m)} for m in chat.messages]


def _content(message: Message) -> str | list[dict[str, Any]]:
    try:
        message.text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text of a {message.role} message is not valid Unicode: "
            f"a lone surrogate at character {error.start}"
        ) from None
    if not message.images:
        return message.text
    parts: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": image.data_url()}} for image in message.images
    ]
    return [*parts, {"type": "text", "text": message.text}] if message.text else parts


def request_body(chat: Chat, sampling: Sampling) -> dict[str, Any]:
    """A chat-completions request without model name and streaming options.

    Raises:
        InputError: see `messages_body`.
    """
    body: dict[str, Any] = {
        "messages": messages_body(chat),
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    if sampling.top_logprobs:
        body["logprobs"] = True
        body["top_logprobs"] = sampling.top_logprobs
    if sampling.json_schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": dict(sampling.json_schema),
            },
        }
    return body


def prefix_of(chat: Chat) -> str:
    """The text that is to be continued, or nothing."""
    last = chat.messages[-1] if chat.messages else None
    return last.text if last is not None and last.role == "assistant" else ""


class _Lenient(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Alternative(_Lenient):
    token: str
    logprob: float


class _Token(_Alternative):
    top_logprobs: list[_Alternative] | None = None


class _Logprobs(_Lenient):
    content: list[_Token] | None = None


class _Part(_Lenient):
    text: str = ""


class _Message(_Lenient):
    content: str | list[_Part] | None = None
    refusal: str | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or self.refusal or ""


class _Choice(_Lenient):
    message: _Message | None = None
    delta: _Message | None = None
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _CachedTokens(_Lenient):
    cached_tokens: int | None = None


class _Usage(_Lenient):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _CachedTokens | None = None


class _Body(_Lenient):
    choices: list[_Choice]
    usage: _Usage | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What one response, or one chunk of a streamed response, adds to an answer.

    Attributes:
        text: new text; for a whole response all of it, with the prefix where the server echoes it.
        finish_reason, usage, model: where this piece tells them.
        logprobs: of the new tokens.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: Usage | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    model: str | None = None


def read_piece(body: object, source: str) -> Piece:
    """Read a response or a chunk.

    Args:
        body: decoded JSON.
        source: the engine's spec, for messages.

    Raises:
        EngineUnavailable: it is not of the chat-completions form.
    """
    try:
        read = _Body.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "body"
        raise EngineUnavailable(
            f"{source} sent something that is not a chat completion: {where}: {first['msg']}"
        ) from None
    choice = read.choices[0] if read.choices else _Choice()
    said = choice.message or choice.delta or _Message()
    tokens = (choice.logprobs and choice.logprobs.content) or []
    return Piece(
        text=said.text(),
        finish_reason=choice.finish_reason,
        usage=_usage(read.usage),
        logprobs=tuple(map(_token_logprob, tokens)),
        model=read.model,
    )


def _usage(usage: _Usage | None) -> Usage | None:
    if usage is None:
        return None
    details = usage.prompt_tokens_details
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(details and details.cached_tokens) or 0,
    )


def _token_logprob(token: _Token) -> TokenLogprob:
    top = tuple((seen.token, seen.logprob) for seen in token.top_logprobs or ())
    return TokenLogprob(token=token.token, logprob=token.logprob, top=top)


def join(pieces: Iterable[Piece], *, logprobs: bool, model: str, prefix: str = "") -> Completion:
    """Put the pieces of one answer together.

    Args:
        pieces: in order.
        logprobs: whether they were asked for.
        model: who answered.
        prefix: text that was continued; taken off where the server echoes it.
    """
    text: list[str] = []
    tokens: list[TokenLogprob] = []
    finish_reason, usage = "stop", Usage()
    for piece in pieces:
        text.append(piece.text)
        tokens += piece.logprobs
        finish_reason = piece.finish_reason or finish_reason
        usage = piece.usage or usage
    return Completion(
        text="".join(text).removeprefix(prefix),
        finish_reason=finish_reason,
        usage=usage,
        logprobs=tuple(tokens) if logprobs else None,
        model=model,
    )


@dataclass(slots=True)
class EchoFilter:
    """Takes an echoed prefix off a streamed answer, however it is cut into pieces."""

    prefix: str
    _held: str = field(default="", init=False)

    def feed(self, text: str) -> str:
        """The part of what arrived that is surely new text."""
        if not self.prefix:
            return text
        self._held += text
        if self.prefix.startswith(self._held) and self._held != self.prefix:
            return ""
        return self.rest()

    def rest(self) -> str:
        """What was held back, at the end of the answer."""
        held, prefix = self._held, self.prefix
        self._held = self.prefix = ""
        return held.removeprefix(prefix)
