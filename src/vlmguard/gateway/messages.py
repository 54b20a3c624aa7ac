"""``POST /v1/messages``, Anthropic's form of a chat: what of a body is judged."""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

from vlmguard.gateway.chat_completions import read_texts
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

_ROUND_THE_GUARD = ("container", "prompt", "chat_template")
_SAID = frozenset({"text"})
_BESIDE_TEXT = frozenset({"tool_use", "thinking", "redacted_thinking", "server_tool_use"})


def read_messages(body: Json, allowed: Collection[str] = ()) -> Draft:
    """Find the conversation in a messages body.

    A message of the user may hold several tool results beside its own text; each tool result with
    pictures is a turn of its own.

    Raises:
        ApiError: names the field that cannot be used.
    """
    fields = refuse_fields(body, _ROUND_THE_GUARD, allowed)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise bad_field("messages", f"must be an array of messages, not {kind_of(messages)}")
    turns: list[Turn] = []
    for at, message in enumerate(messages):
        turns += _turns(message, f"messages[{at}]", allowed)
    if body.get("system") is not None:
        told = read_texts(body["system"], "system", _SAID, "a system prompt")
        turns.insert(0, Turn(role="system", text=told, holder=body, key="system"))

    def add_system(text: str) -> None:
        system = body.get("system") or []
        before = [{"type": "text", "text": system}] if isinstance(system, str) else system
        body["system"] = [{"type": "text", "text": text}, *before]

    return Draft(
        body=body,
        model=read_model(body),
        stream=read_stream(body),
        fields=fields,
        conversations=[Conversation(turns=turns, add_system=add_system)],
    )


def _turns(message: Any, where: str, allowed: Collection[str]) -> list[Turn]:
    if not isinstance(message, dict):
        raise bad_field(where, f"must be an object, not {kind_of(message)}")
    role, content, place = message.get("role"), message.get("content"), f"{where}.content"
    if role == "assistant":
        if isinstance(content, list):
            spoken = [part for part in content if _kind(part, place) not in _BESIDE_TEXT]
            text = read_texts(spoken, place, _SAID, "an answer")
        else:
            text = read_texts(content, place, _SAID, "an answer")
        return [Turn(role="assistant", text=text, holder=message, key="content")]
    if role != "user":
        raise bad_field(f"{where}.role", f"must be user or assistant, not {role!r:.40}")
    if isinstance(content, str):
        return [user_turn(Content(text=content), message, "content")]
    if not isinstance(content, list) or not content:
        raise bad_field(place, f"must be a string or an array of blocks, not {kind_of(content)}")
    return _blocks(message, content, place, allowed)


def _blocks(message: Json, content: list[Any], where: str, allowed: Collection[str]) -> list[Turn]:
    """A user's message: a turn for each result of a tool, and one for what the user said."""
    turns: list[Turn] = []
    said: list[Any] = []
    for at, block in enumerate(content):
        place = f"{where}[{at}]"
        if _kind(block, place) == "tool_result":
            returned = block.get("content") or ""
            inner = _plain_blocks(returned, f"{place}.content", allowed)
            turns.append(tool_turn(inner, block, "content"))
        else:
            said.append((place, block))
    if said or not turns:
        turns.append(user_turn(_read_blocks(said, allowed), message, "content"))
    return turns


def _plain_blocks(content: Any, where: str, allowed: Collection[str]) -> Content:
    if isinstance(content, str):
        return Content(text=content)
    if not isinstance(content, list):
        raise bad_field(where, f"must be a string or an array of blocks, not {kind_of(content)}")
    return _read_blocks([(f"{where}[{at}]", block) for at, block in enumerate(content)], allowed)


def _read_blocks(blocks: list[tuple[str, Any]], allowed: Collection[str]) -> Content:
    """What is in blocks, each with its place."""
    texts: list[str] = []
    pictures: list[Picture] = []
    unseen: list[str] = []
    for place, block in blocks:
        kind = _kind(block, place)
        if kind == "text":
            if not isinstance(block.get("text"), str):
                raise bad_field(f"{place}.text", "must be a string")
            texts.append(block["text"])
        elif kind == "image":
            pictures.append(_picture(block, place))
        elif kind in allowed:
            unseen.append(kind)
        else:
            raise uninspected(f"{place}.type", f"a block of type {kind!r:.40}")
    return Content(text="\n".join(texts), pictures=pictures, uninspected=tuple(unseen))


def _kind(block: Any, where: str) -> str:
    if not isinstance(block, dict) or not isinstance(block.get("type"), str):
        raise bad_field(where, "must hold objects with a type")
    return str(block["type"])


def _picture(block: Json, where: str) -> Picture:
    source = block.get("source")
    at = f"{where}.source"
    if not isinstance(source, dict):
        raise bad_field(at, f"must be an object, not {kind_of(source)}")
    if source.get("type") == "url":
        url = read_url(source.get("url"), f"{at}.url")
    elif source.get("type") == "base64":
        media_type, data = source.get("media_type"), source.get("data")
        if not isinstance(media_type, str) or not isinstance(data, str) or "," in media_type:
            raise bad_field(at, "needs media_type and data as strings")
        url = f"data:{media_type};base64,{data}"
    else:
        raise uninspected(f"{at}.type", f"a picture from {source.get('type')!r:.40}")

    def put(_url: str, image: Image) -> None:
        encoded = base64.b64encode(image.data).decode("ascii")
        block["source"] = {"type": "base64", "media_type": image.media_type, "data": encoded}

    return Picture(url=url, where=at, put=put)
