"""Runs the pipeline on a Ray cluster, with the store, the pictures and the progress here.

Everything but the stages is the local runner's: the same walk over the sources, the same store, so
either runner goes on where the other one stopped.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from vlmguard.errors import ConfigError, MissingExtra, RunStopped, StoreError
from vlmguard.synthesis.calls import Stopped
from vlmguard.synthesis.outcomes import Outcome
from vlmguard.synthesis.pipeline import Recipe
from vlmguard.synthesis.progress import Progress
from vlmguard.synthesis.ray_messages import (
    Asked,
    Broken,
    Ended,
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
_REACH_S = 10.0
_CALLS_AT_ONCE = 10_000  # of the hub; nearly all of them wait


@dataclass(frozen=True, slots=True, kw_only=True)
class RayCluster:
    """Where a run goes, and what it takes there.

    Attributes:
        address: ``"auto"``, ``"host:port"`` or ``"ray://host:port"``; ``None`` starts Ray on this
            machine, for this run.
        workers: processes that take seeds through the stages, one CPU each.
        gpus: of each worker, for models that run in it.
    """

    address: str | None = None
    workers: int = 2
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ConfigError(f"workers must be 1 or more, not {self.workers}")
        if self.gpus < 0:
            raise ConfigError(f"gpus must be 0 or more, not {self.gpus}")


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
        connecting = _Connecting(self._cluster)
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

    async def _begin(self, connecting: _Connecting) -> None:
        connection = await connecting.connection()
        self._hub = await asyncio.to_thread(connection.start_hub)
        await self._hub.start.remote(self._plan)

    def stop(self) -> None:
        """As `LocalRunner.stop`; does not wait for Ray to start, nor the second time to end."""
        again = self.progress.stopping
        super().stop()
        if self._waiting is not None and (again or not self._tasks):
            self._waiting.cancel()

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
        call = question.call
        if isinstance(question, Find):
            known = self._store.answer(call.key)
            if known is not None:
                self.progress.called(call.stage, call.model, known.usage, stored=True)
            elif self.progress.stopping:
                return Raised.by(Stopped())
            return known
        try:
            await self._store.keep_answer(call, question.completion)
        except StoreError as error:
            return Raised.by(error)
        usage = question.completion.usage
        self.progress.called(call.stage, call.model, usage, stored=False)
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


class _Connecting:
    """A connection to Ray, made, kept and ended by a thread of its own.

    Both take Ray many seconds in which it cannot be interrupted; a daemon thread is left behind by
    a process that ends. It is one thread for all of it, since on Linux the processes of a Ray end
    with the thread that started them.

    Args:
        cluster: which.
    """

    def __init__(self, cluster: RayCluster) -> None:
        self._cluster = cluster
        self._loop = asyncio.get_running_loop()
        self._made: asyncio.Future[_Connection] = self._loop.create_future()
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._over = threading.Event()
        threading.Thread(target=self._hold, name="ray connection", daemon=True).start()

    async def connection(self) -> _Connection:
        """Wait for it; raises as `_connect`."""
        return await self._made

    async def close(self) -> None:
        """End it, and wait until it has ended; at once if it is not there yet."""
        self._over.set()
        if self._made.done() and not self._made.cancelled() and self._made.exception() is None:
            await self._closed

    def _hold(self) -> None:
        try:
            connection = _connect(self._cluster)
        except Exception as error:  # noqa: BLE001  # raised by whoever waits
            self._tell(self._made, error)
            return
        self._tell(self._made, connection)
        self._over.wait()
        try:
            connection.close()
        finally:
            self._tell(self._closed, None)

    def _tell(self, future: asyncio.Future[Any], value: object) -> None:
        def settle() -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(settle)


class _Connection:
    """A connection to Ray that this run made, or found.

    Args:
        ray: the module.
        ours: whether it ends with the run.
    """

    def __init__(self, ray: Any, *, ours: bool) -> None:
        self._ray = ray
        self._ours = ours
        self._hub: Any = None

    def start_hub(self) -> Any:
        """The actor that this process talks to."""
        cluster = importlib.import_module("vlmguard.synthesis.ray_cluster")
        hub = self._ray.remote(cluster.Hub)
        self._hub = hub.options(num_cpus=0, max_concurrency=_CALLS_AT_ONCE).remote()
        return self._hub

    def close(self) -> None:
        """End the hub and, with it, the workers; and Ray itself, if it was started for this."""
        if self._hub is not None:
            self._ray.kill(self._hub)
        if self._ours:
            self._ray.shutdown()


def _connect(cluster: RayCluster) -> _Connection:
    """Join the cluster, or start one of one machine."""
    try:
        ray: Any = importlib.import_module("ray")
        importlib.import_module("ray.data")
        importlib.import_module("pyarrow")
    except ImportError:
        raise MissingExtra("the Ray runner", "ray") from None
    if ray.is_initialized():
        connection = _Connection(ray, ours=False)
    else:
        _join(ray, cluster)
        connection = _Connection(ray, ours=True)
    try:
        _require(ray.cluster_resources(), cluster)
    except ConfigError:
        connection.close()
        raise
    return connection


def _join(ray: Any, cluster: RayCluster) -> None:
    quietly = {"log_to_driver": False, "logging_level": logging.ERROR}
    if cluster.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        cpus = max(os.cpu_count() or 1, cluster.workers)
        try:
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quietly)
        except Exception as error:  # Ray raises many kinds
            raise ConfigError(
                f"Ray could not be started on this machine: {_first_line(str(error))}. Is it too "
                "busy, or short of memory or disk? Its logs are in /tmp/ray/session_latest/logs"
            ) from error
        return
    _require_reachable(cluster.address)
    try:
        ray.init(address=cluster.address, **quietly)
    except Exception as error:  # Ray raises many kinds
        raise _unreachable(cluster.address, str(error)) from error


def _require_reachable(address: str) -> None:
    """Ray itself tries for minutes, and then ends the process."""
    split = urlsplit(address if "://" in address else f"//{address}")
    try:
        port = split.port
    except ValueError as error:
        raise _unreachable(address, str(error)) from None
    if port is None:
        if address != "auto":
            raise ConfigError(
                f"not the address of a Ray cluster: {address!r}; name auto, host:6379 or "
                "ray://host:10001"
            )
        return
    try:
        socket.create_connection((split.hostname or "", port), timeout=_REACH_S).close()
    except OSError as error:
        raise _unreachable(address, str(error)) from None


def _unreachable(address: str, why: str) -> ConfigError:
    return ConfigError(
        f"there is no Ray cluster at {address!r}: {_first_line(why)}. Start one with: "
        "ray start --head, or leave the address out to start Ray on this machine for this run. If "
        "it is there, it may want its token: set RAY_AUTH_MODE=token"
    )


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[0].rstrip(".")


def _require(resources: dict[str, float], cluster: RayCluster) -> None:
    """Refuse a cluster on which the run would wait for ever."""
    for what, name, needed in (
        ("CPU", "CPUs", cluster.workers),
        ("GPU", "GPUs", cluster.workers * cluster.gpus),
    ):
        found = resources.get(what, 0.0)
        if needed > found:
            raise ConfigError(
                f"the Ray cluster has {found:g} {name}, and {cluster.workers} workers need "
                f"{needed:g}: take fewer workers, or add nodes first"
            )
