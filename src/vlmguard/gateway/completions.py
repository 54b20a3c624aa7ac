"""``POST /v1/completions``: what of a body is judged."""

from __future__ import annotations

from collections.abc import Collection

from vlmguard.gateway.drafts import (
    Conversation,
    Draft,
    Json,
    Turn,
    kind_of,
    read_model,
    read_stream,
    refuse_fields,
)
from vlmguard.gateway.errors import bad_field, uninspected

_ROUND_THE_GUARD = ("prompt_embeds", "prompt_token_ids", "images", "multi_modal_data", "image_data")


def read_completion(body: Json, allowed: Collection[str] = ()) -> Draft:
    """Find the prompts in a completions body; each is judged by itself, the suffix as well.

    Raises:
        ApiError: names the field that cannot be used.
    """
    fields = refuse_fields(body, _ROUND_THE_GUARD, allowed)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        turns = [Turn(role="user", text=prompt, holder=body, key="prompt")]
    elif isinstance(prompt, list) and prompt:
        turns = []
        for at, one in enumerate(prompt):
            if isinstance(one, int | list):
                raise uninspected(f"prompt[{at}]", "a prompt of token numbers")
            if not isinstance(one, str):
                raise bad_field(f"prompt[{at}]", f"must be a string, not {kind_of(one)}")
            turns.append(Turn(role="user", text=one, holder=prompt, key=at))
    else:
        given = "an empty array" if prompt == [] else kind_of(prompt)
        raise bad_field("prompt", f"must be a string or an array of strings, not {given}")
    suffix = body.get("suffix")
    if isinstance(suffix, str) and suffix.strip():
        turns.append(Turn(role="user", text=suffix, holder=body, key="suffix"))
    elif suffix is not None and not isinstance(suffix, str):
        raise bad_field("suffix", f"must be a string, not {kind_of(suffix)}")
    return Draft(
        body=body,
        model=read_model(body),
        stream=read_stream(body),
        fields=fields,
        conversations=[Conversation(turns=[turn]) for turn in turns],
    )
