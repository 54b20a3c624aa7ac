"""Runs the pipeline on a Ray cluster, with the store, the pictures and the progress here.

Everything but the stages is the local runner's: the same walk over the sources, the same store, so
either runner goes on where the other one stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vlmguard.errors import RunStopped, StoreError
from vlmguard.synthesis.calls import Stopped
from vlmguard.synthesis.outcomes import Outcome
from vlmguard.synthesis.pipeline import Recipe
from vlmguard.synthesis.progress import Progress
from vlmguard.synthesis.ray_connection import Connecting, RayCluster
from vlmguard.synthesis.ray_messages import (
    Asked,
    Broken,
    Ended,
    Failed,
    Find,
    Plan,
    Question,
    Raised,
    RayModels,
    Reply,
    Task,
)
from vlmguard.synthesis.runner import LocalRunner, RunSettings
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.sources import Source
from vlmguard.synthesis.store import Store
from vlmguard.types import Image

_AHEAD = 2  # seeds given to the cluster for each that it has in work
_MOST_BUNDLED = 8


class RayRunner(LocalRunner):
    """One run over all sources, its stages on a Ray cluster.

    Pictures are read here and travel with their seed, so the cluster needs no shared disk.

    Args:
        sources: of seeds.
        models: of the run; each worker opens them, and they are never asked from here.
        recipe: how seeds are turned into records.
        store: where answers and outcomes are kept.
        folder: of the dataset; pictures are put into it.
        settings: ``concurrency`` is that of all workers together.
        cluster: which.

    Attributes:
        progress: read it while the run goes on.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        models: RayModels,
        recipe: Recipe,
        store: Store,
        folder: Path,
        settings: RunSettings,
        cluster: RayCluster,
    ) -> None:
        super().__init__(
            sources,
            players=models.open(),
            recipe=recipe,
            store=store,
            folder=folder,
            settings=replace(settings, concurrency=_AHEAD * settings.concurrency),
        )
        workers = min(cluster.workers, settings.concurrency)
        at_once = -(-settings.concurrency // workers)
        self._cluster = replace(cluster, workers=workers)
        self._plan = Plan(
            models=models.shared_by(workers),
            recipe=recipe,
            key=self._key,
            workers=workers,
            at_once=at_once,
            bundle=max(1, min(_MOST_BUNDLED, at_once // 4)),
            gpus=cluster.gpus,
        )
        self._hub: Any = None
        self._expected: dict[int, asyncio.Future[Outcome]] = {}
        self._outgoing: list[Task] = []
        self._given: set[asyncio.Future[Any]] = set()
        self._number = 0
        self._lost: Exception | None = None
        self._waiting: asyncio.Future[Any] | None = None  # for Ray, to start or to end

    async def run(self) -> int | None:
        """Go through all seeds; see `LocalRunner.run`.

        Raises:
            MissingExtra: Ray is not installed.
            ConfigError: there is no such cluster, it is too small, or its version is another one.
            RunStopped: too many seeds failed, or the cluster was lost.
        """
        connecting = Connecting(self._cluster)
        self._waiting = asyncio.ensure_future(self._begin(connecting))
        try:
            if not await _unless_cancelled(self._waiting, self.progress):
                return None
            pump = asyncio.create_task(self._pump())
            try:
                return await super().run()
            finally:
                pump.cancel()
                await asyncio.gather(pump, return_exceptions=True)
        finally:
            self._waiting = asyncio.ensure_future(connecting.close())
            await _unless_cancelled(self._waiting, self.progress)

    async def _begin(self, connecting: Connecting) -> None:
        connection = await connecting.connection()
        self._hub = await asyncio.to_thread(connection.start_hub)
        await self._hub.start.remote(self._plan)

    def stop(self) -> None:
        """As `LocalRunner.stop`; waits neither for Ray to start nor, the second time, to end.

        Nor for seeds without a call in flight: what is known of them is stored, and their outcomes
        would have to come a long way.
        """
        again = self.progress.stopping
        super().stop()
        if self._waiting is not None and (again or not self._tasks):
            self._waiting.cancel()
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self.progress.stopping and not self.progress.asking:
            self._abandon()

    async def _process(self, seed: Seed, images: tuple[Image, ...]) -> Outcome:
        """Give the seed to the cluster, and wait for its outcome."""
        if self._lost is not None:
            raise self._lost
        loop = asyncio.get_running_loop()
        self._number += 1
        number = self._number
        expected: asyncio.Future[Outcome] = loop.create_future()
        self._expected[number] = expected
        # The pictures are loaded: what the seed says about where they are is of no use elsewhere.
        self._outgoing.append(Task(number=number, seed=replace(seed, images=()), images=images))
        if len(self._outgoing) == 1:
            loop.call_soon(self._give)
        try:
            return await expected
        finally:
            del self._expected[number]

    def _give(self) -> None:
        tasks, self._outgoing = self._outgoing, []
        given = asyncio.ensure_future(_awaited(self._hub.give.remote(tasks)))
        self._given.add(given)
        given.add_done_callback(self._gave)

    def _gave(self, given: asyncio.Future[Any]) -> None:
        self._given.discard(given)
        if not given.cancelled() and (error := given.exception()) is not None:
            self._lose(str(error))

    async def _pump(self) -> None:
        """Exchange messages with the hub, until cancelled."""
        replies: dict[int, tuple[Reply, ...]] = {}
        try:
            while True:
                messages = await self._hub.exchange.remote(replies)
                asked = [message for message in messages if isinstance(message, Asked)]
                answered = await asyncio.gather(*map(self._answer_all, asked))
                replies = {one.number: reply for one, reply in zip(asked, answered, strict=True)}
                for message in messages:
                    if isinstance(message, Ended):
                        self._end(message)
                    elif isinstance(message, Broken):
                        self._lose(message.message)
        except asyncio.CancelledError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, nobody may wait for ever
            self._lose(str(error))

    async def _answer_all(self, asked: Asked) -> tuple[Reply, ...]:
        return tuple(await asyncio.gather(*map(self._answer, asked.questions)))

    async def _answer(self, question: Question) -> Reply:
        if isinstance(question, Failed):
            self.progress.failed()
            self._end_when_idle()
            return None
        call = question.call
        if isinstance(question, Find):
            known = self._store.answer(call.key)
            if known is not None:
                self.progress.called(call.stage, call.model, known.usage, stored=True)
            elif self.progress.stopping:
                return Raised.by(Stopped())
            else:
                self.progress.asked()
            return known
        try:
            await self._store.keep_answer(call, question.completion)
        except StoreError as error:
            return Raised.by(error)  # upon which `Failed` will come
        usage = question.completion.usage
        self.progress.called(call.stage, call.model, usage, stored=False)
        self._end_when_idle()
        return None

    def _end(self, ended: Ended) -> None:
        expected = self._expected.get(ended.number)
        if expected is None or expected.done():
            return
        if isinstance(ended.outcome, Raised):
            expected.set_exception(ended.outcome.error())
        else:
            expected.set_result(ended.outcome)

    def _lose(self, why: str) -> None:
        """The cluster will not bring any more outcomes."""
        last = why.strip().splitlines()[-1:] or ["no reason given"]
        self._lost = RunStopped(
            f"stopped: the Ray cluster cannot go on: {last[0].strip()}. The same version of "
            "vlmguard-r1[ray] must be installed on all of its nodes. What was done is stored: run "
            "the same command again"
        )
        for expected in self._expected.values():
            if not expected.done():
                expected.set_exception(self._lost)


async def _unless_cancelled(waiting: asyncio.Future[Any], progress: Progress) -> bool:
    """Whether it came about; ``False`` when the run was stopped instead."""
    try:
        await waiting
    except asyncio.CancelledError:
        if not (waiting.cancelled() and progress.stopping):
            raise
        return False
    return True


async def _awaited(reference: Any) -> Any:
    return await reference
