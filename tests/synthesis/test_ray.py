"""The Ray runner: what can be said of it without a cluster."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import pickle
import socket
import sys
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.synthesis.server import Trouble
from tests.synthesis.test_kill import write_pairs
from tests.synthesis.test_trouble import serving
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineTimeout,
    MissingExtra,
    StageParseError,
    StoreError,
)
from vlmguard.synthesis import (
    Limits,
    RayCluster,
    RayModels,
    RayRunner,
    Recipe,
    RunSettings,
    Store,
    open_sources,
    ray_connection,
    store_path,
)
from vlmguard.synthesis.calls import Stopped
from vlmguard.synthesis.ray_messages import Plan, Raised, Task

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray")
_SPEC = "openai:m@http://127.0.0.1:9/v1?vision=true"


async def refused(tmp_path: Path, cluster: RayCluster) -> str:
    """What a run on such a cluster says."""
    store = Store(store_path(tmp_path))
    try:
        runner = RayRunner(
            [],
            models=RayModels(specs={"reasoner": _SPEC}),
            recipe=Recipe(),
            store=store,
            folder=tmp_path,
            settings=RunSettings(),
            cluster=cluster,
        )
        with pytest.raises(ConfigError) as caught:
            await runner.run()
        return str(caught.value)
    finally:
        store.close()


async def test_stopped_while_ray_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not wait for Ray, and when that has started after all, it is ended again."""
    may_start, ended = threading.Event(), threading.Event()

    class Late:
        def close(self) -> None:
            ended.set()

    def start(_: RayCluster) -> Late:
        assert may_start.wait(30)
        return Late()

    monkeypatch.setattr(ray_connection, "connect", start)
    store = Store(store_path(tmp_path))
    try:
        runner = RayRunner(
            [],
            models=RayModels(specs={"reasoner": _SPEC}),
            recipe=Recipe(),
            store=store,
            folder=tmp_path,
            settings=RunSettings(),
            cluster=RayCluster(),
        )
        asyncio.get_running_loop().call_later(0.05, runner.stop)
        assert await runner.run() is None
        assert not ended.is_set()
    finally:
        may_start.set()
        store.close()
    assert await asyncio.to_thread(ended.wait, 30)


class Nearby:
    """A connection to a hub and a worker in this process: all of the runner's code but Ray's."""

    def __init__(self) -> None:
        from vlmguard.synthesis.ray_cluster import Hub

        self._loop = asyncio.get_running_loop()
        self.hub = Hub()
        self.worker: Any = None
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def start_hub(self) -> Nearby:
        return self

    def __getattr__(self, name: str) -> SimpleNamespace:
        method = self._start if name == "start" else getattr(self.hub, name)
        return SimpleNamespace(remote=lambda *given: asyncio.ensure_future(method(*given)))

    async def _start(self, plan: Plan) -> None:
        from vlmguard.synthesis.ray_cluster import Worker

        worker = self.worker = Worker(self, plan)

        async def work() -> None:
            while (tasks := await self.hub.take(1)) is not None:
                for task in tasks:
                    self._begin(self._one(worker, task))

        self._begin(work())

    async def _one(self, worker: Any, task: Task) -> None:
        self.hub._tell(await worker._work(task))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def close(self) -> None:
        self.closed = True
        for task in self._tasks:
            self._loop.call_soon_threadsafe(task.cancel)


@asynccontextmanager
async def nearby(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    log: io.StringIO,
    *,
    trouble: Callable[[int], Trouble | None] = lambda _: None,
    options: str = "",
    grace_s: float = 1000,
) -> AsyncIterator[tuple[RayRunner, Nearby, Store]]:
    """A runner of 24 seeds against a server, its cluster in this process."""
    made = Nearby()
    monkeypatch.setattr(ray_connection, "connect", lambda _: made)
    pairs = write_pairs(folder)
    store = Store(store_path(folder / "out"))
    async with serving(trouble, log) as url:
        spec = f"openai:brain@{url}{options}"
        yield (
            RayRunner(
                open_sources([str(pairs)]),
                models=RayModels(specs=dict.fromkeys(("reasoner", "target", "judge"), spec)),
                recipe=Recipe(),
                store=store,
                folder=folder / "out",
                settings=RunSettings(concurrency=4, grace_s=grace_s),
                cluster=RayCluster(workers=1),
            ),
            made,
            store,
        )
        if made.worker is not None:
            await made.worker._casts["hindsight"].reasoner.aclose()
    assert made.closed
    store.close()


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110  # it only looks
        await asyncio.sleep(0.001)


