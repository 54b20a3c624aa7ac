"""The policy's answer in place of the target's, in the form of each endpoint."""

from __future__ import annotations

from typing import Any

from vlmguard.gateway.apis import Api
from vlmguard.gateway.calls import EVENTS, Call
from vlmguard.gateway.drafts import Draft
from vlmguard.gateway.render import Heading
from vlmguard.gateway.streaming import report_comment, with_report
from vlmguard.types import Usage


def heading_of(call: Call, draft: Draft, *, model: str) -> Heading:
    """What all pieces of an answer of our own have in common.

    Args:
        call: the request.
        draft: its body.
        model: to name where the client named none.
    """
    options = draft.body.get("stream_options")
    return Heading(
        id=call.id,
        created=int(call.came.timestamp()),
        model=draft.model or model,
        usage_wanted=isinstance(options, dict) and options.get("include_usage") is True,
    )


async def refuse(
    call: Call,
    api: Api,
    draft: Draft,
    text: str,
    *,
    model: str = "",
    report: dict[str, Any] | None = None,
) -> None:
    """Answer with a text as if the model had said it, plain or streamed as the client asked.

    Args:
        call: the request.
        api: the endpoint.
        draft: its body.
        text: the policy's.
        model: to name where the client named none.
        report: to add to the answer.
    """
    renderer = api.render(heading_of(call, draft, model=model))
    if not draft.stream:
        data = renderer.whole(text, "stop", Usage())
        await call.answer(200, data if report is None else with_report(data, report))
        return
    events = renderer.opening() + renderer.piece(text) + renderer.closing("stop", Usage())
    await call.start(200, [(b"content-type", EVENTS)])
    await call.end(events + (b"" if report is None else report_comment(report)))
