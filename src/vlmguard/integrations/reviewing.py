"""The guard as all integrations use it: on parsed bodies, in one of three modes."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from vlmguard.defences import Guard
from vlmguard.errors import ConfigError, VLMGuardError
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.drafts import Draft, Json
from vlmguard.gateway.guarding import CarefulRewriter, Decision, PreparingDefence, decide
from vlmguard.gateway.pictures import Pictures
from vlmguard.images.fetch import Fetcher, FetchLimits
from vlmguard.integrations.settings import GuardSettings
from vlmguard.perception import Perceiver
from vlmguard.rewriting import load_policy, open_rewriter

Reader = Callable[[Json, Collection[str]], Draft]
"""Finds the conversations in a body of one endpoint: see `vlmguard.gateway.drafts`."""
Outcome = Decision | VLMGuardError

_log = logging.getLogger(__name__)
_MOST_WAITING = 256
"""Shadow decisions under way at once; more are left out, and the log says so."""
_CHANGED_INSIDE = ("messages", "input", "prompt", "system")
"""Fields into which a decision writes; all others are replaced as a whole, or not at all."""


class Reviewer:
    """Reviews requests by one guard.

    Args:
        settings: how.
        guard: in place of the one that ``policy``, ``rewriter``, ``detectors``, ``on_failure`` and
            ``cache_size`` describe.
        fetcher: in place of the one that fetches remote pictures.

    Raises:
        ConfigError: a spec, policy or domain is wrong.
        MissingExtra: a dependency is not installed.
    """

    def __init__(
        self,
        settings: GuardSettings,
        *,
        guard: PreparingDefence | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.settings = settings
        self._guard = _guard(settings) if guard is None else guard
        if fetcher is None and settings.remote_images:
            limits = FetchLimits(
                domains=settings.image_domains, allow_private=settings.private_images
            )
            fetcher = Fetcher(limits)
        self._pictures = Pictures(fetcher)
        self._beside: set[asyncio.Task[None]] = set()

    async def load(self) -> None:
        """Load the rewriter's model now, so that the first request need not wait for it."""
        if isinstance(self._guard, Guard):
            try:
                await self._guard.rewriter.load()
            except VLMGuardError as error:
                _log.error("the rewriter cannot be loaded: %s", error)  # one line, told in full

    async def review(self, draft: Draft) -> Decision:
        """Decide, and write into the draft's body what the target is to receive.

        Raises:
            ApiError: something cannot be used (400), or the guard failed and is closed (503).
        """
        decision = await decide(draft, self._guard, self._pictures)
        note(decision)
        return decision

    def observe(self, read: Reader, body: Json, noted: Callable[[Outcome], None]) -> None:
        """Decide beside the request, on a copy of its body.

        Args:
            read: of the endpoint.
            body: stays as it is.
            noted: told of what would have been decided, or why nothing was.
        """
        if len(self._beside) >= _MOST_WAITING:
            _log.warning("shadow: left a request out, %d are being reviewed", len(self._beside))
            return
        # Copied now: whoever owns the body may change it before the decision is made.
        inside = {name: copy.deepcopy(body[name]) for name in _CHANGED_INSIDE if name in body}
        task = asyncio.ensure_future(self._observe(read, {**body, **inside}, noted))
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    async def aclose(self, wait_s: float = 10.0) -> None:
        """Wait for shadow decisions that are under way."""
        if self._beside:
            await asyncio.wait(self._beside, timeout=wait_s)

    async def _observe(self, read: Reader, body: Json, noted: Callable[[Outcome], None]) -> None:
        outcome: Outcome
        try:
            draft = read(body, self.settings.allow_uninspected)
            outcome = await decide(draft, self._guard, self._pictures)
            note(outcome, shadow=True)
        except VLMGuardError as error:
            outcome = error
            _log.warning("shadow: no decision: %s: %s", type(error).__name__, error)
        noted(outcome)


def note(decision: Decision, *, shadow: bool = False) -> None:
    """Log a decision: no content, only what was decided."""
    _log.info("%sdecision %s", "shadow " if shadow else "", facts_of(decision))


def facts_of(decision: Decision) -> Mapping[str, Any]:
    """A decision as JSON values for logs: no prompt and no reason, which may quote it."""
    rewrite = decision.rewrite
    return {
        "verdict": None if rewrite is None else rewrite.verdict,
        "risk": None if rewrite is None else round(rewrite.risk, 4),
        "category": None if rewrite is None else rewrite.category,
        "action": None if rewrite is None else rewrite.action,
        "changed": decision.changed,
        "images": len(decision.image_sha256s),
        "uninspected": list(decision.uninspected),
        "policy": decision.policy,
        "rewriter": decision.rewriter,
        "latency_ms": round(decision.latency_ms, 3),
        "failure": decision.failure,
    }


def _guard(settings: GuardSettings) -> Guard:
    policy = load_policy(settings.policy)
    if settings.on_failure is not None:
        policy = policy.model_copy(update={"on_failure": settings.on_failure})
    if settings.rewriter == "self":
        raise ConfigError(
            "rewriter: 'self' is the target itself, which is not known here; name its model and "
            "URL, as openai:MODEL@URL"
        )
    perceiver = Perceiver() if settings.detectors is None else Perceiver(settings.detectors)
    opened = open_rewriter(settings.rewriter, perceiver=perceiver)
    return Guard(
        CarefulRewriter(opened, Breaker()),
        policy=policy,
        perceiver=perceiver,
        cache_size=settings.cache_size,
    )
