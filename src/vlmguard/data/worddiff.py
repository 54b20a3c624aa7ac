"""What changed between two texts, word by word."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

_TOKEN = re.compile(r"\s+|\w+|[^\w\s]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of words. Removed ones stand before added ones."""

    kind: Literal["same", "removed", "added"]
    text: str


def word_diff(before: str, after: str) -> Iterator[Piece]:
    """The pieces of both texts: same and removed give ``before``, same and added give ``after``."""
    old, new = _TOKEN.findall(before), _TOKEN.findall(after)
    # Blanks and punctuation alone are no common ground: a lone "." between two rewritten halves
    # makes a diff harder to read, not easier.
    matcher = SequenceMatcher(lambda token: not token[0].isalnum(), old, new, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag == "equal":
            yield Piece(kind="same", text="".join(old[a:b]))
            continue
        if a < b:
            yield Piece(kind="removed", text="".join(old[a:b]))
        if c < d:
            yield Piece(kind="added", text="".join(new[c:d]))
