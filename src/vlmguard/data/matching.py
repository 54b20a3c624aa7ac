"""When two texts are the same, nearly the same, or one inside the other.

Similarity is Jaccard's, over word 3-grams; MinHash with locality-sensitive hashing (datasketch,
extra ``synth``) finds the candidates, and each candidate is then computed exactly.
"""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from typing import Any

from vlmguard.errors import MissingExtra
from vlmguard.quoting import visible

# Writing without spaces: there, each character counts as a word.
_UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")
_PERMUTATIONS = 128


def words(text: str) -> list[str]:
    """The words of a text, in lower case, without punctuation or hidden characters."""
    return _WORD.findall(visible(text).casefold())


def grams(sequence: list[str], size: int) -> frozenset[int]:
    """Hashes of all runs of ``size`` words; of the whole, when it is shorter; empty for nothing."""
    if not sequence:
        return frozenset()
    last = max(1, len(sequence) - size + 1)
    return frozenset(_hash(" ".join(sequence[at : at + size])) for at in range(last))


@lru_cache(maxsize=100_000)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    """Shared members over all members, 0..1."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


class NearIndex:
    """Finds sets that are similar to one that was added before.

    Args:
        threshold: least similarity, 0..1.

    Raises:
        MissingExtra: datasketch is not installed.
    """

    def __init__(self, threshold: float) -> None:
        try:
            import datasketch  # noqa: PLC0415
        except ImportError:
            raise MissingExtra("finding near duplicates", "synth") from None
        self._threshold = threshold
        self._lsh: Any = datasketch.MinHashLSH(threshold=threshold, num_perm=_PERMUTATIONS)
        self._blank: Any = datasketch.MinHash(num_perm=_PERMUTATIONS, hashfunc=_low_bits)
        self._sets: dict[int, frozenset[int]] = {}

    def similar(self, members: frozenset[int]) -> list[tuple[int, float]]:
        """Numbers of the sets that are similar enough, with their similarity, best first."""
        if not members:
            return []
        scored = (
            (number, jaccard(members, self._sets[number]))
            for number in self._lsh.query(self._sketch(members))
        )
        enough = [(number, score) for number, score in scored if score >= self._threshold]
        return sorted(enough, key=lambda item: (-item[1], item[0]))

    def add(self, number: int, members: frozenset[int]) -> None:
        """Remember a set under a number; empty ones are similar to nothing."""
        if members:
            self._lsh.insert(number, self._sketch(members))
            self._sets[number] = members

    def _sketch(self, members: frozenset[int]) -> Any:
        sketch = self._blank.copy()
        sketch.update_batch(list(members))
        return sketch


def _low_bits(value: int) -> int:
    """MinHash permutes 32-bit numbers."""
    return value & 0xFFFFFFFF
