"""Runs the pipeline over all seeds on this machine: bounded, resumable, stoppable."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.data import image_ref
from vlmguard.errors import (
    ConfigError,
    EngineError,
    EngineRejected,
    InputError,
    MissingExtra,
    PerceptionError,
    RunStopped,
    UnsupportedCapability,
)
from vlmguard.images import load_images
from vlmguard.synthesis.calls import Answers, Stopped, StoredEngine, Watcher
from vlmguard.synthesis.feed import Placed, place, walk
from vlmguard.synthesis.outcomes import MODEL_STAGES, Outcome, Stage
from vlmguard.synthesis.pipeline import PROMPT_HASHES, Cast, Recipe, process
from vlmguard.synthesis.players import Player
from vlmguard.synthesis.progress import Progress
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.sources import Source
from vlmguard.synthesis.store import Store, translated
from vlmguard.types import Image

_UNUSABLE_TO_ALL = (401, 403, 404)
"""HTTP statuses that every further call would meet as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """How a run goes about it; nothing here changes an outcome.

    Attributes:
        concurrency: seeds in work at once.
        limit: seeds to look at; ``None`` is all.
        allow_remote: fetch pictures from http(s) URLs.
        max_failure_rate: 0..1, of the last ``failure_window`` seeds; above it the run stops.
        failure_window: seeds that the rate is taken over.
        grace_s: seconds that calls in flight may take to end when the run is stopped. As long as
            an ``openai:`` engine waits for an answer, unless its spec says otherwise.
    """

    concurrency: int = 16
    limit: int | None = None
    allow_remote: bool = False
    max_failure_rate: float = 0.5
    failure_window: int = 50
    grace_s: float = 60.0

    def __post_init__(self) -> None:
        for name in ("concurrency", "limit", "failure_window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be 1 or more, not {value}")


