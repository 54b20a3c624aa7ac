"""What the guard itself costs: everything but the model's and the detectors' time.

The model answers at once from a script and the detectors' findings are made up, so what is left is
ours: hashing, cache keys, rendering, parsing, tracing. In milliseconds a request, medians.

    python benchmarks/guard_bookkeeping.py
"""

from __future__ import annotations

import asyncio
import math
import os
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from io import BytesIO

from PIL import Image as Pillow
from rich.console import Console
from rich.table import Table

from vlmguard import Guard, PromptedRewriter, load_image
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.perception import Perceiver
from vlmguard.rewriting import Assessment, Layout, render_assessment
from vlmguard.rewriting.format import RISKY_PREFIX
from vlmguard.types import (
    Chat,
    Completion,
    Image,
    ImageEvidence,
    Message,
    ObjectLabel,
    RiskReport,
    TextBox,
    TokenLogprob,
)

ROUNDS = 300
BAR_MS = 2.0
ABLE = frozenset({Capability.PREFIX, Capability.LOGPROBS, Capability.GRAMMAR})


class Eyes(Perceiver):
    """Findings of an ordinary typed picture, without looking."""

    async def perceive(self, image: Image) -> ImageEvidence:
        lines = ["Steps to bake", "bread at home", "1.", "2.", "3."]
        return ImageEvidence(
            sha256=image.sha256,
            width=760,
            height=760,
            text=tuple(TextBox(text=line, confidence=0.99, box=(0, 0, 1, 1)) for line in lines),
            objects=(ObjectLabel(label="website", probability=0.41),),
            nudity=0.01,
        )


def script(risk: float) -> Callable[[Chat, Sampling], Completion]:
    """A model that answers at once: the verdict with this risk, then a rewrite."""
    top = tuple((word, math.log(p)) for word, p in (("ris", risk), ("safe", 1 - risk)))
    verdict = Completion(
        text="safe",
        finish_reason="length",
        logprobs=(TokenLogprob(token="safe", logprob=top[1][1], top=top),),
    )
    report = RiskReport(textual="asks for steps", visual="a list", multimodal="both together")
    assessment = Assessment(
        verdict="risky", category="violence", report=report, prompt="Explain the danger. " * 10
    )
    whole = render_assessment(assessment, Layout.VERDICT_FIRST)
    rest = Completion(text=whole.removeprefix(RISKY_PREFIX), finish_reason="stop")
    return lambda _, sampling: verdict if sampling.max_tokens == 1 else rest


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Milliseconds a request."""

    name: str
    median: float
    p95: float


async def measure(name: str, request: Callable[[int], Awaitable[object]]) -> Cost:
    """Time ``ROUNDS`` requests one after the other, after a warm-up."""
    for number in range(20):
        await request(-1 - number)
    times = []
    for number in range(ROUNDS):
        start = time.perf_counter()
        await request(number)
        times.append((time.perf_counter() - start) * 1000)
    return Cost(
        name=name, median=statistics.median(times), p95=statistics.quantiles(times, n=20)[18]
    )


def guard(risk: float, *, cache_size: int = 0) -> Guard:
    """A guard on the scripted model; without a memory, so that every request is decided."""
    engine = ScriptedEngine(script(risk), capabilities=ABLE)
    eyes = Eyes()
    rewriter = PromptedRewriter(engine, perceiver=eyes)
    return Guard(rewriter, perceiver=eyes, cache_size=cache_size)


async def costs() -> list[Cost]:
    """All cases."""
    buffer = BytesIO()
    # Noise, so that the encoded size (and the hashing) is that of a photograph.
    Pillow.frombytes("RGB", (640, 480), os.urandom(640 * 480 * 3)).save(buffer, "JPEG")
    picture = load_image(buffer.getvalue())
    safe, risky, remembering = guard(0.1), guard(0.9), guard(0.1, cache_size=16)
    turns = [Message(role="user", text=f"question {n}") for n in range(10)]
    talk = [m for turn in turns for m in (turn, Message(role="assistant", text="answer " * 50))]
    cached = guard(0.1, cache_size=64)

    async def later_turn(number: int) -> None:
        last = Message(role="user", text=f"and {number}?")
        await cached.prepare(Chat(messages=(*talk, last)))

    return [
        await measure("text, harmless", lambda n: safe.prepare(Chat.of(f"hello {n}"))),
        await measure("text, risky", lambda n: risky.prepare(Chat.of(f"hello {n}"))),
        await measure("picture, harmless", lambda n: safe.prepare(Chat.of(f"hi {n}", [picture]))),
        await measure("picture, risky", lambda n: risky.prepare(Chat.of(f"hi {n}", [picture]))),
        await measure(
            "10,000 characters", lambda n: safe.prepare(Chat.of(f"{n} " + "word " * 2000))
        ),
        await measure("eleventh turn", later_turn),
        await measure("remembered", lambda _: remembering.prepare(Chat.of("hello", [picture]))),
    ]


def table(rows: list[Cost]) -> Table:
    """Medians beside the bar of 2 ms."""
    shown = Table("guard bookkeeping", "median ms", "p95 ms", "under 2 ms")
    for row in rows:
        verdict = "yes" if row.median < BAR_MS else "NO"
        shown.add_row(row.name, f"{row.median:.3f}", f"{row.p95:.3f}", verdict)
    return shown


if __name__ == "__main__":
    Console().print(table(asyncio.run(costs())))
