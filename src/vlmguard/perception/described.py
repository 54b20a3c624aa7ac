"""Evidence as words, and an engine that reads them in place of the pictures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import replace

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.engines.wrapping import WrappedEngine
from vlmguard.perception.perceiver import Perceiver
from vlmguard.quoting import quote
from vlmguard.types import Chat, Completion, Delta, ImageEvidence, Message, TextBox

_MOST_CHARACTERS = 6000  # of text from one picture; a small model's context is 8,000 tokens


def describe(evidence: ImageEvidence) -> str:
    """The evidence in short plain lines, for a model to read.

    Text from the picture is quoted, so that it cannot start a line or spell a control token.
    Guesses are called guesses; what was not inspected is named.
    """
    lines = [f"size: {evidence.width}x{evidence.height} pixels"]
    if evidence.frames > 1:
        lines.append(f"different views inspected: {evidence.frames}")
    if evidence.frames_skipped:
        lines.append(f"views NOT inspected: {evidence.frames_skipped}")
    if evidence.description is not None:
        lines.append(f"described by others as: {quote(evidence.description)}")
    if "ocr" not in evidence.disabled and "ocr" not in evidence.failed:
        lines += _text_lines(evidence.text)
    if "objects" not in evidence.disabled and "objects" not in evidence.failed:
        guesses = ", ".join(
            f"maybe {seen.label} ({seen.probability:.2f})" for seen in evidence.objects
        )
        lines.append(f"objects: {guesses or 'nothing recognized'}")
    if evidence.nudity is not None:
        lines.append(f"nudity score: {evidence.nudity:.2f} (0 none, 1 certain)")
    lines += [
        f"{detector}: FAILED, so this part is unknown ({quote(reason[:200])})"
        for detector, reason in evidence.failed.items()
    ]
    if evidence.disabled:
        lines.append(f"not looked for: {', '.join(evidence.disabled)}")
    return "\n".join(lines)


def _text_lines(boxes: tuple[TextBox, ...]) -> list[str]:
    lines = []
    for title, hidden in (("text in it", False), ("text hidden in it", True)):
        found = [box.text for box in boxes if box.hidden is hidden]
        shown = " / ".join(found)  # small models read "\n" in a string as the letter n
        cut = shown[:_MOST_CHARACTERS]
        if found:
            lines.append(f"{title}: {quote(cut, line_break=' / ')}")
        if len(shown) > len(cut):
            lines.append(f"{title}: {len(shown) - len(cut)} more characters are not shown")
    return lines or ["text in it: none found"]


class DescribedEngine(WrappedEngine):
    """A text-only engine that stands in for a vision-language model.

    Every picture is replaced by what `Perceiver` found in it, before the text of its message.
    Everything else is the engine's own; the perceiver belongs to whoever made it.
    """

    note = (
        "The target cannot see: it read text evidence (text in the image, guessed objects, "
        "nudity score) in place of the pictures."
    )

    def __init__(self, engine: Engine, perceiver: Perceiver) -> None:
        super().__init__(engine)
        self._perceiver = perceiver

    @property
    def capabilities(self) -> frozenset[Capability]:
        """The engine's own, and vision."""
        return self._engine.capabilities | {Capability.VISION}

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """Answer once, from the description of the pictures.

        Raises:
            InputError: a picture cannot be decoded.
            EngineError: as the engine.
        """
        return await self._engine.generate(await self._described(chat), sampling)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """Answer piece by piece. Closing the iterator stops the generation."""
        deltas = self._engine.stream(await self._described(chat), sampling)
        try:
            async for delta in deltas:
                yield delta
        finally:
            if isinstance(deltas, AsyncGenerator):
                await deltas.aclose()

    async def _described(self, chat: Chat) -> Chat:
        found = await asyncio.gather(*(self._perceiver.perceive(image) for image in chat.images))
        evidence = iter(found)
        messages = [
            _described(message, [next(evidence) for _ in message.images])
            for message in chat.messages
        ]
        return Chat(messages=tuple(messages))


def _described(message: Message, evidence: list[ImageEvidence]) -> Message:
    if not evidence:
        return message
    blocks = []
    for at, found in enumerate(evidence, start=1):
        which = "the attached picture" if len(evidence) == 1 else f"attached picture {at}"
        blocks.append(f"[What software found in {which}]\n{describe(found)}")
    text = "\n\n".join([*blocks, message.text])
    return replace(message, text=text, images=())