class LocalRunner:
    """One run over all sources.

    Args:
        sources: of seeds.
        players: role (``reasoner``, ``target``, ``judge``) → model.
        recipe: how seeds are turned into records.
        store: where answers and outcomes are kept.
        folder: of the dataset; pictures are put into it.
        settings: concurrency and the like.

    Attributes:
        progress: read it while the run goes on.
        settings: as given.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        players: Mapping[str, Player],
        recipe: Recipe,
        store: Store,
        folder: Path,
        settings: RunSettings,
    ) -> None:
        self._sources = sources
        self._recipe = recipe
        self._store = store
        self._folder = folder
        self.settings = settings
        self.progress = Progress()
        self._key = recipe_key(players, recipe)
        self._casts = cast_all(players, store, self.progress)
        self._failures: deque[bool] = deque(maxlen=settings.failure_window)
        self._in_work: dict[int, str] = {}
        self._tasks: list[asyncio.Task[Any]] = []
        self._stop_reason: str | None = None

    async def run(self) -> int | None:
        """Go through all seeds.

        Returns:
            How many seeds there are; ``None`` when `stop` ended the run before that was known.

        Raises:
            RunStopped: too many seeds failed.
            StoreError: an outcome could not be stored.
            ConfigError: something that every seed would meet.
        """
        queue: asyncio.Queue[Placed | None] = asyncio.Queue(self.settings.concurrency)
        feeder = asyncio.create_task(self._feed(queue))
        workers = [asyncio.create_task(self._work(queue)) for _ in range(self.settings.concurrency)]
        self._tasks = [feeder, *workers]
        try:
            await asyncio.gather(*self._tasks)
        except asyncio.CancelledError:
            if not self.progress.stopping:
                raise
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._stop_reason is not None:
            raise RunStopped(self._stop_reason)
        if self.progress.stopping:
            return None
        total = feeder.result()
        if self.settings.limit is None:
            self._store.forget_from(total)
        return total

    def stop(self) -> None:
        """Make no new calls; wait a while for those in flight. The second time, do not wait."""
        if self.progress.stopping:
            self._abandon()
            return
        self.progress.stopping = True
        asyncio.get_running_loop().call_later(self.settings.grace_s, self._abandon)
        if self._tasks:
            self._tasks[0].cancel()

    def _abandon(self) -> None:
        """End now, whatever is in flight."""
        self.progress.abandoned = self.progress.abandoned or self.progress.asking
        for task in self._tasks:
            task.cancel()

    async def _feed(self, queue: asyncio.Queue[Placed | None]) -> int:
        """Put every seed that has no outcome yet into the queue; tell how many there are."""
        total = 0
        try:
            placed = place(self._sources, self._key, self.settings.limit)
            async for step in walk(placed, self._store):
                total = step.placed.position + 1
                if step.done is not None:
                    self.progress.resume(step.done)
                    continue
                await queue.put(step.placed)
            self.progress.total = total
        except asyncio.CancelledError:
            if not self.progress.stopping:
                raise
        for _ in range(self.settings.concurrency):
            await queue.put(None)
        return total

    async def _work(self, queue: asyncio.Queue[Placed | None]) -> None:
        while (item := await queue.get()) is not None:
            if self.progress.stopping:
                continue
            # Whether its id was taken must be asked before anything is awaited: then all earlier
            # seeds are either in work or stored.
            taken = self._taken(item)
            self._in_work[item.position] = item.seed.id
            try:
                outcome = taken or await self._outcome(item.seed)
                await self._store.keep_outcome(item.position, item.key, item.seed.id, outcome)
            except Stopped:
                continue
            finally:
                del self._in_work[item.position]
            self.progress.ended(outcome)
            self._watch_failures(outcome)

    def _taken(self, item: Placed) -> Outcome | None:
        """An outcome for a seed whose id an earlier one has."""
        positions = [at for at, seed in self._in_work.items() if seed == item.seed.id]
        stored = self._store.positions_of(item.seed.id, before=item.position)
        positions += [at for at in stored if at not in self._in_work]
        if not positions:
            return None
        return Outcome(
            kind="aside",
            stage="read",
            reason=f"the id {item.seed.id!r} stands twice: seed {min(positions) + 1} has it, too",
        )

    async def _outcome(self, seed: Seed) -> Outcome:
        if seed.problem is not None:
            return Outcome(kind="aside", stage="read", reason=seed.problem)
        try:
            images: tuple[Image, ...] = ()
            if seed.images:
                images = await load_images(seed.images, allow_remote=self.settings.allow_remote)
        except InputError as error:
            return Outcome(kind="aside", stage="read", reason=f"a picture is missing: {error}")
        try:
            outcome = await self._process(seed, images)
        except (UnsupportedCapability, MissingExtra):
            raise  # every seed would meet it
        except EngineRejected as error:
            if error.status in _UNUSABLE_TO_ALL:
                raise
            return Outcome(kind="error", stage="read", reason=str(error))
        except (EngineError, PerceptionError) as error:
            return Outcome(kind="error", stage="read", reason=str(error))
        if outcome.record is not None and images:
            await asyncio.to_thread(keep_images, self._folder, images)
        return outcome

    async def _process(self, seed: Seed, images: tuple[Image, ...]) -> Outcome:
        """Take a seed through the stages; other runners do it elsewhere."""
        return await process(seed, images, self._casts, self._recipe)

    def _watch_failures(self, outcome: Outcome) -> None:
        unusable = outcome.kind == "error" or outcome.trail.raw is not None
        self._failures.append(unusable)
        failed, seen = sum(self._failures), len(self._failures)
        if seen < self.settings.failure_window or self._stop_reason is not None:
            return
        if failed > self.settings.max_failure_rate * seen:
            self._stop_reason = (
                f"stopped: {failed} of the last {seen} seeds failed, the last one with: "
                f"{outcome.reason}. What was done is stored: put it right and run the same command "
                "again"
            )
            self.stop()


def recipe_key(players: Mapping[str, Player], recipe: Recipe) -> str:
    """Changes when anything that decides about outcomes does: models, prompts, parameters."""
    models = sorted((role, player.identity) for role, player in players.items())
    told = repr((models, sorted(PROMPT_HASHES.items()), recipe))
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def keep_images(folder: Path, images: Sequence[Image]) -> None:
    """Put pictures where the dataset's records will look for them, each whole or not at all.

    Raises:
        StoreError: the disk is full, or may not be written.
    """
    for image in images:
        path = folder / image_ref(image).path
        with translated(path):
            if path.exists() and path.stat().st_size == len(image.data):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
            try:
                part.write_bytes(image.data)
                part.replace(path)
            finally:
                part.unlink(missing_ok=True)


_PROMPTS_OF: Mapping[tuple[Stage, str], str] = {
    ("hindsight", "reasoner"): PROMPT_HASHES["hindsight"],
    ("causal", "reasoner"): PROMPT_HASHES["causal"],
    ("optimize", "reasoner"): PROMPT_HASHES["optimize"],
    ("verify", "judge"): PROMPT_HASHES["judge"],
    ("sample", "judge"): PROMPT_HASHES["judge"],
}


def cast_all(players: Mapping[str, Player], store: Answers, watcher: Watcher) -> dict[Stage, Cast]:
    """Every stage's cast, each model behind the store."""

    def stored(stage: Stage, role: str) -> StoredEngine | None:
        player = players.get(role)
        if player is None:
            return None
        return StoredEngine(
            player.engine,
            model=player.identity,
            stage=stage,
            prompt=_PROMPTS_OF.get((stage, role), ""),
            store=store,
            watcher=watcher,
        )

    casts: dict[Stage, Cast] = {}
    for stage in MODEL_STAGES:
        reasoner = stored(stage, "reasoner")
        assert reasoner is not None
        casts[stage] = Cast(
            reasoner=reasoner, target=stored(stage, "target"), judge=stored(stage, "judge")
        )
    return casts
