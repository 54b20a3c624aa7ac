"""The decision about a request: by a defence, on the draft of a body."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from vlmguard.defences import Guard, Prepared
from vlmguard.errors import (
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    InputError,
    OutputError,
    VLMGuardError,
)
from vlmguard.gateway.breaker import Breaker
from vlmguard.gateway.drafts import Draft
from vlmguard.gateway.errors import ApiError, guard_failed
from vlmguard.gateway.pictures import Pictures
from vlmguard.rewriting import Policy, Rewriter
from vlmguard.types import Chat, Rewrite

_log = logging.getLogger(__name__)
_MOST_PICTURES = 16  # for defences without a policy


@runtime_checkable
class PreparingDefence(Protocol):
    """A defence that only changes the input, so that the target's answer can be streamed."""

    @property
    def name(self) -> str:
        """See `vlmguard.defences.Defence`."""
        ...

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as the target is to receive it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided about a request.

    Attributes:
        rewrite: about the newest user turn (the riskiest, where several prompts came at once);
            ``None`` from defences that do not judge.
        rewrites: about all user turns, oldest first.
        refusal: the answer to give instead of asking the target.
        policy, rewriter: by whose rules, and by whom.
        changed: the target receives something else than the client wrote.
        chats: the conversations as the target is to receive them.
        prompt: the newest user turn, as it came.
        image_sha256s: of all pictures.
        uninspected: fields, and types of content parts, that nobody looked into.
        latency_ms: what the decision took, loading pictures included.
        failure: why nobody could decide and the request passes all the same: the guard failed
            (``on_failure: open``), or all that users sent passes unseen (``allow_uninspected``).
        steps_ms: step → milliseconds.
    """

    rewrite: Rewrite | None
    rewrites: tuple[Rewrite, ...]
    refusal: str | None
    policy: str
    rewriter: str
    changed: bool
    chats: tuple[Chat, ...]
    prompt: str
    image_sha256s: tuple[str, ...]
    uninspected: tuple[str, ...]
    failure: str | None
    latency_ms: float
    steps_ms: Mapping[str, float] = field(default_factory=dict)


async def decide(draft: Draft, defence: PreparingDefence, pictures: Pictures) -> Decision:
    """Judge a draft, and write into its body what the target is to receive.

    Raises:
        ApiError: a picture or prompt cannot be used (400), or the guard failed and its policy is
            closed (503).
    """
    start = time.perf_counter()
    policy = defence.policy if isinstance(defence, Guard) else None
    images = await pictures.load(
        draft.pictures, most=policy.max_images if policy else _MOST_PICTURES
    )
    loaded = time.perf_counter()
    chats = [conversation.chat(images) for conversation in draft.conversations]
    try:
        if draft.holds_only_uninspected:
            prepared = [Prepared(chat=chat) for chat in chats]
        elif len(chats) == 1:
            prepared = [await defence.prepare(chats[0])]
        else:
            prepared = await asyncio.gather(*(defence.prepare(chat) for chat in chats))
    except InputError as error:
        raise ApiError(400, str(error), code="invalid_input") from None
    except VLMGuardError as error:
        _log.warning("the guard failed: %s: %s", type(error).__name__, error)
        raise guard_failed(error) from error
    except Exception as error:
        _log.exception("the defence %s failed", defence.name)
        raise guard_failed(error) from error
    refusal = next((one.refusal for one in prepared if one.refusal is not None), None)
    if refusal is None:
        for conversation, before, after in zip(draft.conversations, chats, prepared, strict=True):
            conversation.apply(before, after.chat)
    end = time.perf_counter()
    decision = _decision(
        draft,
        prepared,
        chats,
        name=policy.name if policy else defence.name,
        refusal=refusal,
        steps_ms={"images": (loaded - start) * 1000} if images else {},
        latency_ms=(end - start) * 1000,
    )
    if draft.holds_only_uninspected:
        _log.info("nothing was judged, as allow_uninspected says: %s", decision.failure)
    elif decision.failure is not None:
        _log.warning("the guard failed, and its policy lets requests pass: %s", decision.failure)
    return decision


def _decision(
    draft: Draft,
    prepared: list[Prepared],
    chats: list[Chat],
    *,
    name: str,
    refusal: str | None,
    steps_ms: dict[str, float],
    latency_ms: float,
) -> Decision:
    at, newest = 0, None
    for place, one in enumerate(prepared):
        last = one.rewrites[-1] if one.rewrites else None
        if last is not None and (newest is None or last.risk > newest.risk):
            at, newest = place, last
    rewrites = tuple([rewrite for one in prepared for rewrite in one.rewrites])
    if draft.holds_only_uninspected:
        failure: str | None = f"Uninspected: {', '.join(draft.uninspected)}"
    else:
        failure = next((seen.failure for seen in rewrites if seen.failure is not None), None)
    users = [message for message in chats[at].messages if message.role == "user"]
    return Decision(
        rewrite=newest,
        rewrites=rewrites,
        refusal=refusal,
        policy=newest.policy if newest else name,
        rewriter=newest.rewriter if newest else "",
        changed=any(
            after.chat.messages != before.messages
            for before, after in zip(chats, prepared, strict=True)
        ),
        chats=tuple([one.chat for one in prepared]),
        prompt=users[-1].text if users else "",
        image_sha256s=tuple([image.sha256 for chat in chats for image in chat.images]),
        uninspected=draft.uninspected,
        failure=failure,
        latency_ms=latency_ms,
        steps_ms=steps_ms,
    )


class CarefulRewriter:
    """A rewriter that is left alone for a while after it failed again and again.

    What the policy does about a failure holds for the refused calls as well.

    Args:
        rewriter: the real one.
        breaker: counts its failures.
    """

    def __init__(self, rewriter: Rewriter, breaker: Breaker) -> None:
        self._rewriter = rewriter
        self._breaker = breaker
        self._fingerprint = rewriter.fingerprint  # asked for with every request

    @property
    def name(self) -> str:
        """The rewriter's own."""
        return self._rewriter.name

    @property
    def fingerprint(self) -> str:
        """The rewriter's own."""
        return self._fingerprint

    async def load(self) -> None:
        """Load the rewriter."""
        await self._rewriter.load()

    async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
        """Ask the rewriter.

        Raises:
            EngineUnavailable: it is being left alone, or failed.
            VLMGuardError: as the rewriter.
        """
        if not self._breaker.allow():
            raise EngineUnavailable(
                f"the rewriter {self.name} has failed repeatedly and is left alone for "
                f"{self._breaker.wait_s:.0f} s"
            )
        start = time.perf_counter()
        try:
            decided = await self._rewriter.rewrite(chat, policy)
        except asyncio.CancelledError:
            # The guard's own time limit ends a call that hangs in this way.
            if time.perf_counter() - start >= policy.timeout_s * 0.95:
                self._breaker.failure()
            raise
        except (EngineUnavailable, EngineTimeout):
            self._breaker.failure()
            raise
        except (EngineRejected, OutputError):
            self._breaker.success()  # it runs, even if it is of no use for this request
            raise
        except VLMGuardError:
            raise
        except Exception as error:
            # A bug, in a model's library say. The policy says what happens, as for any failure;
            # the breaker does not count it, or one odd request could shut out all others.
            _log.exception("the rewriter %s failed in an unexpected way", self.name)
            raise EngineUnavailable(
                f"the rewriter {self.name} failed in an unexpected way: {type(error).__name__}"
            ) from error
        self._breaker.success()
        return decided
