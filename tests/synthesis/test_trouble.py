"""Whole runs against a server, over HTTP, that is busy, broken, slow or gone, or on a full disk."""

from __future__ import annotations

import asyncio
import io
import json
import resource
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from tests.synthesis import server
from tests.synthesis.server import Trouble
from vlmguard.data import read_records
from vlmguard.errors import DataError, RunStopped, StoreError
from vlmguard.synthesis import (
    LocalRunner,
    Recipe,
    RunSettings,
    Store,
    card_facts,
    open_players,
    open_sources,
    publish,
    store_path,
)

_SETTINGS = RunSettings(concurrency=8)
_BUSY = Trouble(status=429, retry_after="0.1")


@asynccontextmanager
async def serving(trouble: Callable[[int], Trouble | None], log: io.StringIO) -> AsyncIterator[str]:
    """The base URL of a server in this process."""
    port = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(server.serve(port.set_result, log, 0.001, trouble))
    try:
        yield f"http://127.0.0.1:{await port}/v1"
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def write(folder: Path, count: int) -> None:
    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(count):
            row = {
                "prompt": f"Encourage me, {number}",
                "chosen": f"A safe answer, {number}.",
                "rejected": f"Yes, go ahead and do it, {number}.",
            }
            file.write(json.dumps(row) + "\n")


async def run(folder: Path, spec: str, settings: RunSettings = _SETTINGS) -> LocalRunner:
    """One run to its end, and its output."""
    store = Store(store_path(folder))
    players = open_players(dict.fromkeys(("reasoner", "target", "judge"), spec))
    sources = open_sources([str(folder / "pairs.jsonl")])
    runner = LocalRunner(
        sources,
        players=players,
        recipe=Recipe(),
        store=store,
        folder=folder,
        settings=settings,
    )
    try:
        total = await runner.run()
        assert total is not None
        card = card_facts(sources, {}, Recipe(), runner.progress, licence="")
        publish(store, folder, total=total, card=card, benign_share=None)
        return runner
    finally:
        await players["reasoner"].engine.aclose()
        store.close()


def asked(log: io.StringIO) -> list[str]:
    """What the server answered, in order."""
    return log.getvalue().splitlines()


async def test_a_storm_of_429(tmp_path: Path) -> None:
    """Two of three requests are told to come back later: every seed is done, no call paid twice."""
    write(tmp_path, 8)
    log = io.StringIO()
    async with serving(lambda n: None if n % 3 == 2 or n > 40 else _BUSY, log) as url:
        runner = await run(tmp_path, f"openai:brain@{url}?retries=50")
    assert runner.progress.kinds["accepted"] == 8
    assert len(list(read_records(tmp_path))) == 8
    calls = sum(stage.calls for stage in runner.progress.stages.values())
    assert calls == len(asked(log)) == len(set(asked(log))) == 48


async def test_broken_now_and_then(tmp_path: Path) -> None:
    """503, 500, 408 and a connection that is hung up between answers are tried again."""
    write(tmp_path, 6)
    broken = (503, 500, 408, 0)

    def trouble(number: int) -> Trouble | None:
        if number % 10:
            return None
        return Trouble(status=broken[number // 10 % 4], retry_after="0.1")

    async with serving(trouble, io.StringIO()) as url:
        runner = await run(tmp_path, f"openai:brain@{url}")
    assert runner.progress.kinds["accepted"] == 6


async def test_a_storm_that_does_not_end(tmp_path: Path) -> None:
    """The run stops early, says what the server said, and goes on when the storm is over."""
    write(tmp_path, 20)
    log, storm = io.StringIO(), True

    def trouble(number: int) -> Trouble | None:
        return Trouble(status=429, retry_after="0.05") if storm and number > 30 else None

    settings = RunSettings(concurrency=8, failure_window=6)
    async with serving(trouble, log) as url:
        spec = f"openai:brain@{url}?retries=1"
        told = r"of the last 6 seeds failed.*429 Too Many Requests: not now.*the same command"
        with pytest.raises(RunStopped, match=told):
            await run(tmp_path, spec, settings)
        assert len(asked(log)) == 31
        storm = False
        runner = await run(tmp_path, spec, settings)
    assert runner.progress.kinds["accepted"] == 20
    assert len(asked(log)) == len(set(asked(log))) == 120  # nothing that was answered, again


async def test_a_server_that_hangs(tmp_path: Path) -> None:
    """Calls that get no answer fail after their time; what other seeds got is kept."""
    write(tmp_path, 8)
    log = io.StringIO()
    hangs = Trouble(status=None)
    async with serving(lambda n: hangs if n in {5, 11} else None, log) as url:
        first = await run(tmp_path, f"openai:brain@{url}?timeout=1")
        again = await run(tmp_path, f"openai:brain@{url}")
    failed = first.progress.kinds["error"]
    assert failed >= 2  # a busy machine may be too slow for others, too
    assert first.progress.kinds["accepted"] == 8 - failed
    assert again.progress.kinds["accepted"] == 8
    assert again.progress.resumed == 8 - failed
    assert len(set(asked(log))) == 48
    assert len(asked(log)) - 48 <= failed - 2  # answers that came too late are asked for again


async def test_a_server_that_is_down(tmp_path: Path) -> None:
    """The run stops early and names the server."""
    write(tmp_path, 40)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = RunSettings(concurrency=8, failure_window=10)
    with pytest.raises(RunStopped, match=rf"cannot talk to 127\.0\.0\.1:{port}.*the same command"):
        await run(tmp_path, f"openai:brain@http://127.0.0.1:{port}/v1?retries=0", settings)


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """Writing beyond that many bytes of a file fails, as it would on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_no_room_for_the_store(tmp_path: Path) -> None:
    """The error says what to do; with more room the run goes on, and asks nothing it has stored."""
    write(tmp_path, 6)
    log = io.StringIO()
    async with serving(lambda _: None, log) as url:
        spec = f"openai:brain@{url}"
        told = r"store\.sqlite: cannot be written .* Free space on the disk"
        with files_no_larger_than(100_000), pytest.raises(StoreError, match=told):
            await run(tmp_path, spec)
        lost = len(asked(log))
        store = Store(store_path(tmp_path), read_only=True)
        stored = sum(count.calls for count in store.call_counts())
        store.close()
        assert lost - 8 <= stored < 36  # the answers that came in when it was full
        runner = await run(tmp_path, spec)
    assert runner.progress.kinds["accepted"] == 6
    assert 36 - stored <= len(asked(log)) - lost <= 36 - stored + 8  # answers nobody waited for


async def test_no_room_for_the_dataset(tmp_path: Path) -> None:
    """Nothing is asked again once there is room, and an older dataset stays whole until then."""
    write(tmp_path, 3)
    log = io.StringIO()
    async with serving(lambda _: None, log) as url:
        spec = f"openai:brain@{url}"
        runner = await run(tmp_path, spec)
        before = list(read_records(tmp_path))
        store = Store(store_path(tmp_path))
        card = card_facts([], {}, Recipe(), runner.progress, licence="")
        with files_no_larger_than(500), pytest.raises(DataError, match=r"(?i)too large|no space"):
            publish(store, tmp_path, total=3, card=card, benign_share=None)
        store.close()
        assert list(read_records(tmp_path)) == before
        begun = len(asked(log))
        await run(tmp_path, spec)
    assert len(asked(log)) == begun
    assert list(read_records(tmp_path)) == before
