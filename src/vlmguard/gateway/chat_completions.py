"""``POST /v1/chat/completions``: what of a body is judged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vlmguard.gateway.drafts import (
    Content,
    Conversation,
    Draft,
    Json,
    Picture,
    Turn,
    kind_of,
    read_model,
    read_stream,
    read_url,
    refuse_fields,
    tool_turn,
    user_turn,
)
from vlmguard.gateway.errors import bad_field, uninspected
from vlmguard.types import Image

# Extensions of servers that put text or pictures into the prompt beside the messages.
_ROUND_THE_GUARD = (
    "chat_template",
    "documents",
    "prompt",
    "prompt_embeds",
    "prompt_token_ids",
    "images",
    "multi_modal_data",
)
_TEXT = frozenset({"text"})
_SAID = frozenset({"text", "refusal"})  # by the assistant


def read_chat(body: Json, allowed: Collection[str] = ()) -> Draft:
    """Find the conversation in a chat-completions body.

    Args:
        body: parsed JSON; later changed in place.
        allowed: types of parts and names of fields that may pass uninspected.

    Raises:
        ApiError: names the field that cannot be used.
    """
    fields = refuse_fields(body, _ROUND_THE_GUARD, allowed)
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise bad_field("messages", f"must be an array of messages, not {kind_of(messages)}")
    if not messages:
        raise bad_field("messages", "is empty; give at least one message")
    return Draft(
        body=body,
        model=read_model(body),
        stream=read_stream(body),
        fields=fields,
        conversations=[
            Conversation(
                turns=[
                    _turn(message, f"messages[{at}]", allowed)
                    for at, message in enumerate(messages)
                ],
                add_system=lambda text: messages.insert(0, {"role": "system", "content": text}),
            )
        ],
    )


def _turn(message: Any, where: str, allowed: Collection[str]) -> Turn:
    if not isinstance(message, dict):
        raise bad_field(where, f"must be an object, not {kind_of(message)}")
    role = message.get("role")
    content = message.get("content")
    place = f"{where}.content"
    if role == "user":
        return user_turn(read_parts(content, place, allowed), message, "content")
    if role in {"system", "developer"}:
        text = read_texts(content, place, _TEXT, "a system prompt")
        return Turn(role="system", text=text, holder=message, key="content")
    if role == "assistant":
        text = "" if content is None else read_texts(content, place, _SAID, "an answer")
        return Turn(role="assistant", text=text, holder=message, key="content")
    if role in {"tool", "function"}:
        returned = Content(text="") if content is None else read_parts(content, place, allowed)
        return tool_turn(returned, message, "content")
    raise bad_field(
        f"{where}.role",
        f"must be system, developer, user, assistant, tool or function, not {role!r:.40}",
    )


def read_texts(content: Any, where: str, kinds: Collection[str], what: str) -> str:
    """The text of content that may hold nothing but text.

    Raises:
        ApiError: it holds something else.
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise bad_field(
            where, f"must be a string or an array of text parts, not {kind_of(content)}"
        )
    texts: list[str] = []
    for at, part in enumerate(content):
        place = f"{where}[{at}]"
        kind = _kind(part, place)
        if kind not in kinds:
            raise bad_field(
                f"{place}.type", f"{kind!r:.40} does not belong into {what}: only text is read here"
            )
        texts.append(_text(part, place, "refusal" if kind == "refusal" else "text"))
    return "\n".join(texts)


def read_parts(content: Any, where: str, allowed: Collection[str]) -> Content:
    """What is in a user's content.

    Raises:
        ApiError: a part that is malformed or of a kind that is not inspected.
    """
    if isinstance(content, str):
        return Content(text=content)
    if not isinstance(content, list):
        raise bad_field(where, f"must be a string or an array of parts, not {kind_of(content)}")
    if not content:
        raise bad_field(where, "is an empty array; give text, pictures, or both")
    texts: list[str] = []
    pictures: list[Picture] = []
    unseen: list[str] = []
    for at, part in enumerate(content):
        place = f"{where}[{at}]"
        kind = _kind(part, place)
        if kind in {"text", "input_text"}:
            texts.append(_text(part, place))
        elif kind in {"image_url", "input_image"}:
            pictures.append(_picture(part, place))
        elif kind in allowed:
            unseen.append(kind)
        else:
            raise uninspected(f"{place}.type", f"a part of type {kind!r:.40}")
    return Content(text="\n".join(texts), pictures=pictures, uninspected=tuple(unseen))


def _kind(part: Any, where: str) -> str:
    if not isinstance(part, dict):
        raise bad_field(where, f"must be an object with a type, not {kind_of(part)}")
    kind = part.get("type")
    if not isinstance(kind, str):
        raise bad_field(f"{where}.type", f"must be a string, not {kind_of(kind)}")
    return kind


def _text(part: Json, where: str, key: str = "text") -> str:
    text = part.get(key)
    if not isinstance(text, str):
        raise bad_field(f"{where}.{key}", f"must be a string, not {kind_of(text)}")
    return text


def _picture(part: Json, where: str) -> Picture:
    if part.get("file_id") is not None:
        raise uninspected(f"{where}.file_id", "a picture that the target has stored")
    holder = part
    key = "image_url"
    at = f"{where}.image_url"
    if isinstance(part.get("image_url"), dict):
        holder, key, at = part["image_url"], "url", f"{at}.url"

    def put(url: str, _image: Image) -> None:
        holder[key] = url

    return Picture(url=read_url(holder.get(key), at), where=at, put=put)
