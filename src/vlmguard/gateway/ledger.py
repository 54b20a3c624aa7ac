"""What is noted about each guarded request: response headers, the audit record, the numbers."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from dataclasses import dataclass, field
from typing import Any

from vlmguard.errors import AuditError, VLMGuardError
from vlmguard.gateway.audit import AuditLog, AuditRecord, LateUsage
from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError
from vlmguard.gateway.guarding import Decision
from vlmguard.gateway.metrics import Metrics
from vlmguard.gateway.modes import Mode
from vlmguard.types import Usage

_log = logging.getLogger(__name__)
GONE = 499
"""Status of a request whose client hung up, as nginx writes it."""
_LONGEST = 200  # characters of a header


@dataclass(slots=True, kw_only=True)
class Entry:
    """What is known so far about one request.

    Attributes:
        call: the request.
        mode: whether the decision is carried out.
        model: as the client named it.
        streamed: the answer is streamed.
        decision: once there is one.
        failure: why there is none.
        shadow: the decision that is only noted, when there is to be one.
        usage: tokens of the target, once they are known.
        noted: `Ledger.note` was called.
        recorded: its record is on the way into the audit log, with what was known then.
    """

    call: Call
    mode: Mode
    model: str = ""
    streamed: bool = False
    decision: Decision | None = None
    failure: str | None = None
    shadow: asyncio.Task[Decision] | None = None
    usage: Usage = field(default_factory=Usage)
    noted: bool = False
    recorded: bool = False


class Ledger:
    """Writes entries, each once.

    Args:
        audit: ``None`` keeps no audit log.
        metrics: the gateway's numbers.
    """

    def __init__(self, audit: AuditLog | None, metrics: Metrics) -> None:
        self._audit = audit
        self._metrics = metrics
        self._late: set[asyncio.Task[None]] = set()

    async def note(self, entry: Entry, status: int) -> None:
        """Note a request; returns when its record is committed.

        One with a shadow decision is noted once that is made, without waiting for it.

        Args:
            entry: what is known.
            status: of the response.

        Raises:
            ApiError: the record cannot be written, and the operator wants requests to fail then.
        """
        if entry.noted:
            return
        entry.noted = True
        if entry.shadow is not None:
            self.later(self._note_late(entry, status))
            return
        await self._write(entry, status, None)

    def finish(self, entry: Entry, usage: Usage) -> None:
        """Note the tokens of an answer that has ended; its record may have been committed before.

        Args:
            entry: was noted.
            usage: as the target counted; nothing where it did not.
        """
        self._metrics.tokens("target", usage)
        if usage == entry.usage:
            return
        entry.usage = usage
        if entry.recorded and self._audit is not None:
            self.later(self._add_usage(self._audit, entry.call.id, usage))

    def later(self, work: Any) -> None:
        """Do something beside the request; `aclose` waits for it."""
        task = asyncio.ensure_future(work)
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    @property
    def waiting(self) -> int:
        """Records and decisions that are still to come."""
        return len(self._late)

    async def aclose(self, wait_s: float = 10.0) -> None:
        """Wait for what is under way, then close the log."""
        if self._late:
            await asyncio.wait(self._late, timeout=wait_s)
        if self._audit is not None:
            await self._audit.aclose()

    async def _note_late(self, entry: Entry, status: int) -> None:
        assert entry.shadow is not None
        shadow: Decision | None = None
        try:
            shadow = await entry.shadow
        except VLMGuardError as error:
            self._metrics.failure("shadow", error)
            entry.failure = entry.failure or _reason(error)
        try:
            await self._write(entry, status, shadow)
        except ApiError:
            _log.exception("a request with a shadow decision is missing in the audit log")

    async def _add_usage(self, audit: AuditLog, request_id: str, usage: Usage) -> None:
        try:
            await audit.add_usage(LateUsage(request_id=request_id, usage=usage))
        except AuditError as error:  # the record itself is there
            self._metrics.failure("audit", error)
            _log.error("the tokens of a stream are missing in the audit log: %s", error)

    async def _write(self, entry: Entry, status: int, shadow: Decision | None) -> None:
        decision = entry.decision
        if entry.mode == "shadow":
            decision, shadow = shadow, None
        for one, mode in ((decision, entry.mode), (shadow, "shadow")):
            if one is not None and one.rewrite is not None:
                self._metrics.decision(one.rewrite, mode=mode)
        if decision is not None:
            self._metrics.step("guard", decision.latency_ms / 1000)
            for step, spent in decision.steps_ms.items():
                self._metrics.step(step, spent / 1000)
        if self._audit is None:
            return
        entry.recorded = True
        try:
            await self._audit.record(audit_record(entry, status, decision, shadow))
        except AuditError as error:
            self._metrics.failure("audit", error)
            _log.error("the audit log failed: %s", error)  # told in full
            raise ApiError(
                503,
                "This request could not be written to the audit log, so it was not answered",
                code="audit_failed",
            ) from error


def audit_record(
    entry: Entry, status: int, decision: Decision | None, shadow: Decision | None
) -> AuditRecord:
    """The record of a request.

    Args:
        entry: the request.
        status: of its response.
        decision: the one that counts in its mode.
        shadow: that of the shadow policy.
    """
    call = entry.call
    rewrite = decision.rewrite if decision else None
    second = shadow.rewrite if shadow else None
    changed = rewrite is not None and rewrite.changed
    return AuditRecord(
        time=call.came,
        request_id=call.id,
        route=call.route,
        status=status,
        key_id=call.key.id if call.key else None,
        mode=entry.mode,
        policy=decision.policy if decision else "",
        rewriter=decision.rewriter if decision else "",
        target=entry.model,
        verdict=rewrite.verdict if rewrite else None,
        risk=rewrite.risk if rewrite else None,
        category=rewrite.category if rewrite else None,
        action=rewrite.action if rewrite else None,
        changed=changed,
        failure=entry.failure or (decision.failure if decision else None),
        prompt_sha256=_sha256(decision.prompt) if decision else None,
        image_sha256s=decision.image_sha256s if decision else (),
        rewrite_sha256=_sha256(rewrite.prompt) if rewrite is not None and changed else None,
        shadow_policy=shadow.policy if shadow else None,
        shadow_verdict=second.verdict if second else None,
        shadow_risk=second.risk if second else None,
        shadow_action=second.action if second else None,
        latency_ms={
            "guard": decision.latency_ms if decision else 0.0,
            "response": call.elapsed_ms,
            **(decision.steps_ms if decision else {}),
        },
        streamed=entry.streamed,
        usage=entry.usage,
        prompt=decision.prompt if decision else None,
        rewrite=rewrite.prompt if rewrite is not None and changed else None,
        report=rewrite.report if rewrite else None,
    )


def failure_of(error: ApiError) -> str:
    """Why there was no decision, without what people sent."""
    return f"{error.code} ({error.param})" if error.param else error.code


def _reason(error: VLMGuardError) -> str:
    return failure_of(error) if isinstance(error, ApiError) else type(error).__name__


def decision_headers(decision: Decision) -> list[tuple[bytes, bytes]]:
    """``x-vlmguard-…`` of a decision."""
    headers = [
        (b"x-vlmguard-policy", _header(decision.policy)),
        (b"x-vlmguard-latency-ms", b"%.2f" % decision.latency_ms),
    ]
    rewrite = decision.rewrite
    if rewrite is not None:
        headers += [
            (b"x-vlmguard-verdict", rewrite.verdict.encode()),
            (b"x-vlmguard-risk", b"%.4f" % rewrite.risk),
            (b"x-vlmguard-action", rewrite.action.encode()),
            (b"x-vlmguard-rewriter", _header(public_name(rewrite.rewriter))),
        ]
    if decision.uninspected:
        headers.append((b"x-vlmguard-uninspected", _header(", ".join(decision.uninspected))))
    if decision.failure is not None:
        # The kind of failure; its words name hosts of the operator.
        headers.append((b"x-vlmguard-failure", _header(decision.failure.partition(":")[0])))
    return headers


def report_of(decision: Decision, call: Call) -> dict[str, Any]:
    """The decision as it is added to an answer on request."""
    rewrite = decision.rewrite
    return {
        "request_id": call.id,
        "policy": decision.policy,
        "latency_ms": round(decision.latency_ms, 3),
        "decision": None if rewrite is None else _turn(rewrite.to_json()),
        "turns": [_turn(one.to_json()) for one in decision.rewrites],
    }


def _turn(told: dict[str, Any]) -> dict[str, Any]:
    told["rewriter"] = public_name(told["rewriter"])
    told["failure"] = told["failure"] and told["failure"].partition(":")[0]
    return told


def public_name(rewriter: str) -> str:
    """A model's name without the host and the options that its spec tells."""
    return rewriter.partition("@http")[0].partition("?")[0]


def _header(text: str) -> bytes:
    if text.isascii() and text.isprintable():
        return text[:_LONGEST].encode("ascii")
    shown = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    return shown[:_LONGEST].encode("ascii")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
