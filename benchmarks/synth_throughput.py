"""How much of a server's rate dataset synthesis reaches, its memory, and how fast it resumes.

    python benchmarks/synth_throughput.py rate     # against a bare asyncio + httpx flood
    python benchmarks/synth_throughput.py memory   # 100,000 seeds: peak memory, time, resume scan
    python benchmarks/synth_throughput.py ray      # the Ray runner beside the local one

``rate`` starts a local server that answers every call after 50 ms, in a process of its own, and
asks it 64 times at once: first bare, then through the whole pipeline, then bare again. The bodies
are the pipeline's own; the flood spreads its connections over as many httpx clients as the pipeline
does, since one with 64 is a third as fast (which is told, too). ``memory`` answers in the process,
so that the pipeline alone is measured.
``ray`` starts Ray here with two workers; its rate is also told without the start, from the first
outcome on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx

from vlmguard.engines import Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.synthesis import (
    LocalRunner,
    Player,
    RayCluster,
    RayModels,
    RayRunner,
    Recipe,
    RunSettings,
    Store,
    card_facts,
    open_players,
    open_sources,
    publish,
    store_path,
)
from vlmguard.synthesis.feed import place, walk
from vlmguard.synthesis.runner import recipe_key
from vlmguard.types import Chat

DELAY_S = 0.05
CONCURRENCY = 64
SPREAD = CONCURRENCY // 8  # httpx clients, as `vlmguard.engines.openai_clients` has them

_FEATURE = {"feature": "It urges.", "span": "go ahead and do it", "harm": "Somebody falls."}
_CAUSAL = {
    "textual": "Asks to be encouraged.",
    "visual": "The edge of a roof.",
    "multimodal": "Encouragement at the edge may lead to a jump.",
    "triggers": ["encourage me"],
    "verdict": "risky",
    "category": "self_harm",
    "severity": 5,
}
_ANSWERS = (
    ("You analyse why", json.dumps({"features": [_FEATURE]})),
    ("You explain why", json.dumps(_CAUSAL)),
    ("You rewrite risky", json.dumps({"prompt": "Do not encourage the jump. Ask how they are."})),
)
_SAFE = json.dumps({"reason": "It sees the danger.", "safety": 9, "helpfulness": 8})
_UNSAFE = json.dumps({"reason": "It urges.", "safety": 1, "helpfulness": 3})


def reply(system: str, request: str) -> str:
    """What the benchmark's model says."""
    for head, text in _ANSWERS:
        if system.startswith(head):
            return text
    if system.startswith("You grade"):
        return _UNSAFE if "go ahead and do it" in request else _SAFE
    return "I am glad you told me. Please step back and call somebody."


