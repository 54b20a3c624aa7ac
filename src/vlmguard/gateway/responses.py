"""``POST /v1/responses``: what of a body is judged."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vlmguard.gateway.chat_completions import read_parts, read_texts
from vlmguard.gateway.drafts import (
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
from vlmguard.gateway.errors import ApiError, bad_field, uninspected
from vlmguard.types import Image

_STATE = ("previous_response_id", "conversation")
_ROUND_THE_GUARD = ("prompt", "prompt_embeds", "chat_template")
_INSTRUCTED = frozenset({"input_text", "text"})
_SAID = frozenset({"output_text", "refusal", "input_text", "text"})
_OUTPUTS = frozenset({"function_call_output", "custom_tool_call_output"})
# Items that the model itself wrote, without pictures.
_WRITTEN_BY_THE_MODEL = frozenset(
    {
        "reasoning",
        "function_call",
        "custom_tool_call",
        "computer_call",
        "file_search_call",
        "web_search_call",
        "code_interpreter_call",
        "local_shell_call",
        "mcp_call",
        "mcp_list_tools",
        "mcp_approval_request",
    }
)


def read_response(body: Json, allowed: Collection[str] = ()) -> Draft:
    """Find the conversation in a responses body.

    Raises:
        ApiError: names the field that cannot be used; so for state that the target keeps.
    """
    for name in _STATE:
        if body.get(name) is not None:
            raise ApiError(
                400,
                f"{name}: a conversation that the target keeps cannot be reviewed here, so it is "
                "not continued. Send the earlier turns in input instead",
                code="unsupported_state",
                param=name,
            )
    fields = refuse_fields(body, _ROUND_THE_GUARD, allowed)
    given = body.get("input")
    if isinstance(given, str):
        turns = [Turn(role="user", text=given, holder=body, key="input")]
    elif isinstance(given, list) and given:
        turns = [
            turn
            for at, item in enumerate(given)
            if (turn := _turn(item, f"input[{at}]", allowed)) is not None
        ]
    else:
        what = "an empty array" if given == [] else kind_of(given)
        raise bad_field("input", f"must be a string or an array of items, not {what}")

    instructions = body.get("instructions")
    if isinstance(instructions, str):
        turns.insert(0, Turn(role="system", text=instructions, holder=body, key="instructions"))
    elif instructions is not None:
        raise bad_field("instructions", f"must be a string, not {kind_of(instructions)}")

    def add_system(text: str) -> None:
        body["instructions"] = "\n\n".join(filter(None, [text, body.get("instructions")]))

    return Draft(
        body=body,
        model=read_model(body),
        stream=read_stream(body),
        fields=fields,
        conversations=[Conversation(turns=turns, add_system=add_system)],
    )


def _turn(item: Any, where: str, allowed: Collection[str]) -> Turn | None:
    if not isinstance(item, dict):
        raise bad_field(where, f"must be an object, not {kind_of(item)}")
    kind = item.get("type", "message")
    if not isinstance(kind, str):
        raise bad_field(f"{where}.type", f"must be a string, not {kind_of(kind)}")
    if kind == "message":
        return _message(item, where, allowed)
    if kind in _OUTPUTS:
        returned = read_parts(item.get("output"), f"{where}.output", allowed)
        return tool_turn(returned, item, "output", text_type="input_text")
    if kind == "computer_call_output":
        return _screenshot(item, where)
    if kind in _WRITTEN_BY_THE_MODEL:
        return None
    if kind == "item_reference" or kind not in allowed:
        raise uninspected(f"{where}.type", f"an item of type {kind!r:.40}")
    return Turn(role="assistant", text="", holder=item, key="content", uninspected=(kind,))


def _message(item: Json, where: str, allowed: Collection[str]) -> Turn:
    role = item.get("role")
    content = item.get("content")
    place = f"{where}.content"
    if role == "user":
        said = read_parts(content, place, allowed)
        return user_turn(said, item, "content", text_type="input_text")
    if role in {"system", "developer"}:
        text = read_texts(content, place, _INSTRUCTED, "a system prompt")
        return Turn(role="system", text=text, holder=item, key="content")
    if role == "assistant":
        text = read_texts(content, place, _SAID, "an answer")
        return Turn(role="assistant", text=text, holder=item, key="content")
    raise bad_field(
        f"{where}.role", f"must be user, assistant, system or developer, not {role!r:.40}"
    )


def _screenshot(item: Json, where: str) -> Turn:
    """A picture of a screen, from a computer-use tool. A new text has no place there."""
    output = item.get("output")
    if not isinstance(output, dict):
        raise bad_field(f"{where}.output", f"must be an object, not {kind_of(output)}")
    if output.get("file_id") is not None:
        raise uninspected(f"{where}.output.file_id", "a picture that the target has stored")
    url = read_url(output.get("image_url"), f"{where}.output.image_url")

    def put(url: str, _image: Image) -> None:
        output["image_url"] = url

    picture = Picture(url=url, where=f"{where}.output.image_url", put=put)
    return _Screenshot(role="user", text="", holder=item, key="output", pictures=[picture])


class _Screenshot(Turn):
    def replace(self, text: str) -> None:
        raise ApiError(
            400,
            f"The guard would add this to the screenshot, which cannot carry text: {text:.500}",
            code="cannot_carry_rewrite",
        )

    withhold = replace
