"""A target in this process: an engine behind the endpoints of the gateway."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from vlmguard.defences import sighted_target
from vlmguard.engines import Engine, Sampling
from vlmguard.errors import VLMGuardError
from vlmguard.gateway.calls import EVENTS, Call
from vlmguard.gateway.drafts import Draft, Json, kind_of
from vlmguard.gateway.errors import ApiError, as_api_error, bad_field
from vlmguard.gateway.render import Renderer
from vlmguard.gateway.streaming import ErrorEvent, Ready, report_comment, with_report
from vlmguard.perception import Perceiver
from vlmguard.types import Chat, Delta, Usage

_log = logging.getLogger(__name__)
_DEFAULT_TOKENS = 1024
_CANNOT = (
    "tools",
    "functions",
    "logprobs",
    "top_logprobs",
    "audio",
    "modalities",
    "echo",
    "best_of",
    "suffix",
    "background",
)


class InProcess:
    """An engine as the target.

    Args:
        engine: a model in this process.
        perceiver: describes pictures to an engine that cannot see.
    """

    def __init__(self, engine: Engine, perceiver: Perceiver) -> None:
        self.engine = engine
        self.model = engine.spec.partition("?")[0]
        self.name = engine.spec
        self._perceiver = perceiver

    async def answer(
        self,
        call: Call,
        draft: Draft,
        chat: Chat,
        renderer: Renderer,
        *,
        broken: ErrorEvent,
        ready: Ready,
        report: Json | None = None,
    ) -> Usage:
        """Generate an answer and send it in the endpoint's form.

        Args:
            call: to answer.
            draft: how it is to be generated.
            chat: the conversation as the target is to receive it.
            renderer: of the endpoint.
            broken: the event that ends a stream whose engine failed.
            ready: called before the first byte.
            report: to add to the answer.

        Returns:
            The tokens of the answer.

        Raises:
            VLMGuardError: the engine cannot do what is asked, or failed before the first token.
        """
        if draft.uninspected:
            raise ApiError(
                400,
                f"the embedded target takes text and pictures, not {', '.join(draft.uninspected)}",
                code="unsupported",
            )
        sampling = read_sampling(draft.body)
        engine = self.engine
        if chat.images:
            engine, _ = sighted_target(engine, self._perceiver)
        if not draft.stream:
            done = await engine.generate(chat, sampling)
            await ready(done.usage)
            data = renderer.whole(done.text, done.finish_reason, done.usage)
            await call.answer(200, data if report is None else with_report(data, report))
            return done.usage
        deltas = engine.stream(chat, sampling)
        assert isinstance(deltas, AsyncGenerator)  # all engines yield
        async with aclosing(deltas):
            first = await anext(deltas)
            await ready(Usage())
            await call.start(200, [(b"content-type", EVENTS)])
            await call.more(renderer.opening())
            last = b"" if report is None else report_comment(report)
            try:
                return await self._rest(call, first, deltas, renderer, last)
            except VLMGuardError as error:
                _log.warning("the target failed in the middle of a stream: %s", error)
                await call.end(broken(as_api_error(error)))
                return Usage()

    async def _rest(
        self,
        call: Call,
        first: Delta,
        deltas: AsyncGenerator[Delta],
        renderer: Renderer,
        last: bytes,
    ) -> Usage:
        finish_reason, usage = first.finish_reason, first.usage
        if first.text:
            await call.more(renderer.piece(first.text))
        async for delta in deltas:
            finish_reason = delta.finish_reason or finish_reason
            usage = delta.usage or usage
            if delta.text:
                await call.more(renderer.piece(delta.text))
        await call.end(renderer.closing(finish_reason or "stop", usage or Usage()) + last)
        return usage or Usage()

    def models(self) -> Json:
        """The body of ``GET /v1/models``."""
        return {"object": "list", "data": [self.model_entry()]}

    def model_entry(self) -> Json:
        """The body of ``GET /v1/models/{id}``."""
        return {"id": self.model, "object": "model", "created": _STARTED, "owned_by": "vlmguard"}


_STARTED = int(time.time())


def read_sampling(body: Json) -> Sampling:
    """How a body wants its answer generated.

    Raises:
        ApiError: a field of the wrong type, or one that an engine here cannot obey.
    """
    for name in _CANNOT:
        if body.get(name) not in (None, False, 0, [], ["text"]):
            raise bad_field(
                name, "the embedded target cannot do that; leave it out", code="unsupported"
            )
    if (body.get("n") or 1) != 1:
        raise bad_field("n", "the embedded target gives one answer", code="unsupported")
    stop = body.get("stop") or body.get("stop_sequences") or ()
    stops = (stop,) if isinstance(stop, str) else tuple(stop) if isinstance(stop, list) else ()
    if not all(isinstance(one, str) for one in stops):
        raise bad_field("stop", "must be a string or an array of strings")
    seed = body.get("seed")
    if seed is not None and not isinstance(seed, int):
        raise bad_field("seed", f"must be an integer, not {kind_of(seed)}")
    return Sampling(
        max_tokens=_tokens(body),
        temperature=_number(body, "temperature", 1.0, most=2.0),
        top_p=_number(body, "top_p", 1.0, most=1.0),
        seed=seed,
        stop=stops,
        json_schema=_schema(body),
    )


def _tokens(body: Json) -> int:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = body.get(name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise bad_field(name, "must be an integer of at least 1")
        return min(value, 1_000_000)
    return _DEFAULT_TOKENS


def _number(body: Json, name: str, default: float, *, most: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
        raise bad_field(name, f"must be a number from 0 to {most:g}")
    return float(value)


def _schema(body: Json) -> dict[str, Any] | None:
    """The JSON schema of ``response_format``, or of ``text.format`` in a responses body."""
    wanted = body.get("response_format")
    place = "response_format"
    if wanted is None and isinstance(body.get("text"), dict):
        wanted, place = body["text"].get("format"), "text.format"
    if wanted is None:
        return None
    if not isinstance(wanted, dict):
        raise bad_field(place, f"must be an object, not {kind_of(wanted)}")
    kind = wanted.get("type")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    inner = wanted.get("json_schema", wanted)
    schema = inner.get("schema") if isinstance(inner, dict) else None
    if kind != "json_schema" or not isinstance(schema, dict):
        raise bad_field(place, "must be text, json_object, or json_schema with a schema")
    return schema


def one_chat(chats: list[Chat]) -> Chat:
    """The only conversation of a request.

    Raises:
        ApiError: there are several.
    """
    if len(chats) != 1:
        raise ApiError(
            400, "prompt: the embedded target takes one prompt a request", code="unsupported"
        )
    return chats[0]
