"""From records on disk to examples: read, check, measure, balance. Nothing is lost silently."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vlmguard.data import TrainingRecord, scan
from vlmguard.data.records import Split
from vlmguard.data.surface import vary
from vlmguard.errors import ConfigError, DataError
from vlmguard.rewriting.metadata import DataFacts
from vlmguard.training.examples import Example
from vlmguard.training.recipe import DataRecipe

TOO_LONG = "longer than data.max_length"
OVER_LIMIT = "over data.limit"
_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """A record, and the folder that its pictures' paths are relative to."""

    record: TrainingRecord
    root: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """Why this model cannot be trained on a record."""

    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A record that is not trained on.

    Attributes:
        record: its id.
        split: where it would have been.
        reason: the same words for all that are left out for it.
        detail: about this one.
    """

    record: str
    split: Split
    reason: str
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """What the recipe's paths hold.

    Attributes:
        located: in the order of the files.
        left_out: those over ``data.limit``.
        sources: name → number of records.
        sha256: over all that was read.
    """

    located: tuple[Located, ...]
    left_out: tuple[LeftOut, ...]
    sources: dict[str, int]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingData:
    """Examples of each split.

    Attributes:
        train: with variants, and after balancing, so that some may stand twice.
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


def read(recipe: DataRecipe) -> Records:
    """Read what the recipe names.

    Raises:
        DataError: a file or line is wrong.
        ConfigError: two records share an id.
    """
    digest = hashlib.sha256()
    sources: dict[str, int] = {}
    located: list[Located] = []
    left_out: list[LeftOut] = []
    seen: set[str] = set()
    taken: Counter[Split] = Counter()
    for path in recipe.paths:
        before = len(seen)
        for found in scan(path):
            if isinstance(found.outcome, DataError):
                raise found.outcome
            record = found.outcome
            if record.id in seen:
                raise ConfigError(f"{path}: the id {record.id!r} stands twice in the data")
            seen.add(record.id)
            digest.update(record.model_dump_json().encode() + b"\n")
            if recipe.limit is not None and taken[record.split] >= recipe.limit:
                left_out.append(_left_out(record, Unusable(reason=OVER_LIMIT)))
                continue
            taken[record.split] += 1
            located.append(Located(record=record, root=found.root))
        sources[path.resolve().name] = len(seen) - before
    return Records(
        located=tuple(located),
        left_out=tuple(left_out),
        sources=sources,
        sha256=digest.hexdigest(),
    )


def make_examples(
    records: Records,
    recipe: DataRecipe,
    to_example: Callable[[Located], Example | Unusable],
    *,
    seed: int,
) -> TrainingData:
    """Turn records into examples.

    Args:
        records: see `read`.
        recipe: how long they may be, and how the verdicts are balanced.
        to_example: see `vlmguard.training.materials.ExampleMaker`.
        seed: of balancing.

    Raises:
        ConfigError: a split lacks a verdict, or a record is too long and the recipe says
            ``too_long: fail``.
    """
    left_out = list(records.left_out)
    splits: dict[Split, list[Example]] = {"train": [], "validation": [], "test": []}
    variants: list[Example] = []
    for located in records.located:
        made = to_example(located)
        if isinstance(made, Example) and made.length > recipe.max_length:
            made = Unusable(reason=TOO_LONG, detail=f"{made.length} tokens")
        if isinstance(made, Unusable):
            left_out.append(_left_out(located.record, made))
        else:
            splits[located.record.split].append(made)
            if located.record.split == "train":
                variants += _variants(located, recipe, to_example, seed)
    _check_lengths(recipe, left_out)
    _check_verdicts(recipe, splits)
    facts = DataFacts(
        sources=records.sources,
        sha256=records.sha256,
        records={split: len(examples) for split, examples in splits.items()},
        variants=len(variants),
        dropped=dict(Counter(entry.reason for entry in left_out)),
    )
    train = [*splits["train"], *variants]
    if recipe.balance == "oversample":
        train = _oversampled(train, seed)
    return TrainingData(
        train=tuple(train),
        validation=tuple(splits["validation"]),
        test=tuple(splits["test"]),
        left_out=tuple(left_out),
        facts=facts,
    )


def _variants(
    located: Located,
    recipe: DataRecipe,
    to_example: Callable[[Located], Example | Unusable],
    seed: int,
) -> Iterator[Example]:
    """Other surfaces of a record, trained on for their verdict; those that are too long are not."""
    # A text seeds by its hash, so a record has the same variants whatever stands beside it.
    chance = random.Random(f"{seed} {located.record.id}")  # noqa: S311  (not for secrets)
    for _ in range(recipe.variants):
        made = to_example(replace(located, record=vary(located.record, chance)))
        if isinstance(made, Example) and made.length <= recipe.max_length:
            yield made.of_verdict()


def _left_out(record: TrainingRecord, why: Unusable) -> LeftOut:
    return LeftOut(record=record.id, split=record.split, reason=why.reason, detail=why.detail)


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
                "harmless records that can be used; there must be some of both"
            )


def _oversampled(examples: Sequence[Example], seed: int) -> list[Example]:
    """With random records of the rarer verdict repeated until both are equally frequent."""
    by_verdict: dict[bool, list[Example]] = {True: [], False: []}
    for example in examples:
        by_verdict[example.risky].append(example)
    rarer, commoner = sorted(by_verdict.values(), key=len)
    whole, rest = divmod(len(commoner), len(rarer))
    extra = random.Random(seed).sample(rarer, rest)  # noqa: S311  (not for secrets)
    return [*commoner, *(rarer * whole), *extra]
