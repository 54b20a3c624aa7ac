"""The seam between a defence and everything that runs one: harness, gateway, command line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.errors import InputError
from vlmguard.perception import DescribedEngine, Perceiver
from vlmguard.types import Chat, Completion, Reply, Rewrite, Trace, Usage

REFUSAL = "I am sorry, but I can't help with this request."
"""The answer of defences that withhold the target's and have no words of their own for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a defence made of a conversation before the target sees it.

    Attributes:
        chat: what the target is to receive; meaningless when there is a ``refusal``.
        refusal: the answer to give instead of asking the target.
        rewrites: one entry a user turn, oldest first.
        timings_ms: step → milliseconds.
        calls: calls of models that it took.
        usage: tokens of those calls.
        notes: what a reader of the trace should know.
    """

    chat: Chat
    refusal: str | None = None
    rewrites: tuple[Rewrite, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    calls: int = 0
    usage: Usage = field(default_factory=Usage)
    notes: tuple[str, ...] = ()


class Defence(Protocol):
    """An inference-time defence: answers a chat with the help of a target that it leaves as it is.

    Defences that only change the input are `Preparing` as well.
    """

    @property
    def name(self) -> str:
        """The short name of reports and configuration, e.g. ``"guard"``."""
        ...

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling) -> Reply:
        """Answer ``chat``.

        Raises:
            VLMGuardError: the defence or the target failed.
        """
        ...


@runtime_checkable
class Preparing(Protocol):
    """A defence that only changes the input, so that a caller can stream the answer itself."""

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as the target is to receive it.

        Raises:
            VLMGuardError: the defence failed, or the conversation cannot be used.
        """
        ...


def sighted_target(target: Engine, perceiver: Perceiver | None) -> tuple[Engine, tuple[str, ...]]:
    """A target that takes pictures: itself, or one that reads their description.

    Returns:
        The engine to ask, and notes for the trace.
    """
    if Capability.VISION in target.capabilities or perceiver is None:
        return target, ()
    described = DescribedEngine(target, perceiver)
    return described, (described.note,)


async def answer(
    prepared: Prepared, target: Engine, sampling: Sampling, *, perceiver: Perceiver | None = None
) -> Reply:
    """Ask the target what a defence prepared, or refuse as it says, and write the trace."""
    trace = Trace(
        rewrites=prepared.rewrites,
        timings_ms=prepared.timings_ms,
        calls=prepared.calls,
        defence_usage=prepared.usage,
        target=target.spec,
        notes=prepared.notes,
    )
    if prepared.refusal is not None:
        refused = Completion(text=prepared.refusal, finish_reason="stop", model="vlmguard")
        return Reply(completion=refused, trace=trace)
    notes = prepared.notes
    if prepared.chat.images:
        target, more = sighted_target(target, perceiver)
        notes += more
    start = time.perf_counter()
    completion = await target.generate(prepared.chat, sampling)
    timings = {**prepared.timings_ms, "target": (time.perf_counter() - start) * 1000}
    trace = replace(
        trace, sent=prepared.chat, timings_ms=timings, usage=completion.usage, notes=notes
    )
    return Reply(completion=completion, trace=trace)


class InputDefence:
    """Base of the defences that only change what the target receives.

    Args:
        perceiver: describes pictures to a target that cannot see.
    """

    name: str

    def __init__(self, perceiver: Perceiver | None = None) -> None:
        self._perceiver = perceiver

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as the target is to receive it.

        Raises:
            InputError: there is no user message.
        """
        raise NotImplementedError

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The target's answer to the prepared conversation.

        Raises:
            VLMGuardError: bad input, or the target failed.
        """
        prepared = await self.prepare(chat)
        return await answer(prepared, target, sampling or Sampling(), perceiver=self._perceiver)


def last_user_turn(chat: Chat) -> int:
    """Where the user's last message is.

    Raises:
        InputError: there is none.
    """
    for index in range(len(chat.messages) - 1, -1, -1):
        if chat.messages[index].role == "user":
            return index
    raise InputError("the conversation has no user message")
