"""What the gateway adds to an upstream's answer, beside LiteLLM's proxy, in one run on one machine.

    python benchmarks/gateway.py [--seconds 5] [--rounds 3] [--memory 200000] [--streams 1000]

All ways lead to the same upstream (gateway_upstream.py: answers at once, in its own process) and
are loaded by the same client. The ways: direct; LiteLLM's proxy without a guard;
the gateway with ``--mode off``, with the embedded guard and a decision it remembers, and with a new
prompt in every request. In every round all ways are measured in turn.

Bars: latency added at one connection at most a fifth of LiteLLM's; at 16 connections at least 8
times its requests a second (both with remembered decisions); between the pieces of a stream a
99th percentile of at most 1.1 times the direct one; memory that stays flat; all streams whole when
a thousand run at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
DIRECT, LITELLM = "direct", "LiteLLM, no guard"
OFF, CACHED, EMBEDDED = "gateway, off", "gateway, remembered", "gateway, embedded guard"
_KEY = "sk-benchmark"
_SAME = "Which trees keep their leaves in winter?"


class Failed(Exception):  # the measuring itself went wrong
    """A server did not come up, or answered with something else than an answer."""


@dataclass(slots=True)
class Way:
    """A way to the upstream, and what was measured on it.

    Attributes:
        name: for the table.
        url: of its chat completions.
        model: as this way calls it.
        new_prompts: every request asks something that was never asked.
        latency_ms: at one connection, all requests.
        rates: requests a second at 16 connections, one a round.
        gaps_ms: between pieces of a stream.
    """

    name: str
    url: str
    model: str = "stub"
    new_prompts: bool = False
    latency_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)
    asked: int = 0

    def body(self, *, stream: bool = False) -> dict[str, object]:
        """The next request."""
        self.asked += 1
        prompt = f"{_SAME} Number {self.asked}." if self.new_prompts else _SAME
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "stream": stream,
        }


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(command: list[str], **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that ends with us; its log is shown when it fails."""
    with tempfile.TemporaryFile() as log:
        running = subprocess.Popen(
            command, stdout=log, stderr=log, env={**os.environ, **environment}
        )
        try:
            yield running
            if running.poll() is not None:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace")[-3000:])
        finally:
            running.terminate()
            try:
                running.wait(20)
            except subprocess.TimeoutExpired:
                running.kill()


async def ready(session: aiohttp.ClientSession, url: str, running: subprocess.Popen[bytes]) -> None:
    """Wait until a server answers.

    Raises:
        Failed: it ended instead, or took two minutes.
    """
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and running.poll() is None:
        try:
            async with session.get(url, headers=_headers()) as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.2)
    raise Failed(f"{url} did not come up")


def _headers() -> dict[str, str]:
    return {"authorization": f"Bearer {_KEY}"}


async def ask(session: aiohttp.ClientSession, way: Way) -> float:
    """Milliseconds of one whole answer."""
    start = time.perf_counter()
    async with session.post(way.url, json=way.body(), headers=_headers()) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise Failed(f"{way.name}: HTTP {answer.status}: {text[:300]}")
    return (time.perf_counter() - start) * 1000


