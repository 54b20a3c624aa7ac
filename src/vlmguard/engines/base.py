"""The one seam to a model: something that answers a chat."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from vlmguard.errors import UnsupportedCapability
from vlmguard.types import Chat, Completion, Delta


class Capability(StrEnum):
    """What an engine can do beyond answering text with text."""

    VISION = "vision"
    """It sees the pictures of a chat."""
    STREAMING = "streaming"
    """Tokens arrive as they are generated (otherwise `Engine.stream` yields once)."""
    LOGPROBS = "logprobs"
    """`Sampling.top_logprobs` works."""
    JSON_SCHEMA = "json_schema"
    """`Sampling.json_schema` constrains the answer."""
    GRAMMAR = "grammar"
    """`Sampling.grammar` (GBNF) constrains the answer."""
    PREFIX = "prefix"
    """A chat that ends with an assistant message is continued at that place."""
    ADAPTERS = "adapters"
    """It can load a LoRA adapter beside the base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to generate.

    Attributes:
        max_tokens: at most so many new tokens.
        temperature: 0 is greedy.
        top_p: nucleus, 0..1.
        seed: for engines that can repeat a draw.
        stop: strings that end the answer; not part of it.
        top_logprobs: alternatives to report for every token; 0 reports none.
        json_schema: a JSON schema that the answer must match.
        grammar: a GBNF grammar (llama.cpp) that the answer must match.
    """

    max_tokens: int = 512
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    top_logprobs: int = 0
    json_schema: Mapping[str, Any] | None = None
    grammar: str | None = None


@runtime_checkable
class Engine(Protocol):
    """A model that answers a chat.

    Attributes:
        spec: the string that opens this engine again; goes into traces and cache keys.
        capabilities: what it can do; asking for more raises `UnsupportedCapability`.
    """

    @property
    def spec(self) -> str:
        """The string that opens this engine again."""
        ...

    @property
    def capabilities(self) -> frozenset[Capability]:
        """What it can do."""
        ...

    async def load(self) -> None:
        """Fetch and load what the first call would, so that it need not be timed with it.

        Raises:
            VLMGuardError: it cannot be had.
        """
        ...

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once.

        Raises:
            EngineError: see the tree in `vlmguard.errors`.
        """
        ...

    def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece. Closing the iterator stops the generation."""
        ...

    async def aclose(self) -> None:
        """Free what the engine holds. Idempotent."""
        ...


def require(engine: Engine, chat: Chat, sampling: Sampling) -> None:
    """Refuse a call that asks for more than the engine can do.

    Raises:
        UnsupportedCapability: names the engine, what was asked, and what it can.
    """
    needed = {
        Capability.VISION: bool(chat.images),
        Capability.LOGPROBS: sampling.top_logprobs > 0,
        Capability.JSON_SCHEMA: sampling.json_schema is not None,
        Capability.GRAMMAR: sampling.grammar is not None,
        Capability.PREFIX: bool(chat.messages) and chat.messages[-1].role == "assistant",
    }
    missing = [cap for cap, asked in needed.items() if asked and cap not in engine.capabilities]
    if missing:
        can = ", ".join(sorted(engine.capabilities)) or "text only"
        raise UnsupportedCapability(f"{engine.spec} cannot do {', '.join(missing)} (it can: {can})")
