"""The guarded endpoints: decide, then refuse, forward or generate."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from vlmguard.errors import VLMGuardError
from vlmguard.gateway.apis import Api
from vlmguard.gateway.calls import Call
from vlmguard.gateway.drafts import Draft, Json
from vlmguard.gateway.errors import ApiError, as_api_error
from vlmguard.gateway.gateway import Gateway
from vlmguard.gateway.guarding import Decision, decide
from vlmguard.gateway.inprocess import InProcess, one_chat
from vlmguard.gateway.ledger import GONE, Entry, decision_headers, failure_of, report_of
from vlmguard.gateway.refusing import heading_of, refuse
from vlmguard.gateway.streaming import Ready, ask_for_usage, relay
from vlmguard.gateway.upstream import Upstream
from vlmguard.types import Chat, Usage

_MOST_WAITING = 512
"""Shadow decisions under way at once; more are left out, and the audit log says so."""


class Guarded:
    """Answers one of the guarded endpoints.

    Args:
        gateway: its parts.
        api: the endpoint.
    """

    def __init__(self, gateway: Gateway, api: Api) -> None:
        self._gateway = gateway
        self._api = api
        self._path = api.path.removeprefix("/v1")

    async def __call__(self, call: Call) -> None:
        """Answer a request.

        Raises:
            ApiError: what the client is to be told.
            ClientGone: it hung up.
        """
        gateway = self._gateway
        await gateway.admit(call)
        limit = gateway.body_limit(call)
        raw, body = await call.json(limit, gateway.settings.body_timeout_s)
        entry = Entry(call=call, mode=gateway.mode_for(call), streamed=body.get("stream") is True)
        try:
            with call.watched():
                if entry.mode == "enforce":
                    await self._enforce(entry, raw, body)
                else:
                    await self._observe(entry, raw, body)
        except VLMGuardError as error:
            told = as_api_error(error)
            entry.failure = entry.failure or failure_of(told)
            if told.code != "audit_failed":
                await gateway.ledger.note(entry, told.status)
            raise told from error
        except asyncio.CancelledError:
            entry.failure = entry.failure or "the client hung up"
            gateway.ledger.later(gateway.ledger.note(entry, GONE))
            raise
        except Exception:
            entry.failure = entry.failure or "internal_error"
            await gateway.ledger.note(entry, 500)
            raise

    async def _enforce(self, entry: Entry, raw: bytes, body: Json) -> None:
        """Decide, then carry the decision out."""
        gateway, call = self._gateway, entry.call
        draft = self._api.read(body, gateway.settings.allow_uninspected)
        self._name_model(draft)
        entry.model = draft.model or gateway.target.model
        defence = gateway.defence_for(call)
        with gateway.tracing.step("guard"):
            decision = await decide(draft, defence, gateway.pictures)
        entry.decision = decision
        call.told += decision_headers(decision)
        if gateway.settings.shadow_policy is not None:
            entry.shadow = self._shadow(raw, gateway.settings.shadow_policy)
        report = report_of(decision, call) if self._wants_report(call) else None
        if decision.refusal is not None:
            await gateway.ledger.note(entry, 200)
            model = gateway.target.model
            await refuse(call, self._api, draft, decision.refusal, model=model, report=report)
        elif isinstance(gateway.target, Upstream):
            hide = self._count_stream(draft.body)
            await self._forward(
                entry, gateway.target, orjson.dumps(draft.body), report, hide_usage=hide
            )
        else:
            await self._generate(entry, gateway.target, draft, list(decision.chats), report)

    async def _observe(self, entry: Entry, raw: bytes, body: Json) -> None:
        """Pass the request on as it is; in shadow mode, decide beside it."""
        gateway, call = self._gateway, entry.call
        call.told.append((b"x-vlmguard-mode", entry.mode.encode()))
        model = body.get("model")
        entry.model = model if isinstance(model, str) else gateway.target.model
        if entry.mode == "shadow":
            source = (call.key.policy if call.key else None) or gateway.settings.policy
            entry.shadow = self._shadow(raw, source)
        if isinstance(gateway.target, Upstream):
            hide, name = self._count_stream(body), self._must_name(body)
            if name:
                body["model"] = self._target_model(body)
            if hide or name:
                raw = orjson.dumps(body)
            await self._forward(entry, gateway.target, raw, None, hide_usage=hide)
            return
        draft = self._api.read(body, gateway.settings.allow_uninspected)
        images = await gateway.pictures.load(draft.pictures, most=16)
        chats = [conversation.chat(images) for conversation in draft.conversations]
        await self._generate(entry, gateway.target, draft, chats, None)

    async def _forward(
        self,
        entry: Entry,
        target: Upstream,
        data: bytes,
        report: dict[str, Any] | None,
        *,
        hide_usage: bool,
    ) -> None:
        gateway, call = self._gateway, entry.call
        start = time.perf_counter()
        with gateway.tracing.step("target"):
            gateway.tracing.carry(call.trace)
            query: bytes = call.scope["query_string"]
            response = await target.send(call, self._path, data, query=query)
        gateway.metrics.step("upstream_first_byte", time.perf_counter() - start)
        try:
            usage = await relay(
                call,
                response,
                broken=self._api.broken,
                ready=self._ready(entry, response.status),
                report=report,
                hide_usage=hide_usage,
            )
            gateway.ledger.finish(entry, usage)
        finally:
            response.close()  # a response that was read has given its connection back already

    async def _generate(
        self,
        entry: Entry,
        target: InProcess,
        draft: Draft,
        chats: list[Chat],
        report: dict[str, Any] | None,
    ) -> None:
        call = entry.call
        usage = await target.answer(
            call,
            draft,
            one_chat(chats),
            self._api.render(heading_of(call, draft, model=target.model)),
            broken=self._api.broken,
            ready=self._ready(entry, 200),
            report=report,
        )
        self._gateway.ledger.finish(entry, usage)

    def _ready(self, entry: Entry, status: int) -> Ready:
        """Notes the request once its answer is about to begin."""

        async def note(usage: Usage) -> None:
            entry.usage = usage
            await self._gateway.ledger.note(entry, status)

        return note

    def _shadow(self, raw: bytes, source: str) -> asyncio.Task[Decision]:
        """A decision on a copy of the body, beside the request."""
        gateway = self._gateway

        async def judge() -> Decision:
            if gateway.ledger.waiting > _MOST_WAITING:
                raise ApiError(503, "too many shadow decisions at once", code="shadow_skipped")
            draft = self._api.read(orjson.loads(raw), gateway.settings.allow_uninspected)
            return await decide(draft, gateway.policies.get(source), gateway.pictures)

        return asyncio.ensure_future(judge())

    def _count_stream(self, body: Json) -> bool:
        """Ask for a stream's tokens where the operator wants them; whether to hide the answer."""
        wanted = self._gateway.settings.stream_usage and self._api.counts_on_request
        return wanted and ask_for_usage(body)

    def _wants_report(self, call: Call) -> bool:
        asked = call.headers.get(b"x-vlmguard-report", b"").lower()
        return asked == b"true" or (self._gateway.settings.report and asked != b"false")

    def _name_model(self, draft: Draft) -> None:
        """The model's name as the target knows it, where the client's is not that."""
        if isinstance(self._gateway.target, Upstream) and self._must_name(draft.body):
            draft.body["model"] = self._target_model(draft.body)

    def _must_name(self, body: Json) -> bool:
        settings, model = self._gateway.settings, body.get("model")
        return settings.force_model or not model or str(model) in settings.model_names

    def _target_model(self, body: Json) -> str:
        settings, own = self._gateway.settings, self._gateway.target.model
        if settings.force_model:
            return own
        return settings.model_names.get(str(body.get("model")), own)
