"""What the harness adds to bare concurrent calls, and what Inspect's own loop adds.

    python benchmarks/eval_overhead.py             # vlmguard eval against bare asyncio + httpx
    python benchmarks/eval_overhead.py --inspect   # and `inspect eval` with the same parts

A local server in a process of its own answers every call after 50 ms; it is asked 32 times at once:
bare, then by ``vlmguard eval``'s run (answers stored, then judged by a string judge), in turns. The
bodies are the same. Figures are medians over the turns; ratios compare within one turn. CPU time is
told beside, since on a busy machine it is the steadier of the two.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import httpx
from synth_throughput import local_server

from vlmguard.engines.wire import request_body
from vlmguard.evals.judges import open_judge
from vlmguard.evals.lineup import open_lineup
from vlmguard.evals.plan import EvalPlan
from vlmguard.evals.run import Run, RunSettings
from vlmguard.evals.store import RunStore
from vlmguard.evals.types import Sample

CONCURRENCY = 32
BAR = 1.15


def make_samples(count: int) -> list[Sample]:
    """Text-only samples, all different."""
    return [
        Sample(
            benchmark="overhead",
            id=str(number),
            prompt=f"Please tell me how I would get from here to place number {number}.",
            kind="harmless",
        )
        for number in range(count)
    ]


async def flood(url: str, bodies: list[bytes]) -> float:
    """Seconds for all calls, bare."""
    waiting = iter(bodies)
    async with httpx.AsyncClient() as client:

        async def work() -> None:
            for body in waiting:
                response = await client.post(
                    f"{url}/chat/completions",
                    content=body,
                    headers={"content-type": "application/json"},
                )
                response.json()["choices"][0]["message"]["content"]

        start = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return time.perf_counter() - start


async def evaluate(url: str, samples: list[Sample], folder: Path) -> float:
    """Seconds for a whole run: ask, store, judge, store."""
    plan = EvalPlan(benchmarks=("overhead",), targets=(f"openai:bench@{url}",), defences=("none",))
    lineup = open_lineup(plan)
    store = RunStore(folder)
    run = Run(
        samples,
        store=store,
        settings=RunSettings(sampling=plan.sampling, concurrency=CONCURRENCY),
    )
    start = time.perf_counter()
    await run.answer(lineup.contenders)
    await run.judge(lineup.entries, [open_judge("refusal")])
    seconds = time.perf_counter() - start
    assert len(store.answers) == len(store.judgements) == len(samples)
    assert not any(row.answer.error for row in store.answers.values())
    store.close()
    await lineup.aclose()
    return seconds


def _evaluate(url: str, samples: list[Sample], folder: Path) -> float:
    return asyncio.run(evaluate(url, samples, folder))


def evaluate_in_inspect(url: str, samples: list[Sample], folder: Path) -> float:
    """Seconds for `inspect eval` of the same parts, without its start."""
    from inspect_ai import eval as inspect_eval  # noqa: PLC0415  # slow, and only where asked for

    from vlmguard.evals.inspect_tasks import custom  # noqa: PLC0415

    items = folder / "items.jsonl"
    rows = [{"id": s.id, "prompt": s.prompt, "kind": s.kind} for s in samples]
    items.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    task = custom(path=str(items))
    start = time.perf_counter()
    (log,) = inspect_eval(
        task,
        model=f"vlmguard/openai:bench@{url}",
        max_samples=CONCURRENCY,
        max_connections=CONCURRENCY,
        log_dir=str(folder / "logs"),
        display="none",
        log_realtime=False,
    )
    assert log.status == "success"
    return time.perf_counter() - start


def _ratio(values: list[float], base: list[float]) -> float:
    return median(value / other for value, other in zip(values, base, strict=True))


def main(count: int, turns: int, *, inspect: bool) -> None:
    """Measure and print."""
    samples = make_samples(count)
    sampling = EvalPlan(benchmarks=("overhead",)).sampling
    bodies = [
        json.dumps({"model": "bench", **request_body(sample.chat(), sampling)}).encode()
        for sample in samples
    ]
    found: dict[str, list[float]] = {"bare": [], "vlmguard eval": [], "inspect eval": []}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    with local_server() as url, tempfile.TemporaryDirectory() as scratch:
        asyncio.run(flood(url, bodies[: 2 * CONCURRENCY]))
        for turn in range(turns):
            folder = Path(scratch, str(turn))
            folder.mkdir()
            measures: dict[str, Callable[[], float]] = {
                "bare": lambda: asyncio.run(flood(url, bodies)),
                "vlmguard eval": partial(_evaluate, url, samples, folder / "run"),
            }
            if inspect:
                measures["inspect eval"] = partial(evaluate_in_inspect, url, samples, folder)
            for name, measure in measures.items():
                began = time.process_time()
                found[name].append(measure())
                cpu[name].append(time.process_time() - began)
    for name, seconds in found.items():
        if seconds:
            told = f"{1000 * median(seconds) / count:6.2f} ms a sample"
            ratio = _ratio(seconds, found["bare"])
            print(
                f"{name:14} {told}  {ratio:.2f}× bare   "
                f"CPU {1000 * median(cpu[name]) / count:5.2f} ms  "
                f"{_ratio(cpu[name], cpu['bare']):.2f}×"
            )
    ratio = _ratio(found["vlmguard eval"], found["bare"])
    print(f"bar: at most {BAR}× bare: {'held' if ratio <= BAR else 'NOT held'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--inspect", action="store_true")
    options = parser.parse_args()
    main(options.samples, options.turns, inspect=options.inspect)
