"""``POST /v1/rewrite``: the decision, without asking the target."""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import orjson

from vlmguard.errors import VLMGuardError
from vlmguard.gateway.calls import Call
from vlmguard.gateway.chat_completions import read_chat
from vlmguard.gateway.drafts import (
    Conversation,
    Draft,
    Json,
    Picture,
    Turn,
    kind_of,
    read_url,
)
from vlmguard.gateway.errors import ApiError, as_api_error, bad_field
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.guarding import decide
from vlmguard.gateway.ledger import GONE, Entry, decision_headers, failure_of, public_name
from vlmguard.types import Image


class Reviewed:
    """Answers with the decision alone.

    Args:
        gateway: its parts.
    """

    path = "/v1/rewrite"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, call: Call) -> None:
        """Answer a request.

        Raises:
            ApiError: what the client is to be told.
            ClientGone: it hung up.
        """
        gateway = self._gateway
        await gateway.admit(call)
        _, body = await call.json(gateway.body_limit(call), gateway.settings.body_timeout_s)
        entry = Entry(call=call, mode="enforce")
        try:
            with call.watched():
                draft = read_review(body, gateway.settings.allow_uninspected)
                decision = await decide(draft, gateway.defence_for(call), gateway.pictures)
                entry.decision = decision
                if decision.rewrite is None:
                    why = (
                        "There is nothing to judge: all of it may pass uninspected"
                        if draft.holds_only_uninspected
                        else f"The defence {gateway.settings.defence!r} makes no decisions to show"
                    )
                    raise ApiError(400, why, code="unsupported")
                call.told += decision_headers(decision)
                await gateway.ledger.note(entry, 200)
        except VLMGuardError as error:
            told = as_api_error(error)
            entry.failure = failure_of(told)
            if told.code != "audit_failed":
                await gateway.ledger.note(entry, told.status)
            raise told from error
        except asyncio.CancelledError:
            entry.failure = "the client hung up"
            gateway.ledger.later(gateway.ledger.note(entry, GONE))
            raise
        shown = decision.rewrite.to_json(id=call.id)
        shown["rewriter"] = public_name(shown["rewriter"])
        await call.answer(200, orjson.dumps(shown))


def read_review(body: Json, allowed: Collection[str] = ()) -> Draft:
    """A body of ``/v1/rewrite``: ``prompt`` with ``images``, or the ``messages`` of a chat.

    Args:
        body: parsed JSON.
        allowed: types of parts that may stand in it though they are not judged.

    Raises:
        ApiError: names the field that cannot be used.
    """
    if body.get("messages") is not None:
        if body.get("prompt") is not None or body.get("images") is not None:
            raise bad_field("messages", "give either messages, or prompt and images")
        return read_chat({"messages": body["messages"]}, allowed)
    prompt = "" if body.get("prompt") is None else body["prompt"]
    images = [] if body.get("images") is None else body["images"]
    if not isinstance(prompt, str):
        raise bad_field("prompt", f"must be a string, not {kind_of(prompt)}")
    if not isinstance(images, list):
        raise bad_field("images", f"must be an array of URLs, not {kind_of(images)}")
    pictures = []
    for at, url in enumerate(images):
        place = f"images[{at}]"

        def put(new: str, _image: Image, at: int = at) -> None:
            images[at] = new

        pictures.append(Picture(url=read_url(url, place), where=place, put=put))
    turn = Turn(role="user", text=prompt, holder=body, key="prompt", pictures=pictures)
    return Draft(body=body, model=None, stream=False, conversations=[Conversation(turns=[turn])])
