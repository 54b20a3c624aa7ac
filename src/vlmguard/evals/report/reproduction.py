"""What a reader needs to repeat a run, as one list."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from vlmguard.evals.types import Results


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One line: what kind of thing, its name, its value."""

    kind: str
    name: str
    value: str


def facts(results: Results) -> tuple[Fact, ...]:
    """Judges, data hashes, seeds, versions and settings, in this order."""
    return tuple(_facts(results))


def _facts(results: Results) -> Iterator[Fact]:
    for judge in dict.fromkeys(cell.judge for cell in results.cells):
        yield Fact(kind="judge", name=judge, value="")
    for name, digest in results.dataset_hashes.items():
        yield Fact(kind="data, SHA-256", name=name, value=digest)
    for name, seed in results.seeds.items():
        yield Fact(kind="seed", name=name, value=str(seed))
    for name, version in results.versions.items():
        yield Fact(kind="version", name=name, value=version)
    for name, value in results.settings.items():
        if value is not None:
            yield Fact(kind="setting", name=name, value=_told(value))


def _told(value: object) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return json.dumps(value, ensure_ascii=False, default=str)
