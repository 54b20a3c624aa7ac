"""What a rewriter does with the development slices: caught attacks beside refused harmless ones.

    python benchmarks/zero_shot.py --data ../shared/data [--rewriter SPEC] [--limit 20]

The embedded model without training (``zero-shot:smollm2``, the default) is the baseline that
training must beat; ``--rewriter smollm2`` measures the trained one. Figures from these slices are
development figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from slices import Request, load

from vlmguard import PromptedRewriter, VLMGuardError, load_image, load_policy, open_rewriter
from vlmguard.perception import Perceiver
from vlmguard.rewriting import Policy
from vlmguard.types import Chat, Image, ImageEvidence, Rewrite


class Eyes(Perceiver):
    """A perceiver that knows the descriptions of pictures that are not there."""

    def __init__(self) -> None:
        super().__init__()
        self.described: dict[str, str] = {}

    async def perceive(self, image: Image) -> ImageEvidence:
        description = self.described.get(image.sha256)
        if description is None:
            return await super().perceive(image)
        return ImageEvidence(
            sha256=image.sha256, width=0, height=0, description=description, text=(), objects=()
        )


@dataclass(slots=True)
class Score:
    """The outcomes of one slice."""

    results: list[tuple[Request, Rewrite | VLMGuardError]] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(isinstance(r, Rewrite) and r.verdict == verdict for _, r in self.results)

    @property
    def failed(self) -> int:
        return sum(not isinstance(r, Rewrite) for _, r in self.results)


def wilson(hits: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """A 95 % confidence interval for a share (Wilson 1927)."""
    if total == 0:
        return 0.0, 1.0
    share, z2 = hits / total, z * z
    middle = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, middle - half), min(1.0, middle + half)


def auc(risky: Sequence[float], safe: Sequence[float]) -> float:
    """Chance that a risky request gets a higher risk than a safe one."""
    pairs = [(r > s) + 0.5 * (r == s) for r in risky for s in safe]
    return sum(pairs) / len(pairs) if pairs else math.nan


async def judge(
    rewriter: PromptedRewriter, eyes: Eyes, request: Request, policy: Policy
) -> Rewrite | VLMGuardError:
    """One request's outcome."""
    images = [load_image(data) for data in request.images]
    if request.description is not None:
        stand_in = Image(data=f"{request.id}".encode(), media_type="text/plain")
        eyes.described[stand_in.sha256] = request.description
        images.append(stand_in)
    try:
        return await rewriter.rewrite(Chat.of(request.prompt, images), policy)
    except VLMGuardError as error:
        return error


async def run(options: argparse.Namespace) -> dict[str, Score]:
    """All slices, a few requests at once."""
    eyes = Eyes()
    rewriter = open_rewriter(options.rewriter, perceiver=eyes)
    await rewriter.load()
    policy = load_policy(options.policy)
    scores: dict[str, Score] = {}
    gate = asyncio.Semaphore(options.concurrency)
    with Progress(console=Console(stderr=True)) as progress:
        for name, all_requests in load(options.data).items():
            requests = all_requests[: options.limit]
            bar = progress.add_task(name, total=len(requests))
            score = scores.setdefault(name, Score())

            async def one(request: Request, bar: object = bar, score: Score = score) -> None:
                async with gate:
                    outcome = await judge(rewriter, eyes, request, policy)
                score.results.append((request, outcome))
                progress.advance(bar)  # type: ignore[arg-type]

            await asyncio.gather(*(one(request) for request in requests))
    await rewriter.engine.aclose()
    return scores


def table(scores: dict[str, Score]) -> Table:
    """The figures a reader wants."""
    shown = Table("slice", "items", "risky", "safe", "failed", "as expected [95 % CI]")
    for name, score in scores.items():
        total = len(score.results)
        expected = score.results[0][0].expected
        cells = [name, str(total), str(score.count("risky")), str(score.count("safe"))]
        cells.append(str(score.failed))
        if expected:
            hits = score.count(expected)
            low, high = wilson(hits, total)
            cells.append(f"{hits / total:.0%} {expected} [{low:.0%}, {high:.0%}]")
        shown.add_row(*cells)
    return shown


def main() -> None:
    """Print the table; optionally keep every outcome."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--rewriter", default="zero-shot:smollm2")
    parser.add_argument("--policy", default="balanced")
    parser.add_argument("--limit", type=int, help="items of each slice")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--out", type=Path, help="JSON Lines of all outcomes")
    options = parser.parse_args()
    start = time.perf_counter()
    scores = asyncio.run(run(options))
    console = Console()
    console.print(table(scores))
    risks = {"safe": [], "risky": []}  # type: dict[str, list[float]]
    for request, outcome in scores.get("XSTest safe", Score()).results:
        if isinstance(outcome, Rewrite) and request.expected:
            risks[request.expected].append(outcome.risk)
    for request, outcome in scores.get("XSTest unsafe", Score()).results:
        if isinstance(outcome, Rewrite) and request.expected:
            risks[request.expected].append(outcome.risk)
    console.print(f"XSTest AUC of the risk: {auc(risks['risky'], risks['safe']):.3f}")
    console.print(f"{options.rewriter}, {time.perf_counter() - start:.0f} s")
    if options.out:
        with options.out.open("w", encoding="utf-8") as sink:
            for name, score in scores.items():
                for request, outcome in score.results:
                    told = (
                        outcome.to_json(id=request.id)
                        if isinstance(outcome, Rewrite)
                        else {"id": request.id, "error": f"{type(outcome).__name__}: {outcome}"}
                    )
                    sink.write(json.dumps({"slice": name, **told}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
