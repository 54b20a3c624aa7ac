"""The Ray runner: what can be said without Ray, and runs on a real one, beside the local runner."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.synthesis.server import Trouble
from tests.synthesis.test_kill import Server, contents, stored_answers, write_pairs
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
from vlmguard.synthesis.outcomes import KINDS
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
        options="?timeout=0.3",
    ) as (runner, _, _):
        running = asyncio.ensure_future(runner.run())
        await until(lambda: log.getvalue().count("\n") == 20 and runner.progress.asking == 4)
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


# --- On a real Ray ------------------------------------------------------------------------------

on_ray = [pytest.mark.slow, pytest.mark.timeout(900), needs_ray]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the tests share.

    Attributes:
        server, pairs: the models and the seeds.
        local: output of the local runner.
        calls: how many that run made.
    """

    server: Server
    pairs: Path
    local: Path
    calls: int

    def begin(
        self, out: Path, *options: str, spec: str = "", **environment: str
    ) -> subprocess.Popen[bytes]:
        model = spec or self.server.spec
        given = ["-s", self.pairs, "--reasoner", model, "--target", model, "-o", out, "-c", "8"]
        return subprocess.Popen(
            [sys.executable, "-m", "vlmguard.cli.main", "synth", "run", *map(str, given), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ
            | ({"RAY_AUTH_MODE": "token"} if "--ray-address" in options else {})
            | environment,
        )

    def wait_for_calls(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """As long as it takes: the test has a time limit, and Ray is slow to start."""
        while self.server.count() < count:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.005)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ray")
    server = Server(folder, 0.03)
    try:
        made = Stage(server=server, pairs=write_pairs(folder), local=folder / "local", calls=0)
        end(made.begin(made.local))
        yield Stage(server=server, pairs=made.pairs, local=made.local, calls=server.count())
    finally:
        server.process.kill()
        server.process.wait()


def end(process: subprocess.Popen[bytes], code: int = 0) -> str:
    """What the run said, which ends with that exit code."""
    said, told = process.communicate(timeout=400)
    assert process.returncode == code, told.decode()
    return (said + told).decode()


def outcomes(out: Path) -> list[str]:
    """Every outcome, in order, as JSON."""
    store = Store(store_path(out), read_only=True)
    try:
        return [
            f"{one.seed} {one.outcome.model_dump_json()}"
            for one in store.outcomes(KINDS, total=1000)
        ]
    finally:
        store.close()


def stopped_in_order(stage: Stage, begun: int, process: subprocess.Popen[bytes], out: Path) -> None:
    """Every answer is stored, and the local runner asks for the rest, and for nothing twice."""
    said = end(process, 130)
    assert "Run the same command again" in said
    assert "not waited for" not in said
    answered = stage.server.answers()[begun:]
    assert len(answered) < stage.calls
    assert set(answered) == stored_answers(out)
    end(stage.begin(out))
    assert contents(out) == contents(stage.local)
    assert stage.server.count() == begun + stage.calls


def kinds(out: Path) -> list[tuple[str, str]]:
    """Kind and last stage of every outcome, in order."""
    store = Store(store_path(out), read_only=True)
    try:
        ended = store.outcomes(KINDS, total=1000)
        return [(one.outcome.kind, one.outcome.stage) for one in ended]
    finally:
        store.close()


class TestOnRay:
    """One process a test: Ray is started by the command, as a user has it."""

    pytestmark = on_ray

    def test_the_same_as_local(self, stage: Stage, tmp_path: Path) -> None:
        """Every outcome equal, every file the same bytes, as many calls, and none the next time."""
        begun = stage.server.count()
        end(stage.begin(tmp_path, "--runner", "ray"))
        assert stage.server.count() == begun + stage.calls
        for ours, theirs in zip(outcomes(tmp_path), outcomes(stage.local), strict=True):
            assert ours == theirs
        assert contents(tmp_path) == contents(stage.local)
        end(stage.begin(tmp_path))
        assert stage.server.count() == begun + stage.calls
        assert contents(tmp_path) == contents(stage.local)

    @pytest.mark.parametrize("runners", [("ray", "local"), ("local", "ray")])
    def test_killed_and_resumed_by_the_other(
        self, stage: Stage, tmp_path: Path, runners: tuple[str, str]
    ) -> None:
        """A run that is killed under one runner ends under the other; no stored answer is lost."""
        first, second = runners
        begun = stage.server.count()
        process = stage.begin(tmp_path, "--runner", first)
        stage.wait_for_calls(begun + stage.calls // 2, process)
        assert process.poll() is None
        process.kill()
        process.communicate()
        time.sleep(1.0)  # calls on their way are answered, to nobody
        asked, stored = stage.server.count(), stored_answers(tmp_path)
        assert stored
        end(stage.begin(tmp_path, "--runner", second))
        assert not stored & set(stage.server.answers()[asked:])
        assert contents(tmp_path) == contents(stage.local)

    def test_ctrl_c(self, stage: Stage, tmp_path: Path) -> None:
        """A terminal's Ctrl-C, which goes to all processes of the command: the same."""
        begun = stage.server.count()
        process = stage.begin(tmp_path, "--runner", "ray")
        stage.wait_for_calls(begun + stage.calls // 3, process)
        os.killpg(process.pid, signal.SIGINT)
        stopped_in_order(stage, begun, process, tmp_path)

    def test_a_model_in_each_worker(self, stage: Stage, tmp_path: Path) -> None:
        """``vllm:`` (its stand-in) is loaded by the two workers, and by nobody else."""
        log = tmp_path / "loaded"
        root = Path(__file__).parents[2]
        process = stage.begin(
            tmp_path / "out",
            *("--runner", "ray", "--ray-gpus", "0"),
            spec="vllm:org/model?dtype=bfloat16",
            PYTHONPATH=f"{root / 'tests' / 'engines' / 'vllm_fake'}{os.pathsep}{root}",
            VLLM_FAKE_LOG=str(log),
        )
        end(process)
        loaded = [json.loads(line) for line in log.read_text().splitlines()]
        assert len({pid for pid, *_ in loaded} - {process.pid}) == len(loaded) == 2
        assert {(model, given["dtype"]) for _, model, given in loaded} == {
            ("org/model", "bfloat16")
        }
        assert kinds(tmp_path / "out") == kinds(stage.local)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster that is there already, with four CPUs and no GPU."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    start = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=4",
        "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*map(str, start)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "Ray runtime started" in line:
                break
        assert process.poll() is None, said
        yield address
    finally:
        process.terminate()  # and, with it, everything that it started
        process.communicate(timeout=60)


class TestOnACluster:
    """A Ray that is there before the command is, and after it."""

    pytestmark = on_ray

    def test_the_same_as_local(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """Every file the same bytes, as many calls; and the cluster is left running."""
        for number in (1, 2):
            begun, out = stage.server.count(), tmp_path / str(number)
            end(stage.begin(out, "--runner", "ray", "--ray-address", cluster))
            assert stage.server.count() == begun + stage.calls
            assert contents(out) == contents(stage.local)

    def test_ctrl_c(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """It exits with 130, every answer stored; the local runner goes on and asks for the rest."""
        begun = stage.server.count()
        process = stage.begin(tmp_path, "--runner", "ray", "--ray-address", cluster)
        stage.wait_for_calls(begun + stage.calls // 3, process)
        os.kill(process.pid, signal.SIGINT)
        stopped_in_order(stage, begun, process, tmp_path)

    def test_too_few(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """CPUs or GPUs: told at once, and not waited for."""
        joined = ("--runner", "ray", "--ray-address", cluster)
        told = end(stage.begin(tmp_path, *joined, "--ray-gpus", "0.5"), 2)
        assert "the Ray cluster has 0 GPUs, and 2 workers need 1" in told
        told = end(stage.begin(tmp_path, *joined, "--ray-workers", "7"), 2)
        assert "the Ray cluster has 4 CPUs, and 7 workers need 7" in told
