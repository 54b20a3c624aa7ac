"""A request body as conversations to judge, with the places where a decision is written back.

Bodies are walked as parsed JSON and not validated as a whole: unknown fields stay as they are, and
only what a model would read of the user's is looked at, strictly. What is not understood is refused
by name, since whatever passes unread goes round the guard.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmguard.gateway.errors import ApiError, bad_field, uninspected
from vlmguard.types import Chat, Image, Message, Role

Json = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class Picture:
    """A picture in a body.

    Attributes:
        url: a ``data:`` or http(s) URL, as the client wrote it.
        where: its place, for messages, e.g. ``messages[0].content[1]``.
        put: writes the inspected picture back in place of ``url``: its ``data:`` URL and itself.
    """

    url: str
    where: str
    put: Callable[[str, Image], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a message holds.

    Attributes:
        text: all of its text.
        pictures: in order.
        uninspected: types of the parts that nobody looks into, as the operator allowed.
    """

    text: str
    pictures: list[Picture] = field(default_factory=list)
    uninspected: tuple[str, ...] = ()

    @property
    def can_be_judged(self) -> bool:
        """Whether there is anything to look at, or nothing at all, which is an error to tell."""
        return bool(self.text.strip() or self.pictures or not self.uninspected)


@dataclass(slots=True, kw_only=True)
class Turn:
    """One message of a conversation, and where it stands in the body.

    Attributes:
        role: as the guard sees it: what it judges has the role ``user``.
        text: all of its text.
        holder, key: ``holder[key]`` is the content: a string, or a list of parts.
        pictures: in order.
        text_type: the ``type`` of a text part, where one has to be added.
        uninspected: see `Content`.
    """

    role: Role
    text: str
    holder: Any
    key: Any
    pictures: list[Picture] = field(default_factory=list)
    text_type: str = "text"
    uninspected: tuple[str, ...] = ()

    def replace(self, text: str) -> None:
        """Put another text in place of this turn's; its pictures stay where they are."""
        content = self.holder[self.key]
        if not isinstance(content, list):
            self.holder[self.key] = text
            return
        kept: list[Any] = []
        placed = False
        for part in content:
            if not (isinstance(part, dict) and isinstance(part.get("text"), str)):
                kept.append(part)
            elif not placed:
                kept.append({**part, "text": text})
                placed = True
        if not placed:
            kept.append({"type": self.text_type, "text": text})
        self.holder[self.key] = kept

    def withhold(self, text: str) -> None:
        """Put a text in place of the whole content, pictures included."""
        content = self.holder[self.key]
        if not isinstance(content, list):
            self.holder[self.key] = text
            return
        # The results of tools in Anthropic's messages are turns of their own.
        results = [part for part in content if part.get("type") == "tool_result"]
        self.holder[self.key] = [*results, {"type": self.text_type, "text": text}]


@dataclass(slots=True, kw_only=True)
class Conversation:
    """Turns that are judged together, oldest first.

    Attributes:
        turns: one for each message of the chat.
        add_system: puts a system prompt before all, for defences that add one.
    """

    turns: list[Turn]
    add_system: Callable[[str], None] | None = None

    def chat(self, images: dict[int, Image]) -> Chat:
        """The conversation as the guard sees it.

        Args:
            images: ``id`` of a `Picture` → the loaded picture.
        """
        return Chat(
            messages=tuple(
                Message(
                    role=turn.role,
                    text=turn.text,
                    images=tuple([images[id(picture)] for picture in turn.pictures]),
                )
                for turn in self.turns
            )
        )

    def apply(self, before: Chat, after: Chat) -> None:
        """Write back what a defence changed; everything else stays as the client wrote it.

        Raises:
            ApiError: the defence changed the conversation in a way that this body cannot carry.
        """
        messages = list(after.messages)
        added = len(messages) - len(before.messages)
        if added > 0 and self.add_system is not None:
            for message in reversed(messages[:added]):
                if message.role != "system" or message.images:
                    raise _cannot_carry()
                self.add_system(message.text)
            messages = messages[added:]
        if len(messages) != len(before.messages):
            raise _cannot_carry()
        for turn, old, new in zip(self.turns, before.messages, messages, strict=True):
            if new is old:
                continue
            if new.images != old.images:
                if new.images:
                    raise _cannot_carry()
                turn.withhold(new.text)
            elif new.text != old.text:
                turn.replace(new.text)


