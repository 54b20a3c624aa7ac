"""The base of engines that stand in front of another one."""

from __future__ import annotations

from collections.abc import AsyncIterator

from vlmguard.engines.base import Capability, Engine, Sampling
from vlmguard.types import Chat, Completion, Delta


class WrappedEngine:
    """Another engine, as it is. Subclasses change what they are for, above all `generate`.

    Args:
        engine: the one behind it.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    @property
    def spec(self) -> str:
        """The engine's own."""
        return self._engine.spec

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The engine's own."""
        return self._engine.capabilities

    async def load(self) -> None:
        """Load the engine."""
        await self._engine.load()

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once; raises as the engine does."""
        return await self._engine.generate(chat, sampling)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """The answer of `generate` in one piece, so that nothing goes past a changed `generate`."""
        whole = await self.generate(chat, sampling)
        yield Delta(text=whole.text, finish_reason=whole.finish_reason, usage=whole.usage)

    async def aclose(self) -> None:
        """Close the engine."""
        await self._engine.aclose()
