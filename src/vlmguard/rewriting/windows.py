"""Long input in pieces: everything is judged, however long it is, and nothing is cut off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vlmguard.types import ImageEvidence, Message

OVERLAP_CHARS = 200
"""Windows overlap by this, so that a sentence across a boundary stands whole in one of them."""
CONTEXT_MESSAGES = 8
CONTEXT_CHARS = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a turn that is judged at once, with the context that belongs to it."""

    turn: Message
    earlier: tuple[Message, ...] = ()
    evidence: tuple[ImageEvidence, ...] = ()

    @property
    def longest_text(self) -> int:
        """Characters of the longest text in it: the prompt's or a picture's."""
        return max(len(self.turn.text), *(len(seen.joined_text()) for seen in self.evidence), 0)


def clip_context(messages: Sequence[Message]) -> tuple[Message, ...]:
    """The last few messages, each with its beginning and its end.

    Every user turn among them was judged in full when it was the last; here they only give the
    present turn its meaning.
    """
    recent = [message for message in messages if message.role != "system"][-CONTEXT_MESSAGES:]
    return tuple(replace(message, text=_clip(message.text), images=()) for message in recent)


def _clip(text: str) -> str:
    if len(text) <= CONTEXT_CHARS:
        return text
    half = CONTEXT_CHARS // 2
    return f"{text[:half]} … {text[-half:]}"


def split(window: Window, size: int | None) -> tuple[Window, ...]:
    """Windows in which neither the prompt nor a picture's text is longer than ``size``.

    The prompt's windows each see the beginning of the pictures' texts, and the pictures' windows
    the beginning of the prompt, so that what belongs together meets.
    """
    if size is None or window.longest_text <= max(size, 2 * OVERLAP_CHARS):
        return (window,)
    size = max(size, 2 * OVERLAP_CHARS)
    texts = _pieces(window.turn.text, size)
    seen = [_evidence_pieces(evidence, size) for evidence in window.evidence]
    first = tuple(pieces[0] for pieces in seen)
    windows = [
        replace(window, turn=replace(window.turn, text=text), evidence=first) for text in texts
    ]
    head = replace(window.turn, text=texts[0])
    for index, pieces in enumerate(seen):
        for piece in pieces[1:]:
            evidence = (*first[:index], piece, *first[index + 1 :])
            windows.append(replace(window, turn=head, evidence=evidence))
    return tuple(windows)


def _pieces(text: str, size: int) -> list[str]:
    step = size - OVERLAP_CHARS
    starts = range(0, max(len(text) - OVERLAP_CHARS, 1), step)
    return [text[start : start + size] for start in starts]


def _evidence_pieces(seen: ImageEvidence, size: int) -> list[ImageEvidence]:
    """The lines of one picture in groups; a line that is too long alone is cut with overlap."""
    lines = [replace(box, text=part) for box in seen.text for part in _pieces(box.text, size)]
    groups: list[ImageEvidence] = []
    group: list[int] = []
    length = 0
    for index, line in enumerate(lines):
        if group and length + len(line.text) > size:
            groups.append(replace(seen, text=tuple(lines[i] for i in group)))
            group, length = [group[-1]], len(lines[group[-1]].text)  # the last line again
        group.append(index)
        length += len(line.text) + 1
    groups.append(replace(seen, text=tuple(lines[i] for i in group)))
    return groups
