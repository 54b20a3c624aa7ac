"""An engine that is watched while it works, and never asked the same thing twice.

The playground shows the rewriter's reasons while they are written, and decides again when the
threshold moves. Both happen at the seam to the model, so that the guard itself is the one that
everybody runs.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Protocol

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.engines.wrapping import WrappedEngine
from vlmguard.types import Chat, Completion, Delta, Usage


class Listener(Protocol):
    """Told what a watched engine says, as it says it."""

    def said(self, sampling: Sampling, text: str) -> None:
        """The answer so far; with what it continues, where the chat ends with the assistant's."""
        ...

    def answered(self, chat: Chat, completion: Completion) -> None:
        """The whole answer."""
        ...


@dataclass(slots=True, kw_only=True)
class Memory:
    """Answers by what was asked.

    Attributes:
        asked: calls that reached a model.
        recalled: calls that were answered from here.
    """

    size: int = 256
    asked: int = 0
    recalled: int = 0
    _known: OrderedDict[str, Completion] = field(default_factory=OrderedDict)

    def recall(self, key: str) -> Completion | None:
        """What was answered, if it is known."""
        known = self._known.get(key)
        if known is not None:
            self.recalled += 1
        return known

    def keep(self, key: str, completion: Completion) -> None:
        """Remember an answer, and forget the oldest when there are too many."""
        self._known[key] = completion
        while len(self._known) > self.size:
            self._known.popitem(last=False)


class WatchedEngine(WrappedEngine):
    """Another engine that tells a listener what it says and remembers its whole answers.

    Args:
        engine: the one behind it.
        memory: of a visitor; answers that were interrupted are not kept.
        listener: told of every answer, remembered ones too.
    """

    def __init__(self, engine: Engine, memory: Memory, listener: Listener | None = None) -> None:
        super().__init__(engine)
        self._memory = memory
        self._listener = listener

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once; raises as the engine does.

        Streams where it can: only an answer whose probabilities are asked for has to come whole.
        """
        key = _key(self.spec, chat, sampling)
        known = self._memory.recall(key)
        if known is None:
            self._memory.asked += 1
            if sampling.top_logprobs or Capability.STREAMING not in self.capabilities:
                known = await self._engine.generate(chat, sampling)
            else:
                known = await self._followed(chat, sampling)
            self._memory.keep(key, known)
        else:
            known = replace(known, usage=Usage())
        if self._listener is not None:
            self._listener.said(sampling, _prefix(chat) + known.text)
            self._listener.answered(chat, known)
        return known

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece; a remembered answer comes in one."""
        key = _key(self.spec, chat, sampling)
        known = self._memory.recall(key)
        if known is not None:
            yield Delta(text=known.text, finish_reason=known.finish_reason, usage=Usage())
            return
        self._memory.asked += 1
        text, reason, usage = "", "stop", Usage()
        async with aclosing(self._engine.stream(chat, sampling)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                text += delta.text
                reason, usage = delta.finish_reason or reason, delta.usage or usage
                yield delta
        whole = Completion(text=text, finish_reason=reason, usage=usage, model=self.spec)
        self._memory.keep(key, whole)

    async def _followed(self, chat: Chat, sampling: Sampling) -> Completion:
        text, reason, usage = "", "stop", Usage()
        async with aclosing(self._engine.stream(chat, sampling)) as deltas:  # type: ignore[type-var]
            async for delta in deltas:
                text += delta.text
                reason, usage = delta.finish_reason or reason, delta.usage or usage
                if self._listener is not None:
                    self._listener.said(sampling, _prefix(chat) + text)
        return Completion(text=text, finish_reason=reason, usage=usage, model=self.spec)


def _prefix(chat: Chat) -> str:
    last = chat.messages[-1]
    return last.text if last.role == "assistant" else ""


def _key(spec: str, chat: Chat, sampling: Sampling) -> str:
    # Pictures stand in the representation by their hash.
    return hashlib.sha256(f"{spec}\0{chat!r}\0{sampling!r}".encode()).hexdigest()
