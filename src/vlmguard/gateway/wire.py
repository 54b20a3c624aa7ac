"""What the endpoints take, as a schema for people and tools (``GET /openapi.json``).

Only the fields that the gateway itself reads are described; all others pass on to the target as
they are. Bodies are not validated by these models: see `vlmguard.gateway.drafts`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Url = Annotated[
    str,
    Field(
        min_length=1,
        description="A data: URL with base64, or an http(s) URL that the gateway fetches once.",
    ),
]


class _Open(BaseModel):
    """More fields are allowed, and passed on."""

    model_config = ConfigDict(extra="allow")


class TextPart(_Open):
    """Text of a message."""

    type: Literal["text"]
    text: str


class ImageUrl(_Open):
    """Where a picture is."""

    url: Url


class ImagePart(_Open):
    """A picture in a message."""

    type: Literal["image_url"]
    image_url: ImageUrl


class SystemMessage(_Open):
    """The operator's instructions; they are not judged."""

    role: Literal["system", "developer"]
    content: str | list[TextPart]


class UserMessage(_Open):
    """What the user sends: judged, and rewritten where it is risky."""

    role: Literal["user"]
    content: str | Annotated[list[TextPart | ImagePart], Field(min_length=1)]


class AssistantMessage(_Open):
    """An earlier answer, or the beginning of the next one."""

    role: Literal["assistant"]
    content: str | list[TextPart] | None = None


class ToolMessage(_Open):
    """What a tool returned; its pictures are judged."""

    role: Literal["tool"]
    content: str | Annotated[list[TextPart | ImagePart], Field(min_length=1)]


ChatMessage = SystemMessage | UserMessage | AssistantMessage | ToolMessage


class ChatRequest(_Open):
    """``POST /v1/chat/completions``."""

    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None


class CompletionRequest(_Open):
    """``POST /v1/completions``."""

    model: str | None = None
    prompt: str | Annotated[list[str], Field(min_length=1)]
    suffix: str | None = None
    stream: bool | None = None


class ResponseRequest(_Open):
    """``POST /v1/responses``. State that the target keeps is refused."""

    model: str | None = None
    input: str | Annotated[list[dict[str, Any]], Field(min_length=1)]
    instructions: str | None = None
    stream: bool | None = None


class MessagesRequest(_Open):
    """``POST /v1/messages``, Anthropic's form of a chat."""

    model: str | None = None
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    system: str | list[TextPart] | None = None
    stream: bool | None = None


class RewriteRequest(_Open):
    """``POST /v1/rewrite``: a prompt with pictures, or the messages of a chat."""

    prompt: str | None = None
    images: list[Url] | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1)] | None = None


class Report(BaseModel):
    """Why a request is risky."""

    textual: str
    visual: str
    multimodal: str


class RewriteAnswer(_Open):
    """The decision about a request."""

    id: str
    verdict: Literal["safe", "risky"]
    risk: Annotated[float, Field(ge=0, le=1)]
    category: str | None
    action: Literal["allow", "monitor", "rewrite", "refuse"]
    report: Report | None
    prompt: str
    changed: bool
    rewriter: str
    policy: str
    failure: str | None


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every error of the gateway."""

    error: ErrorDetail