async def one_by_one(session: aiohttp.ClientSession, way: Way, seconds: float) -> None:
    """Latency at one connection."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        way.latency_ms.append(await ask(session, way))


async def together(session: aiohttp.ClientSession, way: Way, seconds: float) -> None:
    """Requests a second at 16 connections."""
    start = time.perf_counter()
    done = 0

    async def connection() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await ask(session, way)
            done += 1

    await asyncio.gather(*(connection() for _ in range(16)))
    way.rates.append(done / (time.perf_counter() - start))


async def stream(session: aiohttp.ClientSession, way: Way) -> list[float]:
    """Milliseconds between the pieces of one streamed answer.

    Raises:
        Failed: it was not whole.
    """
    times = []
    tail = b""
    async with session.post(way.url, json=way.body(stream=True), headers=_headers()) as answer:
        async for chunk in answer.content.iter_any():
            times.append(time.perf_counter())
            tail = (tail + chunk)[-64:]
    if not tail.rstrip().endswith(b"data: [DONE]"):
        raise Failed(f"{way.name}: a stream ended with {tail!r}")
    return [(later - earlier) * 1000 for earlier, later in pairwise(times)]


async def crowd(way: Way, count: int) -> float:
    """Seconds until so many streams, all at once, are whole."""
    connector = aiohttp.TCPConnector(limit=0)
    start = time.perf_counter()
    async with aiohttp.ClientSession(
        connector=connector, timeout=aiohttp.ClientTimeout(total=600)
    ) as session:
        await asyncio.gather(*(stream(session, way) for _ in range(count)))
    return time.perf_counter() - start


def resident_mb(pid: int) -> float:
    """Memory of a process and its children."""
    pids = [pid]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        pids += [int(child) for child in children.read_text().split()]
    pages = sum(int(Path(f"/proc/{one}/statm").read_text().split()[1]) for one in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def memory(session: aiohttp.ClientSession, way: Way, pid: int, total: int) -> list[float]:
    """Resident megabytes after each tenth of so many requests."""
    shown = []
    for _ in range(10):
        left = total // 10

        async def connection() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await ask(session, way)

        await asyncio.gather(*(connection() for _ in range(16)))
        shown.append(resident_mb(pid))
    return shown


def gateway_command(port: int, upstream: str, *options: str) -> list[str]:
    """``vlmguard serve`` before the upstream."""
    return [
        *(sys.executable, "-m", "vlmguard.cli.main", "serve", "--port", str(port)),
        *("--target", f"openai:stub@{upstream}/v1", "--log-level", "warning", *options),
    ]


def litellm_command(port: int, upstream: str, folder: Path) -> list[str]:
    """LiteLLM's proxy before the upstream, one worker."""
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: stub\n"
        "    litellm_params:\n"
        "      model: openai/stub\n"
        f"      api_base: {upstream}/v1\n"
        "      api_key: none\n"
    )
    program = Path(sys.executable).parent / "litellm"
    return [str(program), "--config", str(config), "--port", str(port), "--num_workers", "1"]


def patient(folder: str) -> str:
    """A policy for sixteen new decisions at once on a small machine."""
    path = Path(folder) / "policy.yaml"
    path.write_text("name: patient\ntimeout_s: 600\n")
    return str(path)


@dataclass(slots=True)
class Report:
    """Everything that is printed."""

    ways: list[Way]
    memory_mb: list[float] = field(default_factory=list)
    crowd_s: dict[str, float] = field(default_factory=dict)
    streams: int = 0

    def way(self, name: str) -> Way | None:
        """By name."""
        return next((way for way in self.ways if way.name == name), None)


async def measure(options: argparse.Namespace, console: Console) -> Report:
    """Start everything, measure in rounds, stop everything."""
    ports = [free_port() for _ in range(4)]
    upstream, off, on, peer = (f"http://127.0.0.1:{port}" for port in ports)
    with (
        tempfile.TemporaryDirectory() as folder,
        process([sys.executable, str(HERE / "gateway_upstream.py"), str(ports[0])]) as stub,
        process(gateway_command(ports[1], upstream, "--mode", "off")) as off_process,
        process(gateway_command(ports[2], upstream, "--policy", patient(folder))) as on_process,
    ):
        ways = [
            Way(name=DIRECT, url=f"{upstream}/v1/chat/completions"),
            Way(name=OFF, url=f"{off}/v1/chat/completions"),
            Way(name=CACHED, url=f"{on}/v1/chat/completions"),
            Way(name=EMBEDDED, url=f"{on}/v1/chat/completions", new_prompts=True),
        ]
        async with aiohttp.ClientSession() as session:
            await ready(session, f"{upstream}/v1/models", stub)
            await ready(session, f"{off}/health/ready", off_process)
            await ready(session, f"{on}/health/ready", on_process)
            if options.no_litellm or find_spec("litellm") is None:
                console.print("LiteLLM is left out; without it two bars cannot be told")
                return await rounds(options, console, ways, session, on_process.pid)
            environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_MASTER_KEY": _KEY}
            command = litellm_command(ports[3], upstream, Path(folder))
            with process(command, **environment) as peer_process:
                await ready(session, f"{peer}/v1/models", peer_process)
                ways.append(Way(name=LITELLM, url=f"{peer}/v1/chat/completions"))
                return await rounds(options, console, ways, session, on_process.pid)


