"""Which writing system a text is in: enough to notice an answer in another language's script."""

from __future__ import annotations

import unicodedata
from collections import Counter

_FAMILIES = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "FULLWIDTH": "LATIN", "FEMININE": "LATIN",
             "MASCULINE": "LATIN", "MICRO": "GREEK"}  # fmt: skip
_FEWEST_LETTERS = 8
_LONGEST = 2000  # characters that are looked at


def script(text: str) -> str | None:
    """The writing system of most letters, e.g. ``"LATIN"``, ``"CJK"``, ``"ARABIC"``.

    Returns:
        ``None`` for fewer than eight letters, or when none has the majority.
    """
    letters = [char for char in text[:_LONGEST] if char.isalpha()]
    if len(letters) < _FEWEST_LETTERS:
        return None
    names = (unicodedata.name(char, "UNKNOWN").split()[0] for char in letters)
    (name, most), *_ = Counter(_FAMILIES.get(name, name) for name in names).most_common(1)
    return name if 2 * most > len(letters) else None


def differs(text: str, wanted: str | None) -> bool:
    """Whether the text is clearly in another script than ``wanted`` (``None`` agrees with all)."""
    found = script(text)
    return found is not None and wanted is not None and found != wanted
