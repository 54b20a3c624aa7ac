"""A benchmark that was opened: its samples, what is there of it, and a hash of what was read."""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from vlmguard.errors import DataError, VLMGuardError
from vlmguard.evals.benchmarks.base import Facts, Loader
from vlmguard.evals.benchmarks.pictures import DrawnPicture, FilePicture, StoredPicture
from vlmguard.evals.described import DescribedPicture
from vlmguard.evals.types import Picture, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """How much of a subset is there.

    Attributes:
        subset: its name; ``""`` where there is one part only.
        found: samples.
        published: samples of the published set; ``None`` where that is not known, or where the
            spec asks for a part of it.
    """

    subset: str
    found: int
    published: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What is there of a benchmark, and what is not.

    Attributes:
        name, spec: the variant, and what was asked for.
        parts: counts per subset.
        kinds: kind → samples.
        pictures: different pictures that the samples name.
        drawn: of them, those that are drawn because there is no file.
        missing: of them, those without a file, by name.
        problem: why the data cannot be read (further); ``None`` when they can.
        notes: what a reader should know, e.g. that it is the tiny list.
        get: how to get what is missing, in a sentence.
        fingerprint: of what was read; ``None`` with a problem.
    """

    name: str
    spec: str
    parts: tuple[Part, ...]
    kinds: Mapping[str, int]
    pictures: int
    drawn: int
    missing: tuple[str, ...]
    problem: str | None
    notes: tuple[str, ...]
    get: str
    fingerprint: str | None

    @property
    def ready(self) -> bool:
        """Whether every sample that is there can be run."""
        return self.problem is None and not self.missing and any(p.found for p in self.parts)

    @property
    def complete(self) -> bool:
        """Ready, and all of the published set."""
        return self.ready and all(part.published in (None, part.found) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "name": self.name,
            "spec": self.spec,
            "ready": self.ready,
            "complete": self.complete,
            "parts": [
                {"subset": part.subset, "found": part.found, "published": part.published}
                for part in self.parts
            ],
            "kinds": dict(self.kinds),
            "pictures": self.pictures,
            "drawn": self.drawn,
            "missing": list(self.missing),
            "problem": self.problem,
            "notes": list(self.notes),
            "get": self.get,
            "fingerprint": self.fingerprint,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedBenchmark:
    """A `vlmguard.evals.types.Benchmark` over data in the public layout, or a part of it.

    Attributes:
        spec: what opens it again.
        name: the variant's name.
        facts: what is published about it.
        loader: reads its layout.
        subsets: only these; all when empty.
        limit: only the first so many.
        sample: a random choice of so many, in the benchmark's order. Which ones depends on the
            seed and the ids alone, so that a set that grows keeps most of its choice.
        seed: of that choice.
    """

    spec: str
    name: str
    facts: Facts
    loader: Loader
    subsets: frozenset[str] = frozenset()
    limit: int | None = None
    sample: int | None = None
    seed: int = 0

    def samples(self) -> Iterator[Sample]:
        """The samples, in the benchmark's order; lazily, but for a random choice.

        Raises:
            DataError: a file is missing or damaged; says what and how to get it.
        """
        wanted = (
            sample
            for sample in self.loader.samples()
            if not self.subsets or sample.subset in self.subsets
        )
        return islice(self._chosen(wanted), self.limit)

    def fingerprint(self) -> str:
        """SHA-256 over the data files and over the chosen samples with their pictures.

        Raises:
            DataError: a file is missing or damaged.
        """
        digest = hashlib.sha256()
        for path in self.loader.files():
            digest.update(_sha256_of_file(path))
        for sample in self.samples():
            digest.update(f"{sample.id}\0{sample.prompt}\0".encode())
            for picture in sample.pictures:
                digest.update(_sha256_of_picture(picture))
        return digest.hexdigest()

    def check(self) -> Check:
        """Read everything but the pictures' pixels, and tell what is there. Never raises."""
        subsets: Counter[str] = Counter()
        kinds: Counter[str] = Counter()
        pictures: dict[Picture, None] = {}
        stored = 0
        ids: set[str] = set()
        problem: str | None = None
        notes: tuple[str, ...] = ()
        fingerprint = None
        try:
            for sample in self.samples():
                if sample.id in ids:
                    problem = problem or f"the id {sample.id!r} stands twice"
                ids.add(sample.id)
                subsets[sample.subset] += 1
                kinds[sample.kind] += 1
                for picture in sample.pictures:
                    if isinstance(picture, StoredPicture):
                        stored += 1  # not held: a table of them is large
                    else:
                        pictures[picture] = None
            notes = tuple(self.loader.notes())
            fingerprint = self.fingerprint() if problem is None else None
        except VLMGuardError as error:
            problem = str(error)
        missing = [p for p in pictures if isinstance(p, FilePicture) and p.path is None]
        return Check(
            name=self.name,
            spec=self.spec,
            parts=self._parts(subsets),
            kinds=dict(kinds),
            pictures=len(pictures) + stored,
            drawn=sum(isinstance(picture, DrawnPicture) for picture in pictures),
            missing=tuple(picture.name for picture in missing),
            problem=problem,
            notes=notes,
            get=missing[0].fix if missing else f"{self.facts.get}.",
            fingerprint=fingerprint,
        )

    def _parts(self, found: Counter[str]) -> tuple[Part, ...]:
        whole = self.limit is None and self.sample is None
        names = [name for name in self.facts.counts if not self.subsets or name in self.subsets]
        names += sorted(found.keys() - set(names))
        return tuple(
            Part(
                subset=name,
                found=found[name],
                published=self.facts.counts.get(name) if whole else None,
            )
            for name in names
        )

    def _chosen(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        if self.sample is None:
            return samples
        picked = heapq.nsmallest(
            self.sample, enumerate(samples), key=lambda pair: self._rank(pair[1].id)
        )
        return (sample for _, sample in sorted(picked, key=lambda pair: pair[0]))

    def _rank(self, sample_id: str) -> bytes:
        text = f"{self.seed}\0{sample_id}".encode()
        return hashlib.sha256(text).digest()


def _sha256_of_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def _sha256_of_picture(picture: Picture) -> bytes:
    """Of what the picture is made from; of a missing one, its name."""
    if isinstance(picture, FilePicture):
        path = picture.path
        return _sha256_of_file(path) if path else hashlib.sha256(picture.name.encode()).digest()
    if isinstance(picture, StoredPicture):
        return hashlib.sha256(picture.data).digest()
    if isinstance(picture, DrawnPicture):
        return hashlib.sha256(f"drawn {picture.text}".encode()).digest()
    if isinstance(picture, DescribedPicture):
        return hashlib.sha256(f"described {picture.description}".encode()).digest()
    return bytes.fromhex(picture.load().sha256)