@dataclass(slots=True, kw_only=True)
class Draft:
    """A request on its way to the target.

    Attributes:
        body: the parsed body; what `Turn` writes lands here.
        conversations: usually one; a completions request has one a prompt.
        model: as the client named it.
        stream: the client wants server-sent events.
        fields: that nobody looks into, as the operator allowed.
    """

    body: Json
    conversations: list[Conversation]
    model: str | None
    stream: bool
    fields: tuple[str, ...] = ()

    @property
    def uninspected(self) -> tuple[str, ...]:
        """Fields, and types of parts, that pass though nobody looks into them."""
        parts = {
            kind
            for conversation in self.conversations
            for turn in conversation.turns
            for kind in turn.uninspected
        }
        return tuple(sorted(parts | set(self.fields)))

    @property
    def holds_only_uninspected(self) -> bool:
        """Whether there is nothing to judge, since all that users sent passes unseen."""
        turns = [turn for conversation in self.conversations for turn in conversation.turns]
        return any(turn.uninspected for turn in turns) and all(
            turn.role != "user" for turn in turns
        )

    @property
    def pictures(self) -> list[Picture]:
        """All pictures, in order."""
        return [
            picture
            for conversation in self.conversations
            for turn in conversation.turns
            for picture in turn.pictures
        ]


def _cannot_carry() -> ApiError:
    return ApiError(
        500,
        "The configured defence changes the conversation in a way that this endpoint cannot carry",
        code="misconfigured",
    )


def read_model(body: Json) -> str | None:
    """The ``model`` of a body.

    Raises:
        ApiError: it is not a string.
    """
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad_field("model", f"must be a string, not {kind_of(model)}")
    return model


def read_stream(body: Json) -> bool:
    """The ``stream`` of a body.

    Raises:
        ApiError: it is not a boolean.
    """
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_field("stream", f"must be true or false, not {kind_of(stream)}")
    return bool(stream)


def refuse_fields(body: Json, fields: Sequence[str], allowed: Collection[str]) -> tuple[str, ...]:
    """Refuse fields that carry content past the guard.

    Returns:
        Those that are there, and allowed.

    Raises:
        ApiError: names the first one that is not.
    """
    given = tuple([name for name in fields if body.get(name) is not None])
    for name in given:
        if name not in allowed:
            raise uninspected(name, f"the field {name!r}")
    return given


def user_turn(content: Content, holder: Any, key: Any, *, text_type: str = "text") -> Turn:
    """What a user said: judged, unless all of it passes unseen."""
    return Turn(
        role="user" if content.can_be_judged else "assistant",
        text=content.text,
        holder=holder,
        key=key,
        pictures=content.pictures,
        text_type=text_type,
        uninspected=content.uninspected,
    )


def tool_turn(content: Content, holder: Any, key: Any, *, text_type: str = "text") -> Turn:
    """What a tool returned: context for the judge, and judged itself when it holds pictures."""
    return Turn(
        role="user" if content.pictures else "assistant",
        text=content.text,
        holder=holder,
        key=key,
        pictures=content.pictures,
        text_type=text_type,
        uninspected=content.uninspected,
    )


def read_url(value: Any, where: str) -> str:
    """The URL of a picture.

    Raises:
        ApiError: it is not a string, or empty.
    """
    if not isinstance(value, str):
        raise bad_field(where, f"must be a URL as a string, not {kind_of(value)}")
    if not value.strip():
        raise bad_field(where, "is empty; give a data: or http(s) URL")
    return value


def kind_of(value: Any) -> str:
    """The JSON name of a value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return (
        "a string"
        if isinstance(value, str)
        else "an array"
        if isinstance(value, list)
        else "an object"
    )
