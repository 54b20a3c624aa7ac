"""From tokens to text, one token at a time: no torch here, so it is tested without a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # what bytes become while their character is incomplete


class Detokenizer:
    """Turns tokens into text as they come.

    A token is not a piece of text: a character may span several, and what a token spells may
    depend on the one before it. So a short window is decoded with and without the new tokens, and
    the difference is the new text; while it ends within a character, it is held back.

    Args:
        decode: token ids → text, without special tokens.
        before: ids whose text stands before what is generated, so that a continued word keeps
            its leading space.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._window = list(before)
        self._read = len(self._window)

    def push(self, token: int) -> str:
        """The text that this token completes; often one token's, sometimes none."""
        self._window.append(token)
        text = self._new_text()
        if not text or text.endswith(_REPLACEMENT):
            return ""
        self._window = self._window[self._read :]
        self._read = len(self._window)
        return text

    def flush(self) -> str:
        """What is still held back: bytes that never became a character."""
        return self._new_text()

    def spell(self, token: int) -> str:
        """What this token would add to the text here."""
        known = self._window[: self._read]
        whole = self._read == len(self._window)
        text = self._decode([*known, token])[len(self._decode(known)) :] if whole else ""
        return text or self._decode([token])

    def _new_text(self) -> str:
        return self._decode(self._window)[len(self._decode(self._window[: self._read])) :]


class StopScanner:
    """Lets text through up to the stop string that is complete first.

    Text that may turn out to be the beginning of a stop string is held back until that is known.

    Attributes:
        found: a stop string came; nothing passes any more.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The part of the text so far that may be shown and was not shown yet."""
        if self.found:
            return ""
        pending = self._held + text
        # The first to be complete counts, so that it does not matter how the text is cut.
        complete = [(at + len(stop), at) for stop in self._stop if (at := pending.find(stop)) >= 0]
        if complete:
            self.found = True
            self._held = ""
            return pending[: min(complete)[1]]
        keep = max((_overlap(pending, stop) for stop in self._stop), default=0)
        self._held = pending[len(pending) - keep :]
        return pending[: len(pending) - keep]

    def flush(self) -> str:
        """What was held back and is text after all, because nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that is a beginning of ``stop``."""
    longest = min(len(text), len(stop) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(stop[:size])), 0)