@needs_ray
@pytest.mark.parametrize("stopped", [False, True])
async def test_without_a_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    """Hub, worker and runner in one process: a whole run, and one that is stopped on its way.

    The stopped one keeps every answer and ends without the time that calls in flight may take.
    """
    log = io.StringIO()
    async with nearby(tmp_path, monkeypatch, log) as (runner, _, store):
        running = asyncio.ensure_future(runner.run())
        if stopped:
            await until(lambda: log.getvalue().count("\n") >= 30)
            runner.stop()
        assert await running == (None if stopped else 24)
        answers = log.getvalue().splitlines()
        assert sum(count.calls for count in store.call_counts()) == len(answers)
        assert len(set(answers)) == len(answers)
        assert (runner.progress.finished < 24) is stopped
        assert runner.progress.asking == runner.progress.abandoned == 0


@needs_ray
async def test_stopped_while_calls_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls that end without an answer are not waited for any longer."""
    log = io.StringIO()
    silent = Trouble(status=None)
    async with nearby(
        tmp_path,
        monkeypatch,
        log,
        trouble=lambda number: silent if number >= 20 else None,
        options="?timeout=2",
    ) as (runner, _, _):
        running = asyncio.ensure_future(runner.run())
        await until(
            lambda: (
                (log.getvalue().count("\n") == 20 and runner.progress.asking == 4) or running.done()
            )
        )
        runner.stop()
        assert await running is None
        assert runner.progress.asking == runner.progress.abandoned == 0


@needs_ray
async def test_stopped_while_calls_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the time that they have, they are given up and counted."""
    silent = Trouble(status=None)
    async with nearby(
        tmp_path, monkeypatch, io.StringIO(), trouble=lambda _: silent, grace_s=0.01
    ) as (runner, _, store):
        running = asyncio.ensure_future(runner.run())
        await until(lambda: runner.progress.asking == 4)
        runner.stop()
        assert await running is None
        assert runner.progress.abandoned == 4
        assert store.call_counts() == []


@needs_ray
async def test_stopped_before_a_worker_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeds that nobody has begun are not waited for."""

    async def nobody(_self: Nearby, _plan: Plan) -> None:
        """Workers load their models for minutes."""

    monkeypatch.setattr(Nearby, "_start", nobody)
    async with nearby(tmp_path, monkeypatch, io.StringIO()) as (runner, made, _):
        running = asyncio.ensure_future(runner.run())
        await until(lambda: bool(made.hub._tasks))
        runner.stop()
        assert await running is None
        assert runner.progress.abandoned == 0


async def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says how to install it."""
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'vlmguard-r1[ray]'" in await refused(tmp_path, RayCluster())


@needs_ray
@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
async def test_no_cluster_there(tmp_path: Path, form: str) -> None:
    """A port at which nobody listens: told at once, with the address and what to do."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = form.format(taken.getsockname()[1])
    told = await refused(tmp_path, RayCluster(address=address))
    assert f"no Ray cluster at '{address}'" in told
    assert "ray start --head" in told


@needs_ray
@pytest.mark.parametrize("address", ["nonsense", "ray://host", "host:port"])
async def test_addresses_that_are_none(tmp_path: Path, address: str) -> None:
    """The error repeats them."""
    assert repr(address) in await refused(tmp_path, RayCluster(address=address))


@pytest.mark.parametrize("wrong", [{"workers": 0}, {"gpus": -1.0}])
def test_wrong_clusters(wrong: dict[str, float]) -> None:
    """No workers, or fewer than no GPUs."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RayCluster(**wrong)  # type: ignore[arg-type]


def test_limits_are_shared() -> None:
    """The workers keep within the limits together."""
    limits = Limits(requests_per_minute=90, tokens_per_minute=None)
    shared = RayModels(specs={"reasoner": _SPEC}, limits=limits).shared_by(3)
    assert shared.limits == Limits(requests_per_minute=30, tokens_per_minute=None)


@pytest.mark.parametrize(
    "error",
    [
        EngineRejected("no such model", status=404),
        EngineTimeout("after 60 s"),
        MissingExtra("the engine", "hf"),
        StageParseError("half of it", raw="{"),
        StoreError("full"),
        Stopped(),
    ],
)
def test_errors_arrive_as_they_were(error: Exception) -> None:
    """Kind, message and attributes survive the way from a worker."""
    arrived = pickle.loads(pickle.dumps(Raised.by(error))).error()
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert vars(arrived) == vars(error)


def test_mistakes_arrive_with_their_place() -> None:
    """An error that nobody raised on purpose comes with its traceback."""
    try:
        dict[str, int]()["nothing"]
    except KeyError as error:
        told = str(Raised.by(error).error())
    assert "KeyError" in told
    assert "test_mistakes_arrive_with_their_place" in told
