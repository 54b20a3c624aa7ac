"""What our code costs beside the model.

    python benchmarks/engine_overhead.py [--rounds 5] [--tokens 64] [--threads 2]

Engine: tokens per second of the embedded model through `LlamaCppEngine` against plain xllamacpp,
one request at a time and eight at once. Both load the model with the same context and threads. In
every round each way answers the same new prompts, in changing order; the ratio is the median over
rounds, so that what else the machine does meanwhile hits both. The bar is 0.95.

Guard: its bookkeeping beside model and detectors, in milliseconds a request; the bar is 2 ms (see
guard_bookkeeping.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import guard_bookkeeping
import xllamacpp
from rich.console import Console
from rich.table import Table

from vlmguard import models
from vlmguard.engines import Engine, Sampling, open_engine
from vlmguard.types import Chat

BAR = 0.95
CTX, PARALLEL = 1024, 8
CONCURRENCIES = (1, 8)
RAW, GENERATE, STREAM = "xllamacpp", "engine, generate", "engine, stream"

Way = Callable[[Sequence[str], int, int], Awaitable[int]]
"""(prompts, concurrency, tokens for each) → tokens generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Tokens per second of one way at one concurrency, round by round."""

    way: str
    concurrency: int
    rounds: tuple[float, ...]

    def ratio_to(self, base: Speed) -> float:
        """Median over rounds of this speed by that one."""
        return statistics.median(a / b for a, b in zip(self.rounds, base.rounds, strict=True))


def raw_way(threads: int) -> Way:
    """Plain xllamacpp, called from as many threads as there are requests at once."""
    params: Any = xllamacpp.CommonParams()
    params.model.path = str(models.ensure("smollm2"))
    params.n_ctx, params.n_parallel = CTX * PARALLEL, PARALLEL
    params.cpuparams.n_threads = threads
    params.verbosity = -1
    server: Any = xllamacpp.Server(params)

    def answer(prompt: str, tokens: int) -> int:
        messages = [{"role": "user", "content": prompt}]
        body = {"messages": messages, "max_tokens": tokens, "temperature": 0.0}
        return int(server.handle_chat_completions(body)["usage"]["completion_tokens"])

    async def run(prompts: Sequence[str], concurrency: int, tokens: int) -> int:
        with ThreadPoolExecutor(concurrency) as pool:
            return sum(pool.map(answer, prompts, [tokens] * len(prompts)))

    return run


def engine_way(engine: Engine, *, stream: bool) -> Way:
    """Our engine, called from as many tasks as there are requests at once."""

    async def answer(prompt: str, tokens: int) -> int:
        chat, sampling = Chat.of(prompt), Sampling(max_tokens=tokens)
        if not stream:
            return (await engine.generate(chat, sampling)).usage.completion_tokens
        usage = None
        async for delta in engine.stream(chat, sampling):
            usage = delta.usage or usage
        assert usage is not None
        return usage.completion_tokens

    async def run(prompts: Sequence[str], concurrency: int, tokens: int) -> int:
        places = asyncio.Semaphore(concurrency)

        async def place(prompt: str) -> int:
            async with places:
                return await answer(prompt, tokens)

        return sum(await asyncio.gather(*map(place, prompts)))

    return run


async def measure(ways: dict[str, Way], *, rounds: int, tokens: int) -> list[Speed]:
    """Run all ways at all concurrencies, alternating."""
    seen: dict[tuple[str, int], list[float]] = {}
    for run in ways.values():  # load, and warm up
        await run(["Say hello."], 1, 4)
    for number in range(rounds):
        order = list(ways.items())
        order = order[number % len(order) :] + order[: number % len(order)]
        for concurrency in CONCURRENCIES:
            count = max(2, concurrency)
            prompts = [
                f"Tell a long story about a ship, number {number}.{concurrency}.{index}."
                for index in range(count)
            ]
            for name, run in order:
                began = time.perf_counter()
                generated = await run(prompts, concurrency, tokens)
                speed = generated / (time.perf_counter() - began)
                seen.setdefault((name, concurrency), []).append(speed)
    return [
        Speed(way=name, concurrency=concurrency, rounds=tuple(speeds))
        for (name, concurrency), speeds in sorted(seen.items(), key=lambda item: item[0][1])
    ]


async def engine_section(console: Console, *, rounds: int, tokens: int, threads: int) -> bool:
    """Print the engine's table; whether it meets the bar."""
    engine = open_engine(f"smollm2?ctx={CTX}&parallel={PARALLEL}&threads={threads}")
    ways = {
        RAW: raw_way(threads),
        GENERATE: engine_way(engine, stream=False),
        STREAM: engine_way(engine, stream=True),
    }
    try:
        speeds = await measure(ways, rounds=rounds, tokens=tokens)
    finally:
        await engine.aclose()
    table = Table(title=f"Tokens per second, {threads} threads, median of {rounds} rounds")
    for column in ("requests at once", "way", "tokens/s", "ratio to xllamacpp"):
        table.add_column(column, justify="left" if column == "way" else "right")
    good = True
    for speed in speeds:
        base = next(
            other for other in speeds if other.way == RAW and other.concurrency == speed.concurrency
        )
        ratio = speed.ratio_to(base)
        good = good and ratio >= BAR
        median = statistics.median(speed.rounds)
        table.add_row(str(speed.concurrency), speed.way, f"{median:.1f}", f"{ratio:.3f}")
    console.print(table)
    console.print(f"bar {BAR}: {'met' if good else 'NOT met'}")
    return good


def main() -> None:
    """Run the sections; exit with 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64, help="tokens for every answer")
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count() or 1,
        help="fewer than there are processors give steadier figures on a busy machine",
    )
    options = parser.parse_args()
    console = Console()
    good = asyncio.run(
        engine_section(
            console, rounds=options.rounds, tokens=options.tokens, threads=options.threads
        )
    )
    costs = asyncio.run(guard_bookkeeping.costs())
    console.print(guard_bookkeeping.table(costs))
    good = good and all(cost.median < guard_bookkeeping.BAR_MS for cost in costs)
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
