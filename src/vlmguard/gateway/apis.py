"""The endpoints that are guarded: how each is read, answered and broken off."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from vlmguard.gateway.chat_completions import read_chat
from vlmguard.gateway.completions import read_completion
from vlmguard.gateway.drafts import Draft, Json
from vlmguard.gateway.messages import read_messages
from vlmguard.gateway.render import (
    ChatRenderer,
    CompletionRenderer,
    Heading,
    MessageRenderer,
    Renderer,
    ResponseRenderer,
)
from vlmguard.gateway.responses import read_response
from vlmguard.gateway.streaming import (
    ErrorEvent,
    chat_error_event,
    message_error_event,
    response_error_event,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """One guarded endpoint.

    Attributes:
        path: of the gateway.
        read: finds the conversations in a body.
        render: writes answers of our own.
        broken: the event that ends a stream whose target went away.
        counts_on_request: the tokens of a stream are told only if ``stream_options`` asks for them.
    """

    path: str
    read: Callable[[Json, Collection[str]], Draft]
    render: Callable[[Heading], Renderer]
    broken: ErrorEvent
    counts_on_request: bool = False


APIS = (
    Api(
        path="/v1/chat/completions",
        read=read_chat,
        render=ChatRenderer,
        broken=chat_error_event,
        counts_on_request=True,
    ),
    Api(
        path="/v1/responses",
        read=read_response,
        render=ResponseRenderer,
        broken=response_error_event,
    ),
    Api(
        path="/v1/completions",
        read=read_completion,
        render=CompletionRenderer,
        broken=chat_error_event,
        counts_on_request=True,
    ),
    Api(
        path="/v1/messages",
        read=read_messages,
        render=MessageRenderer,
        broken=message_error_event,
    ),
)