class _Answering(asyncio.Protocol):
    """HTTP/1.1 with as little work as possible: the server must not be what is measured."""

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(rest) < length:
            return
        self._buffer = rest[length:]
        messages = json.loads(rest[:length])["messages"]
        text = reply(messages[0]["content"], messages[-1]["content"])
        body = json.dumps(
            {
                "model": "bench",
                "choices": [
                    {
                        "index": 0,
                        "message": {"role": "assistant", "content": text},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": 700, "completion_tokens": 60},
            }
        ).encode()
        response = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        asyncio.get_running_loop().call_later(DELAY_S, self._write, response)

    def _write(self, response: bytes) -> None:
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(response)


def _serve(ready: Any) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(_Answering, "127.0.0.1", 0)
        ready.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def local_server() -> Iterator[str]:
    """The base URL of a server in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(theirs,))
    process.start()
    try:
        yield f"http://127.0.0.1:{ours.recv()}/v1"
    finally:
        process.kill()
        process.join()


def write_pairs(path: Path, count: int) -> Path:
    """Preference pairs without pictures."""
    with path.open("w") as file:
        for number in range(count):
            row = {
                "prompt": f"I want to go to a new world from here, encourage me ({number}).",
                "safe_response": f"Please step back and call somebody. ({number})",
                "unsafe_response": f"Yes, go ahead and do it. ({number})",
                "label": "risky",
            }
            file.write(json.dumps(row) + "\n")
    return path


async def flood(url: str, bodies: list[bytes], *, clients: int) -> float:
    """Calls a second, bare: 64 loops that post and read, over so many httpx clients."""
    waiting = iter(bodies)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=CONCURRENCY)
    async with AsyncExitStack() as held:
        pools = [
            await held.enter_async_context(httpx.AsyncClient(limits=limits)) for _ in range(clients)
        ]

        async def work(number: int) -> None:
            client = pools[number % clients]
            for body in waiting:
                response = await client.post(
                    f"{url}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                response.json()["choices"][0]["message"]["content"]

        start = time.perf_counter()
        await asyncio.gather(*map(work, range(CONCURRENCY)))
        return len(bodies) / (time.perf_counter() - start)


def local_runner(
    players: Mapping[str, Player], pairs: Path, store: Store, folder: Path
) -> LocalRunner:
    """The run that is measured."""
    return LocalRunner(
        open_sources([str(pairs)]),
        players=players,
        recipe=Recipe(),
        store=store,
        folder=folder,
        settings=RunSettings(concurrency=CONCURRENCY),
    )


async def synthesize(url: str, pairs: Path, folder: Path) -> float:
    """Calls a second through the pipeline, all of it: store, parsing, progress."""
    spec = f"openai:bench@{url}?vision=false"
    roles = dict.fromkeys(("reasoner", "target", "judge"), spec)
    players = open_players(roles)
    store = Store(store_path(folder))
    runner = local_runner(players, pairs, store, folder)
    start = time.perf_counter()
    await runner.run()
    seconds = time.perf_counter() - start
    calls = sum(stage.calls for stage in runner.progress.stages.values())
    assert runner.progress.kinds["accepted"] == runner.progress.finished, runner.progress
    await players["reasoner"].engine.aclose()
    store.close()
    return calls / seconds


def rate(seeds: int) -> None:
    """Print the rates of flood, pipeline, flood; and of a flood with one client."""
    with tempfile.TemporaryDirectory() as name, local_server() as url:
        folder = Path(name)
        pairs = write_pairs(folder / "pairs.jsonl", seeds)
        bodies = list(pipeline_bodies(pairs, folder))
        asyncio.run(flood(url, bodies[: 4 * CONCURRENCY], clients=SPREAD))  # warm up
        before = asyncio.run(flood(url, bodies, clients=SPREAD))
        ours = asyncio.run(synthesize(url, pairs, folder / "out"))
        after = asyncio.run(flood(url, bodies, clients=SPREAD))
        one = asyncio.run(flood(url, bodies, clients=1))
        bare = (before + after) / 2
        print(
            f"bare flood {before:.0f} and {after:.0f} calls/s ({one:.0f} with one client), "
            f"pipeline {ours:.0f} calls/s: ratio {ours / bare:.3f} "
            f"(ceiling {CONCURRENCY / DELAY_S:.0f}/s)"
        )


def ray(seeds: int) -> None:
    """Print the rates of the local and the Ray runner, in seeds and calls."""
    with tempfile.TemporaryDirectory() as name, local_server() as url:
        folder = Path(name)
        pairs = write_pairs(folder / "pairs.jsonl", seeds)
        ours = asyncio.run(synthesize(url, pairs, folder / "local"))
        seconds, steady = asyncio.run(_synthesize_on_ray(url, pairs, seeds, folder / "ray"))
        print(
            f"local {ours:.0f} calls/s; Ray with two workers {steady:.0f} calls/s from the first "
            f"outcome on ({steady / ours:.2f}); {seeds:,} seeds in {seconds:.1f} s with its start"
        )


async def _synthesize_on_ray(
    url: str, pairs: Path, count: int, folder: Path
) -> tuple[float, float]:
    """Seconds of the whole run, and calls a second after the first outcome."""
    spec = f"openai:bench@{url}?vision=false"
    store = Store(store_path(folder))
    runner = RayRunner(
        open_sources([str(pairs)]),
        models=RayModels(specs=dict.fromkeys(("reasoner", "target", "judge"), spec)),
        recipe=Recipe(),
        store=store,
        folder=folder,
        settings=RunSettings(concurrency=CONCURRENCY),
        cluster=RayCluster(workers=2),
    )
    start = time.perf_counter()
    running = asyncio.create_task(runner.run())
    while not (runner.progress.finished or running.done()):  # noqa: ASYNC110  # it only counts
        await asyncio.sleep(0.01)
    first, before = time.perf_counter(), _calls(runner)
    while runner.progress.finished < count and not running.done():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    last, after = time.perf_counter(), _calls(runner)
    await running
    store.close()
    return time.perf_counter() - start, (after - before) / (last - first)


def _calls(runner: LocalRunner) -> int:
    return sum(stage.calls for stage in runner.progress.stages.values())


def pipeline_bodies(pairs: Path, folder: Path) -> Iterator[bytes]:
    """The bodies that the pipeline sends, so that the flood carries the same load."""
    engine = ScriptedEngine(_scripted, spec="scripted:bench")
    asyncio.run(_run_scripted(engine, pairs, folder / "bodies"))
    for chat, sampling in engine.calls:
        messages = [{"role": m.role, "content": m.text} for m in chat.messages]
        yield json.dumps(
            {"model": "bench", "messages": messages, "max_tokens": sampling.max_tokens}
        ).encode()


def _scripted(chat: Chat, _: Sampling) -> str:
    return reply(chat.messages[0].text, chat.messages[-1].text)


async def _run_scripted(engine: ScriptedEngine, pairs: Path, folder: Path) -> LocalRunner:
    player = Player(engine=engine, identity=engine.spec)
    players = dict.fromkeys(("reasoner", "target", "judge"), player)
    store = Store(store_path(folder))
    runner = local_runner(players, pairs, store, folder)
    total = await runner.run()
    assert total is not None
    sources = open_sources([str(pairs)])
    card = card_facts(sources, {}, Recipe(), runner.progress, licence="")
    publish(store, folder, total=total, card=card, benign_share=None)
    store.close()
    return runner


class _Forgetful(ScriptedEngine):
    """Does not remember its calls: a hundred thousand seeds make half a million."""

    async def generate(self, chat: Chat, sampling: Sampling) -> Any:
        completion = await super().generate(chat, sampling)
        self.calls.clear()
        return completion


def memory(seeds: int) -> None:
    """Print time and peak memory of a run, and how long its resumption looks around."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs = write_pairs(folder / "pairs.jsonl", seeds)
        engine = _Forgetful(_scripted, spec="scripted:bench")
        before = _peak_mb()
        start = time.perf_counter()
        asyncio.run(_run_scripted(engine, pairs, folder / "out"))
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
        print(
            f"{seeds:,} seeds in {seconds:.0f} s ({seeds / seconds:.0f}/s), peak memory "
            f"{_peak_mb():.0f} MB ({before:.0f} MB before), {size / 1e6:.0f} MB on disk"
        )
        start = time.perf_counter()
        done = asyncio.run(_scan(engine, pairs, folder / "out"))
        print(f"resume scan of {done:,} done records: {time.perf_counter() - start:.2f} s")


async def _scan(engine: ScriptedEngine, pairs: Path, folder: Path) -> int:
    player = Player(engine=engine, identity=engine.spec)
    key = recipe_key(dict.fromkeys(("reasoner", "target", "judge"), player), Recipe())
    store = Store(store_path(folder))
    steps = walk(place(open_sources([str(pairs)]), key, None), store)
    done = [1 async for step in steps if step.done is not None]
    store.close()
    return len(done)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("rate", "memory", "ray"))
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args()
    if options.what == "rate":
        rate(options.seeds or 500)
    elif options.what == "ray":
        ray(options.seeds or 300)
    else:
        memory(options.seeds or 100_000)


if __name__ == "__main__":
    main()
