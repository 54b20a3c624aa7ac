"""What tests of defences share: a target that sees, pictures, a scorer and an embedder."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.drawing import encode, typed_text
from vlmguard.defences.embedding import Vector
from vlmguard.defences.scoring import Score
from vlmguard.engines import Capability, EngineSpec
from vlmguard.engines.scripted import Script, ScriptedEngine
from vlmguard.images import load_image
from vlmguard.types import Chat, Image, Message, Usage

SEES = frozenset({Capability.VISION})


def seeing(script: Script, *more: Capability) -> ScriptedEngine:
    """A scripted target that takes pictures."""
    return ScriptedEngine(script, capabilities=SEES | set(more), spec="target")


def picture(text: str = "hello") -> Image:
    return load_image(encode(typed_text(text, size=(120, 80), font_size=16)))


def user(text: str, *images: Image) -> Message:
    return Message(role="user", text=text, images=images)


def said(text: str) -> Message:
    return Message(role="assistant", text=text)


class Marks:
    """A scorer that gives marks by a rule and remembers what it was asked."""

    def __init__(self, rule: Callable[[str], float]) -> None:
        self._rule = rule
        self.asked: list[tuple[Chat, str]] = []

    async def score(self, chat: Chat, answer: str) -> Score:
        self.asked.append((chat, answer))
        return Score(value=self._rule(answer), usage=Usage(prompt_tokens=1))


class Directions:
    """An embedder in the plane: texts by a rule, all pictures along the first axis."""

    def __init__(self, rule: Callable[[str], Vector] = lambda _: (1.0, 0.0)) -> None:
        self._rule = rule
        self.texts: list[str] = []
        self.images: list[Image] = []

    async def embed_images(self, images: Sequence[Image]) -> list[Vector]:
        self.images += images
        return [(1.0, 0.0) for _ in images]

    async def embed_texts(self, texts: Sequence[str]) -> list[Vector]:
        self.texts += texts
        return [self._rule(text) for text in texts]


def open_directions(spec: EngineSpec) -> Directions:
    """For specs: ``tests.defences.common:open_directions``."""
    spec.take()
    return Directions()


def open_nothing(spec: EngineSpec) -> object:
    """For specs of what is no scorer and no embedder."""
    return object()