async def rounds(
    options: argparse.Namespace,
    console: Console,
    ways: list[Way],
    session: aiohttp.ClientSession,
    gateway_pid: int,
) -> Report:
    """Measure all ways in turn, several times; then memory and many streams of the gateway."""
    report = Report(ways=ways, streams=options.streams)
    for way in ways:
        for _ in range(20 if not way.new_prompts else 2):  # warm up
            await ask(session, way)
    for number in range(options.rounds):
        with console.status(f"round {number + 1} of {options.rounds}"):
            order = ways[number % len(ways) :] + ways[: number % len(ways)]
            for way in order:
                await one_by_one(session, way, options.seconds)
                if number == 0 or not way.new_prompts:  # sixteen new decisions take a while
                    await together(session, way, options.seconds)
            for way in (way for way in order if way.name != EMBEDDED):
                for _ in range(10):
                    way.gaps_ms += await stream(session, way)
    cached = next(way for way in ways if way.name == CACHED)
    if options.memory:
        with console.status(f"{options.memory} requests, watching memory"):
            report.memory_mb = await memory(session, cached, gateway_pid, options.memory)
    if options.streams:
        for way in (ways[0], cached):
            with console.status(f"{options.streams} streams at once, {way.name}"):
                report.crowd_s[way.name] = await crowd(way, options.streams)
    return report


def percentile(values: list[float], share: float) -> float:
    """Of a list that need not be sorted."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(report: Report, console: Console) -> bool:
    """Print; whether all bars that could be told are met."""
    direct = report.way(DIRECT)
    assert direct is not None
    base = statistics.median(direct.latency_ms)
    table = Table(
        "way", "requests", "p50 ms", "p99 ms", "added p50 ms", "requests/s at 16", "gap p99 ms"
    )
    for way in report.ways:
        middle = statistics.median(way.latency_ms)
        table.add_row(
            way.name,
            str(len(way.latency_ms)),
            f"{middle:.2f}",
            f"{percentile(way.latency_ms, 0.99):.2f}",
            f"{middle - base:.2f}",
            f"{statistics.median(way.rates):.0f}",
            f"{percentile(way.gaps_ms, 0.99):.2f}" if way.gaps_ms else "",
        )
    console.print(table)
    good = True
    for text, met in bars(report, base):
        good = good and met
        console.print(f"{'met    ' if met else 'NOT met'} {text}")
    return good


def bars(report: Report, base_ms: float) -> Iterator[tuple[str, bool]]:
    """Each bar with its figure, and whether it is met."""
    direct, cached, peer = (report.way(name) for name in (DIRECT, CACHED, LITELLM))
    assert direct is not None
    assert cached is not None
    added = statistics.median(cached.latency_ms) - base_ms
    if peer is not None:
        theirs = statistics.median(peer.latency_ms) - base_ms
        yield f"latency added: {added / theirs:.2f} of LiteLLM's (bar 0.20)", added <= theirs / 5
        times = statistics.median(cached.rates) / statistics.median(peer.rates)
        yield f"requests a second: {times:.1f} times LiteLLM's (bar 8)", times >= 8
    ratio = percentile(cached.gaps_ms, 0.99) / percentile(direct.gaps_ms, 0.99)
    yield f"gap between pieces, p99: {ratio:.2f} of direct (bar 1.10)", ratio <= 1.1
    if report.memory_mb:
        first, last = report.memory_mb[1], report.memory_mb[-1]
        shown = ", ".join(f"{value:.0f}" for value in report.memory_mb)
        yield (
            f"memory after each tenth, MB: {shown} (bar: last within 3 % of the second)",
            (last <= first * 1.03),
        )
    if report.crowd_s:
        took = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report.crowd_s.items())
        yield f"{report.streams} streams at once, all whole: {took}", True


def main() -> None:
    """Measure and print; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=5, help="of each way and load, a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", type=int, default=0, help="so many requests, watching memory")
    parser.add_argument("--streams", type=int, default=0, help="so many at once")
    parser.add_argument("--no-litellm", action="store_true")
    options = parser.parse_args()
    console = Console(width=110)  # the table is as wide wherever it goes
    try:
        report = asyncio.run(measure(options, console))
    except Failed as error:
        raise SystemExit(str(error)) from None
    raise SystemExit(0 if show(report, console) else 1)


if __name__ == "__main__":
    main()
