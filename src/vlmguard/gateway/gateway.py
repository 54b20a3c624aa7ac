"""All parts of a running gateway, opened and closed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from vlmguard.defences import Guard, open_defence
from vlmguard.engines import Engine, EngineSpec, open_engine
from vlmguard.engines.openai import Server, server_of
from vlmguard.errors import ConfigError
from vlmguard.gateway.audit import AuditLog, open_audit
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.cache import DecisionCache
from vlmguard.gateway.calls import Call
from vlmguard.gateway.errors import ApiError, guard_failed
from vlmguard.gateway.guarding import CarefulRewriter, PreparingDefence
from vlmguard.gateway.inprocess import InProcess
from vlmguard.gateway.keys import KeyStore
from vlmguard.gateway.ledger import Ledger
from vlmguard.gateway.limits import RateLimits
from vlmguard.gateway.metrics import Metrics
from vlmguard.gateway.modes import Mode
from vlmguard.gateway.pictures import Pictures
from vlmguard.gateway.policies import Policies
from vlmguard.gateway.readiness import Loading, Readiness, problem_with
from vlmguard.gateway.settings import Settings
from vlmguard.gateway.tracing import Tracing, open_tracing
from vlmguard.gateway.upstream import Upstream, is_upstream, target_spec
from vlmguard.images.fetch import Fetcher, FetchLimits
from vlmguard.perception import Perceiver
from vlmguard.rewriting import Policy, Rewriter, open_rewriter

if TYPE_CHECKING:
    from vlmguard.gateway.redis_link import RedisLink

_LEFT_ALONE = "has failed repeatedly and is left alone for a moment"
_log = logging.getLogger(__name__)


class Gateway:
    """The parts that handlers use.

    Args:
        settings: how it runs.
        rewriter: in place of the one that the settings name.
        engine: in place of an in-process target.
        fetcher: in place of the one that fetches remote pictures.

    Raises:
        ConfigError: a setting, spec, policy or file is wrong.
        MissingExtra: a dependency is not installed.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        rewriter: Rewriter | None = None,
        engine: Engine | None = None,
        fetcher: Fetcher | None = None,
    ) -> None:
        self.settings = settings
        self.metrics = Metrics()
        self.tracing: Tracing = open_tracing()
        self.redis = _redis(settings.redis)
        self.keys = KeyStore(settings.keys) if settings.keys else None
        self.limits = RateLimits(self.redis)
        self.perceiver = _perceiver(settings.detectors)
        self.target: Upstream | InProcess
        if engine is None and is_upstream(settings.target):
            self.target = Upstream(settings)
        else:
            self.target = InProcess(engine or open_engine(settings.target), self.perceiver)
        self.pictures = Pictures(fetcher or _fetcher(settings))
        self._breaker = Breaker()
        self._rewriter = None if rewriter is None else CarefulRewriter(rewriter, self._breaker)
        self._rewriter_server: Server | None = None
        self._store = DecisionCache(self.redis, size=0, on_lookup=self.metrics.lookup)
        self.policies: Policies[PreparingDefence] = Policies(self._defence)
        self.policies.get(settings.policy)
        if settings.shadow_policy is not None:
            self.policies.get(settings.shadow_policy)
        self.ledger = Ledger(self._audit(), self.metrics)
        self._running: list[asyncio.Task[None]] = []
        self._loading = Loading(self._loadable())

    async def open(self) -> None:
        """Open what belongs to an event loop, load models, and look for changed policies."""
        if isinstance(self.target, Upstream):
            await self.target.open()
        if self.redis is not None:
            await self.redis.open()
        self._running = [
            asyncio.create_task(self.policies.watch()),
            asyncio.create_task(self._loading.run()),
        ]

    async def aclose(self) -> None:
        """Finish what is under way, and let go of everything."""
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self.ledger.aclose()
        if isinstance(self.target, Upstream):
            await self.target.aclose()
        else:
            await self.target.engine.aclose()
        if self.redis is not None:
            await self.redis.aclose()
        await asyncio.to_thread(self.tracing.close)

    def _loadable(self) -> dict[str, Callable[[], Awaitable[None]]]:
        """What is loaded at once, so that the first request need not wait for it."""
        parts: dict[str, Callable[[], Awaitable[None]]] = {}
        if self._rewriter is not None:
            parts["rewriter"] = self._rewriter.load
        if isinstance(self.target, InProcess):
            parts["target"] = self.target.engine.load
        return parts

    def mode_for(self, call: Call) -> Mode:
        """The key's mode, or the gateway's."""
        return (call.key.mode if call.key else None) or self.settings.mode

    def defence_for(self, call: Call) -> PreparingDefence:
        """The guard with the key's policy, or the gateway's.

        Raises:
            ApiError: the key's policy cannot be loaded: the guard fails closed.
        """
        source = (call.key.policy if call.key else None) or self.settings.policy
        try:
            return self.policies.get(source)
        except ConfigError as error:
            _log.error("the policy of key %s: %s", call.key and call.key.id, error)
            raise guard_failed(error) from error

    async def admit(self, call: Call) -> None:
        """Check the key and count the request.

        Raises:
            ApiError: no valid key (401), or too many requests (429).
        """
        if self.keys is None:
            return
        call.key = self.keys.check(call.bearer) if call.bearer else None
        if call.key is None:
            raise ApiError(
                401,
                "No valid key: send one of the gateway's as `Authorization: Bearer KEY`",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        per_minute = call.key.requests_per_minute or self.settings.requests_per_minute
        wait = await self.limits.admit(call.key.id, per_minute)
        if wait is not None:
            seconds = max(1, int(wait + 0.999))
            raise ApiError(
                429,
                f"This key may send {per_minute:g} requests a minute; try again in {seconds} s",
                code="rate_limit_exceeded",
                headers={"retry-after": str(seconds)},
            )

    def body_limit(self, call: Call) -> int:
        """Bytes of a body that this key may send."""
        return (call.key.max_body_bytes if call.key else None) or self.settings.max_body_bytes

    async def ready(self) -> Readiness:
        """Which parts are wrong, and whether requests can be answered without them."""
        target, rewriter = await asyncio.gather(self._target_problem(), self._rewriter_problem())
        found = {"target": target, "rewriter": rewriter}
        problems = {part: problem for part, problem in found.items() if problem is not None}
        stopping = problems.keys() if self._needs_rewriter() else problems.keys() - {"rewriter"}
        return Readiness(problems=problems, stopping=frozenset(stopping))

    async def _target_problem(self) -> str | None:
        if not isinstance(self.target, Upstream):
            return self._loading.problems.get("target")
        if self.target.breaker.state == "open":
            return _LEFT_ALONE
        return await problem_with(self.target.server)

    async def _rewriter_problem(self) -> str | None:
        loading = self._loading.problems.get("rewriter")
        if loading is not None:
            return loading
        if self._breaker.state == "open":
            return _LEFT_ALONE
        return None if self._rewriter_server is None else await problem_with(self._rewriter_server)

    def _needs_rewriter(self) -> bool:
        """Whether requests go wrong without the rewriter, by the gateway's mode and policy.

        One that never was loaded is needed under an open policy too: else a rollout with a broken
        rewriter would go through, and guard nothing.
        """
        if self.settings.mode != "enforce":
            return False
        if "rewriter" in self._loading.problems:
            return True
        defence = self.policies.get(self.settings.policy)
        return isinstance(defence, Guard) and defence.policy.on_failure == "closed"

    def render_metrics(self) -> bytes:
        """All numbers, in Prometheus' text format."""
        self.metrics.breaker("rewriter", self._breaker.state)
        if isinstance(self.target, Upstream):
            self.metrics.breaker("target", self.target.breaker.state)
        return self.metrics.render()

    def _defence(self, policy: Policy) -> PreparingDefence:
        if self.settings.defence != "guard":
            return _other_defence(self.settings.defence, self.perceiver)
        if self._rewriter is None:
            self._rewriter = self._open_rewriter()
        return Guard(
            self._rewriter,
            policy=policy,
            perceiver=self.perceiver,
            cache_size=self.settings.cache_size,
            store=self._store,
        )

    def _open_rewriter(self) -> CarefulRewriter:
        engine: Engine | None = None
        if self.settings.rewriter == "self":
            engine = (
                self.target.engine
                if isinstance(self.target, InProcess)
                else open_engine(target_spec(self.settings))
            )
        opened = open_rewriter(self.settings.rewriter, target=engine, perceiver=self.perceiver)
        spec = EngineSpec.parse(opened.engine.spec)
        if spec.scheme == "openai" and engine is None:  # else it is the target
            self._rewriter_server = server_of(spec)
        return CarefulRewriter(opened, self._breaker)

    def _audit(self) -> AuditLog | None:
        if self.settings.audit is None:
            return None
        return open_audit(
            self.settings.audit,
            keep_content=self.settings.audit_content,
            retention_days=self.settings.audit_days,
            on_full=self.settings.audit_full,
            on_lost=self.metrics.audit_lost,
        )


def _redis(url: str | None) -> RedisLink | None:
    if url is None:
        return None
    from vlmguard.gateway.redis_link import RedisLink  # noqa: PLC0415  # only where it is used

    return RedisLink(url)


def _perceiver(names: str | None) -> Perceiver:
    if names is None:
        return Perceiver()
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    return Perceiver([] if wanted == ["none"] else wanted)


def _fetcher(settings: Settings) -> Fetcher | None:
    if not settings.remote_images:
        return None
    return Fetcher(
        FetchLimits(domains=settings.image_domains, allow_private=settings.private_images)
    )


def _other_defence(spec: str, perceiver: Perceiver) -> PreparingDefence:
    """A defence that only changes the input; others need the answer, which is streamed here."""
    defence = open_defence(spec, perceiver=perceiver)
    if not isinstance(defence, PreparingDefence):
        raise ConfigError(
            f"the defence {spec!r} works on the target's answer and cannot be served; take one "
            "that changes the input, such as guard, self-reminder or adashield-s"
        )
    return defence
