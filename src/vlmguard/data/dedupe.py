"""Records that say the same twice.

Two records are duplicates when the rewriter would read nearly the same: nearly the same words
(prompt, earlier messages, text in pictures) *and* nearly the same pictures. One picture with
another question, or one question with another picture, is no duplicate; and near records of one
family are contrasts, which is what families are for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vlmguard.data.check import input_key
from vlmguard.data.found import Found
from vlmguard.data.matching import NearIndex, grams, words
from vlmguard.data.pictures import load_picture
from vlmguard.data.records import TrainingRecord
from vlmguard.errors import DataError, MissingExtra
from vlmguard.images import decode

SIMILARITY = 0.8
"""Jaccard similarity of word 3-grams from which texts count as nearly the same."""
PICTURE_BITS = 4
"""Bits of 64 in which the perceptual hashes of nearly the same pictures may differ."""


class DuplicateKind(StrEnum):
    """How alike two records are."""

    EXACT = "exact"
    NEAR = "near"


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A later record that repeats an earlier one.

    Attributes:
        kind: exact, or near.
        similarity: of the words, 0..1.
        first, later: ids.
        first_text, later_text: for the reader.
        contradiction: their verdicts differ.
    """

    kind: DuplicateKind
    similarity: float
    first: str
    later: str
    first_text: str
    later_text: str
    contradiction: bool

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "kind": self.kind,
            "similarity": round(self.similarity, 3),
            "first": self.first,
            "later": self.later,
            "first_text": self.first_text,
            "later_text": self.later_text,
            "contradiction": self.contradiction,
        }


@dataclass(slots=True)
class DedupeReport:
    """What was found.

    Attributes:
        records: seen.
        duplicates: the later ones, each with the earlier record that is most alike.
        contrasts: near pairs within one family, which are kept.
        pictures: near pairs of different picture files, whatever is asked of them.
    """

    records: int = 0
    duplicates: list[Duplicate] = field(default_factory=list)
    contrasts: int = 0
    pictures: int = 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values: the output of ``vlmguard data dedupe --json``."""
        return {
            "records": self.records,
            "duplicates": [found.to_json() for found in self.duplicates],
            "contrasts": self.contrasts,
            "picture_pairs": self.pictures,
        }


def find_duplicates(
    records: Iterable[Found],
    *,
    similarity: float = SIMILARITY,
    picture_bits: int = PICTURE_BITS,
    on_record: Callable[[], None] = lambda: None,
) -> DedupeReport:
    """Compare every record with all before it.

    Memory grows by about five kilobytes a record (measured: 100,000 records, 630 MB).

    Args:
        records: from `vlmguard.data.scan`.
        similarity: least Jaccard similarity of word 3-grams, 0..1.
        picture_bits: of 64, by which perceptual hashes may differ.
        on_record: called after each record.

    Raises:
        DataError: a wrong record, or a picture that cannot be read.
        MissingExtra: datasketch or imagehash is not installed.
    """
    finder = _Finder(similarity, picture_bits)
    for found in records:
        if isinstance(found.outcome, DataError):
            raise found.outcome
        finder.add(found, found.outcome)
        on_record()
    return finder.report


def without_duplicates(records: Iterable[Found], report: DedupeReport) -> Iterator[Found]:
    """The records that are to stay. Contradictions go like other duplicates: the first stays."""
    dropped = {found.later for found in report.duplicates}
    for found in records:
        if isinstance(found.outcome, DataError) or found.outcome.id not in dropped:
            yield found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """What is kept of a record."""

    id: str
    family: str
    verdict: str
    text: str
    labels: frozenset[str]
    pictures: tuple[int, ...]


class _Finder:
    def __init__(self, similarity: float, picture_bits: int) -> None:
        self.report = DedupeReport()
        self._bits = picture_bits
        self._near = NearIndex(similarity)
        self._inputs: dict[bytes, _Seen] = {}
        self._seen: list[_Seen] = []
        self._hashes = _PictureHashes(picture_bits)

    def add(self, found: Found, record: TrainingRecord) -> None:
        self.report.records += 1
        seen = _Seen(
            id=record.id,
            family=record.family,
            verdict=record.verdict,
            text=_text(record),
            labels=frozenset(label for e in record.evidence for label, _ in e.objects[:1]),
            pictures=tuple(self._hashes.of(found.root, record)),
        )
        self.report.pictures = self._hashes.pairs
        key = input_key(record)
        if first := self._inputs.get(key):
            self._tell(first, seen, DuplicateKind.EXACT, 1.0)
            return
        self._inputs[key] = seen
        members = grams(words(seen.text), 3)
        self._compare(seen, members)
        self._near.add(len(self._seen), members)
        self._seen.append(seen)

    def _compare(self, seen: _Seen, members: frozenset[int]) -> None:
        for number, similarity in self._near.similar(members):
            first = self._seen[number]
            if not self._alike(first, seen):
                continue
            if first.family == seen.family:
                self.report.contrasts += 1
                continue
            self._tell(first, seen, DuplicateKind.NEAR, similarity)
            return

    def _alike(self, one: _Seen, other: _Seen) -> bool:
        """Whether the pictures are nearly the same, or the likeliest object in them is."""
        if one.pictures or other.pictures:
            return len(one.pictures) == len(other.pictures) and all(
                (a ^ b).bit_count() <= self._bits
                for a, b in zip(one.pictures, other.pictures, strict=True)
            )
        return one.labels == other.labels

    def _tell(self, first: _Seen, later: _Seen, kind: DuplicateKind, similarity: float) -> None:
        self.report.duplicates.append(
            Duplicate(
                kind=kind,
                similarity=similarity,
                first=first.id,
                later=later.id,
                first_text=first.text,
                later_text=later.text,
                contradiction=first.verdict != later.verdict,
            )
        )


def _text(record: TrainingRecord) -> str:
    """All words that the rewriter reads."""
    parts = [turn.text for turn in record.earlier]
    parts += [seen.words() for seen in record.evidence if seen.words()]
    return "\n".join([*parts, record.prompt])


class _PictureHashes:
    """Perceptual hashes of pictures, each file read once."""

    def __init__(self, bits: int) -> None:
        self._bits = bits
        self._known: dict[bytes, int] = {}
        # Hashes that differ in few bits agree in at least one of bits + 1 pieces.
        self._pieces: dict[tuple[int, int], list[int]] = {}
        self._order: list[int] = []
        self.pairs = 0

    def of(self, root: Path, record: TrainingRecord) -> Iterator[int]:
        for ref in record.images:
            key = bytes.fromhex(ref.sha256)
            if key not in self._known:
                image = load_picture(root, ref)
                value = _perceptual_hash(decode(image).frames[0])
                self._known[key] = value
                self._count_pairs(value)
            yield self._known[key]

    def _count_pairs(self, value: int) -> None:
        near: set[int] = set()
        width = -(-64 // (self._bits + 1))
        for place in range(self._bits + 1):
            piece = (place, value >> (place * width) & ((1 << width) - 1))
            bucket = self._pieces.setdefault(piece, [])
            near.update(n for n in bucket if (value ^ self._order[n]).bit_count() <= self._bits)
            bucket.append(len(self._order))
        self._order.append(value)
        self.pairs += len(near)


def _perceptual_hash(picture: Any) -> int:
    try:
        import imagehash  # noqa: PLC0415
    except ImportError:
        raise MissingExtra("comparing pictures", "synth") from None
    return int(str(imagehash.phash(picture)), 16)
