"""The brain as an engine in this process."""

from __future__ import annotations

from collections.abc import Callable

from tests.synthesis.brain import stage_of, think
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.types import Chat

ABLE = frozenset({Capability.VISION, Capability.JSON_SCHEMA})


def split(chat: Chat) -> tuple[str, list[str]]:
    """The system prompt (empty for the target's chats), and the other texts."""
    system = chat.messages[0].text if chat.messages[0].role == "system" else ""
    return system, [message.text for message in chat.messages if message.role != "system"]


def brain(spec: str = "scripted:brain") -> ScriptedEngine:
    """Answers as `tests.synthesis.brain`."""
    return ScriptedEngine(lambda chat, _: think(*split(chat)), capabilities=ABLE, spec=spec)


def brain_but(stage: str, answer: Callable[[Chat, Sampling], str | Exception]) -> ScriptedEngine:
    """The same, but for one stage."""

    def say(chat: Chat, sampling: Sampling) -> str | Exception:
        system, texts = split(chat)
        return answer(chat, sampling) if stage_of(system) == stage else think(system, texts)

    return ScriptedEngine(say, capabilities=ABLE, spec="scripted:brain")


def stages(engine: ScriptedEngine) -> list[str]:
    """Which stages were asked, in order."""
    return [stage_of(split(chat)[0]) for chat, _ in engine.calls]
