"""An engine that is asked no faster than its owner allows, and again when it was busy."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

import stamina

from vlmguard.engines import Engine, Sampling
from vlmguard.engines.wrapping import WrappedEngine
from vlmguard.errors import ConfigError, EngineError, MissingExtra
from vlmguard.types import Chat, Completion

if TYPE_CHECKING:
    from aiolimiter import AsyncLimiter

_CHARACTERS_A_TOKEN = 4
IMAGE_TOKENS = 800
"""A guess for one picture; models take between 64 and a few thousand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an engine may be asked.

    Attributes:
        requests_per_minute, tokens_per_minute: ``None`` is no limit. Tokens count both ways.
        tries: for calls that fail with a retryable error. 1 where the engine tries again itself.
        wait_s: the first wait between two tries; doubled each time, with jitter.
    """

    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    tries: int = 1
    wait_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("requests_per_minute", "tokens_per_minute", "tries"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ConfigError(f"{name} must be positive, not {value}")


def estimate_tokens(chat: Chat) -> int:
    """How many tokens a request has, roughly: four characters each, and a guess a picture."""
    characters = sum(len(message.text) for message in chat.messages)
    return characters // _CHARACTERS_A_TOKEN + IMAGE_TOKENS * len(chat.images) + 8


class LimitedEngine(WrappedEngine):
    """``engine`` within limits. Belongs to one event loop.

    Before a call its tokens are estimated, from the average answer so far; what it took more is
    paid before the next calls.

    Args:
        engine: the model.
        limits: what it may be asked.

    Raises:
        MissingExtra: a rate is limited, and aiolimiter is not installed.
    """

    def __init__(self, engine: Engine, limits: Limits) -> None:
        super().__init__(engine)
        self._limits = limits
        self._requests = _limiter(limits.requests_per_minute)
        self._tokens = _limiter(limits.tokens_per_minute)
        self._answer_tokens = 256.0  # moving average
        self._debt = 0.0

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Wait for a turn, then ask; again after a retryable failure.

        Raises:
            EngineError: the last failure.
        """
        if self._limits.tries == 1:
            return await self._once(chat, sampling)
        retries = stamina.retry_context(
            on=_retryable,
            attempts=self._limits.tries,
            timeout=None,
            wait_initial=self._limits.wait_s,
            wait_max=60.0,
            wait_jitter=self._limits.wait_s,
        )
        async for attempt in retries:
            with attempt:
                return await self._once(chat, sampling)
        raise AssertionError("unreachable")

    async def _once(self, chat: Chat, sampling: Sampling) -> Completion:
        if self._requests is not None:
            await self._requests.acquire()
        if self._tokens is None:
            return await self._engine.generate(chat, sampling)
        asked = estimate_tokens(chat) + min(self._answer_tokens, sampling.max_tokens)
        owed, self._debt = self._debt, 0.0
        await _take(self._tokens, asked + owed)
        completion = await self._engine.generate(chat, sampling)
        used = completion.usage
        self._answer_tokens += 0.1 * (used.completion_tokens - self._answer_tokens)
        self._debt += max(0.0, used.prompt_tokens + used.completion_tokens - asked)
        return completion


def _retryable(error: Exception) -> bool:
    return isinstance(error, EngineError) and error.retryable


def _limiter(per_minute: float | None) -> AsyncLimiter | None:
    """A bucket of a second's worth (at least one), so that a run does not begin with a flood."""
    if per_minute is None:
        return None
    try:
        from aiolimiter import AsyncLimiter  # noqa: PLC0415  # optional
    except ImportError:
        raise MissingExtra("limiting requests or tokens per minute", "synth") from None
    capacity = max(1.0, per_minute / 60)
    return AsyncLimiter(capacity, time_period=capacity * 60 / per_minute)


async def _take(bucket: AsyncLimiter, amount: float) -> None:
    """Take more than the bucket holds, a bucketful at a time."""
    while amount > 0:
        part = min(amount, bucket.max_rate)
        await bucket.acquire(part)
        amount -= part
        await asyncio.sleep(0)
