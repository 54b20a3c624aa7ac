"""Seeds with their place and key, compared with what is stored."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

from vlmguard.synthesis.rows import Done
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.sources import Source
from vlmguard.synthesis.store import Store

_AT_ONCE = 64  # seeds that are read in one go; they may hold pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A seed at its place.

    Attributes:
        position: over all sources, from 0.
        key: changes when the seed or anything that decides about it does.
        seed: itself.
    """

    position: int
    key: str
    seed: Seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One place in the sources.

    Attributes:
        placed: the seed there.
        done: what is stored, when an earlier run finished this very seed.
    """

    placed: Placed
    done: Done | None


def place(sources: Sequence[Source], recipe_key: str, limit: int | None) -> Iterator[Placed]:
    """All seeds of all sources, in order.

    Raises:
        DataError: a source is not what it was taken for.
    """
    seeds = (seed for source in sources for seed in source.seeds())
    for position, seed in enumerate(islice(seeds, limit)):
        key = hashlib.sha256(f"{recipe_key} {seed.fingerprint()}".encode()).hexdigest()[:32]
        yield Placed(position=position, key=key, seed=seed)


async def walk(placed: Iterator[Placed], store: Store) -> AsyncIterator[Step]:
    """Sources and store side by side. Reading runs in a thread; errors are tried again."""
    done = store.done()
    ahead = next(done, None)
    while chunk := await asyncio.to_thread(lambda: list(islice(placed, _AT_ONCE))):
        for item in chunk:
            while ahead is not None and ahead.position < item.position:
                ahead = next(done, None)
            yield Step(placed=item, done=_same(item, ahead))


def _same(item: Placed, done: Done | None) -> Done | None:
    if done is None or done.position != item.position or done.key != item.key:
        return None
    return None if done.kind == "error" else done
