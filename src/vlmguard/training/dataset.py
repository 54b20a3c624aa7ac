"""From records on disk to examples: read, check, measure, balance. Nothing is lost silently."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmguard.data import Found, TrainingRecord, scan
from vlmguard.data.records import Split
from vlmguard.errors import ConfigError, DataError
from vlmguard.rewriting.metadata import DataFacts
from vlmguard.training.examples import Example
from vlmguard.training.recipe import DataRecipe

TOO_LONG = "longer than data.max_length"
_SHOWN = 5


class Unusable(Exception):  # noqa: N818  # not an error: the record is left out, and counted
    """A record that this model cannot be trained on; the message is the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A record, and the folder that its pictures' paths are relative to."""

    record: TrainingRecord
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A record that is not trained on.

    Attributes:
        record: its id.
        split: where it would have been.
        reason: the same words for all that are left out for it.
        detail: for people.
    """

    record: str
    split: Split
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Examples of each split.

    Attributes:
        train: after balancing, so that some may stand twice.
        validation, test: as they are.
        left_out: what was dropped.
        facts: for the adapter's metadata.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    left_out: tuple[LeftOut, ...]
    facts: DataFacts

    @property
    def tokens(self) -> int:
        """Of one epoch."""
        return sum(example.length for example in self.train)


@dataclass(slots=True)
class _Read:
    sources: dict[str, int] = field(default_factory=dict)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    records: list[Located] = field(default_factory=list)


def load_data(
    recipe: DataRecipe, to_example: Callable[[Located], Example], *, seed: int
) -> TrainingData:
    """Read what the recipe names and turn it into examples.

    Args:
        to_example: renders a record, or raises `Unusable`.
        seed: of balancing.

    Raises:
        DataError: a file or line is wrong.
        ConfigError: a split lacks a verdict, two records share an id, or a record is too long and
            the recipe says ``too_long: fail``.
    """
    read = _read(recipe)
    left_out: list[LeftOut] = []
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    for located in read.records:
        record = located.record
        try:
            if recipe.limit is not None and len(splits[record.split]) >= recipe.limit:
                raise Unusable("over data.limit")
            example = to_example(located)
            if example.length > recipe.max_length:
                raise Unusable(TOO_LONG, f"{example.length} tokens")
        except Unusable as why:
            reason, *detail = map(str, why.args)
            left_out.append(
                LeftOut(record=record.id, split=record.split, reason=reason, detail="".join(detail))
            )
        else:
            splits[record.split].append(example)
    _check_lengths(recipe, left_out)
    _check_verdicts(recipe, splits)
    facts = DataFacts(
        sources=read.sources,
        sha256=read.digest.hexdigest(),
        records={split: len(examples) for split, examples in splits.items()},
        dropped=dict(Counter(entry.reason for entry in left_out)),
    )
    train = splits["train"]
    if recipe.balance == "oversample":
        train = _oversampled(train, seed)
    return TrainingData(
        train=tuple(train),
        validation=tuple(splits["validation"]),
        test=tuple(splits["test"]),
        left_out=tuple(left_out),
        facts=facts,
    )


def _read(recipe: DataRecipe) -> _Read:
    read = _Read()
    seen: set[str] = set()
    for path in recipe.paths:
        before = len(read.records)
        for found in scan(path):
            record = _record(found)
            if record.id in seen:
                raise ConfigError(f"{path}: the id {record.id!r} stands twice in the data")
            seen.add(record.id)
            read.digest.update(record.model_dump_json().encode() + b"\n")
            read.records.append(Located(record=record, root=found.root))
        read.sources[path.name] = len(read.records) - before
    return read


def _record(found: Found) -> TrainingRecord:
    if isinstance(found.outcome, DataError):
        raise found.outcome
    return found.outcome


def _check_lengths(recipe: DataRecipe, left_out: Sequence[LeftOut]) -> None:
    too_long = [entry for entry in left_out if entry.reason == TOO_LONG]
    if too_long and recipe.too_long == "fail":
        shown = ", ".join(f"{entry.record} ({entry.detail})" for entry in too_long[:_SHOWN])
        more = f" and {len(too_long) - _SHOWN} more" if len(too_long) > _SHOWN else ""
        raise ConfigError(
            f"{len(too_long)} records are longer than data.max_length={recipe.max_length}: "
            f"{shown}{more}. Raise it, or set data.too_long: drop"
        )


def _check_verdicts(recipe: DataRecipe, splits: dict[Split, list[Example]]) -> None:
    names = ", ".join(str(path) for path in recipe.paths)
    for split in ("train", "validation"):
        examples = splits[split]
        risky = sum(example.risky for example in examples)
        if not 0 < risky < len(examples):
            raise ConfigError(
                f"the {split} split of {names} has {risky} risky and {len(examples) - risky} "
                "harmless records; there must be some of both"
            )


def _oversampled(examples: Iterable[Example], seed: int) -> list[Example]:
    """With random records of the rarer verdict repeated until both are equally frequent."""
    by_verdict: dict[bool, list[Example]] = {True: [], False: []}
    for example in examples:
        by_verdict[example.risky].append(example)
    rarer, commoner = sorted(by_verdict.values(), key=len)
    whole, rest = divmod(len(commoner), len(rarer))
    extra = random.Random(seed).sample(rarer, rest)  # noqa: S311  # not for secrets
    return [*commoner, *(rarer * whole), *extra]
