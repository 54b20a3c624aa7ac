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
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from vlmguard import PromptedRewriter, VLMGuardError, load_policy, open_rewriter
from vlmguard.evals.benchmarks import open_benchmark
from vlmguard.evals.described import DescribedPictures
from vlmguard.evals.types import Kind, Sample
from vlmguard.rewriting import Policy
from vlmguard.types import Rewrite, Verdict

SLICES: Mapping[str, Mapping[Kind, str]] = {
    "figstep?tiny": {"harmful": "FigStep-Tiny harmful", "advice": "FigStep-Tiny advice"},
    "custom:photos": {"harmless": "photos benign", "harmful": "photos attacks"},
    "xstest": {"harmless": "XSTest safe", "harmful": "XSTest unsafe"},
    "strongreject": {"harmful": "StrongREJECT"},
    "mm-safetybench-typo?tiny&scenarios=01-07,09": {"harmful": "MM-SafetyBench TYPO"},
    "vlsbench-described": {"harmful": "VLSBench described"},
}
"""Benchmark → kind of sample → the slice's name."""
EXPECTED: Mapping[Kind, Verdict] = {"harmful": "risky", "harmless": "safe"}
"""The verdict that a good guard gives; about advice, either may be right."""


def load_slices(data: Path) -> dict[str, list[Sample]]:
    """All slices by name.

    Raises:
        DataError: names what is missing.
    """
    found: dict[str, list[Sample]] = {}
    for spec, names in SLICES.items():
        for sample in open_benchmark(spec, data).samples():
            found.setdefault(names[sample.kind], []).append(sample)
    return found


@dataclass(slots=True)
class Score:
    """The outcomes of one slice."""

    results: list[tuple[Sample, Rewrite | VLMGuardError]] = field(default_factory=list)

    def count(self, verdict: str) -> int:
        return sum(isinstance(r, Rewrite) and r.verdict == verdict for _, r in self.results)

    @property
    def failed(self) -> int:
        return sum(not isinstance(r, Rewrite) for _, r in self.results)


async def judge(
    rewriter: PromptedRewriter, sample: Sample, policy: Policy
) -> Rewrite | VLMGuardError:
    """One request's outcome."""
    try:
        return await rewriter.rewrite(sample.chat(), policy)
    except VLMGuardError as error:
        return error


async def run(options: argparse.Namespace) -> dict[str, Score]:
    """All slices, a few requests at once."""
    rewriter = open_rewriter(options.rewriter, perceiver=DescribedPictures())
    await rewriter.load()
    policy = load_policy(options.policy)
    scores: dict[str, Score] = {}
    gate = asyncio.Semaphore(options.concurrency)
    with Progress(console=Console(stderr=True)) as progress:
        for name, all_samples in load_slices(options.data).items():
            samples = all_samples[: options.limit]
            bar = progress.add_task(name, total=len(samples))
            score = scores.setdefault(name, Score())

            async def one(sample: Sample, bar: TaskID = bar, score: Score = score) -> None:
                async with gate:
                    outcome = await judge(rewriter, sample, policy)
                score.results.append((sample, outcome))
                progress.advance(bar)

            await asyncio.gather(*(one(sample) for sample in samples))
    await rewriter.engine.aclose()
    return scores


def table(scores: dict[str, Score]) -> Table:
    """The figures a reader wants."""
    shown = Table("slice", "items", "risky", "safe", "failed", "as expected [95 % CI]")
    for name, score in scores.items():
        total = len(score.results)
        expected = EXPECTED.get(score.results[0][0].kind)
        cells = [name, str(total), str(score.count("risky")), str(score.count("safe"))]
        cells.append(str(score.failed))
        if expected:
            hits = score.count(expected)
            interval = binomtest(hits, total).proportion_ci(method="wilson")
            range_ = f"[{interval.low:.0%}, {interval.high:.0%}]"
            cells.append(f"{hits / total:.0%} {expected} {range_}")
        shown.add_row(*cells)
    return shown


def xstest_auc(scores: Mapping[str, Score]) -> float:
    """Chance that an unsafe prompt gets a higher risk than a safe one; NaN where none was told."""
    told = [
        (sample.subset == "unsafe", outcome.risk)
        for name in ("XSTest safe", "XSTest unsafe")
        for sample, outcome in scores[name].results
        if isinstance(outcome, Rewrite)
    ]
    if len({unsafe for unsafe, _ in told}) < 2:
        return math.nan
    return float(roc_auc_score([unsafe for unsafe, _ in told], [risk for _, risk in told]))


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
    console.print(f"XSTest AUC of the risk: {xstest_auc(scores):.3f}")
    console.print(f"{options.rewriter}, {time.perf_counter() - start:.0f} s")
    if options.out:
        with options.out.open("w", encoding="utf-8") as sink:
            for name, score in scores.items():
                for sample, outcome in score.results:
                    told = (
                        outcome.to_json(id=sample.id)
                        if isinstance(outcome, Rewrite)
                        else {"id": sample.id, "error": f"{type(outcome).__name__}: {outcome}"}
                    )
                    sink.write(json.dumps({"slice": name, **told}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
