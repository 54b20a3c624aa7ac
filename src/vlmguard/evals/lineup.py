"""Opens what a plan names, all of it before anything runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from urllib.parse import quote

from vlmguard.defences import Defence, Guard, open_defence
from vlmguard.engines import Engine, EngineSpec, open_engine
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.answering import Contender, Entry
from vlmguard.evals.benchmarks import FilePicture, OpenedBenchmark, open_benchmark
from vlmguard.evals.described import DescribedPicture, DescribedPictures
from vlmguard.evals.judges import open_judge
from vlmguard.evals.plan import DEFAULT_POLICY, EvalPlan
from vlmguard.evals.types import Judge, Sample
from vlmguard.perception import DEFAULT_DETECTORS

_PLACEHOLDER_CHARACTERS = 200  # of a prompt that is not here


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineup:
    """Everybody who answers.

    Attributes:
        contenders: every target behind every defence, in the plan's order.
    """

    contenders: tuple[Contender, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Their names."""
        return tuple(contender.entry for contender in self.contenders)

    async def load(self) -> None:
        """Load the targets, so that no answer is timed with it.

        Raises:
            VLMGuardError: one cannot be had.
        """
        targets = {contender.target.spec: contender.target for contender in self.contenders}
        await asyncio.gather(*(target.load() for target in targets.values()))

    async def aclose(self) -> None:
        """Free the targets."""
        async with AsyncExitStack() as held:
            for contender in self.contenders:
                held.push_async_callback(contender.target.aclose)


def open_lineup(plan: EvalPlan) -> Lineup:
    """Open targets and defences.

    Raises:
        ConfigError, UnknownName: a name that stands for nothing, or a wrong option.
        MissingExtra: something needs a package that is not installed.
    """
    return Lineup(
        contenders=tuple(
            _open_contender(plan, target, defence)
            for target in _open_targets(plan.targets)
            for defence in plan.defences
        )
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    """A benchmark with the samples that the plan wants of it.

    Attributes:
        benchmark: open.
        samples: in its order.
        problem: why it could not be run; ``None`` when it can. The samples are then those that are
            there without their pictures, or as many placeholders as are published (`survey`).
    """

    benchmark: OpenedBenchmark
    samples: tuple[Sample, ...]
    problem: str | None = None

    @property
    def name(self) -> str:
        """The variant's name."""
        return self.benchmark.name


def open_suites(plan: EvalPlan) -> tuple[Suite, ...]:
    """The benchmarks, read and found complete but for the pixels of their pictures.

    Raises:
        UnknownName: a benchmark that there is not; lists those there are.
        ConfigError: a wrong option, or two benchmarks of one name.
        DataError: files or pictures are missing or damaged; says how to get them.
    """
    return tuple(_open_suite(benchmark) for benchmark in _open_benchmarks(plan))


def survey(plan: EvalPlan) -> tuple[Suite, ...]:
    """The same for an estimate: data that are not here are counted as published.

    Raises:
        UnknownName, ConfigError: see `open_suites`.
    """
    return tuple(_survey(benchmark) for benchmark in _open_benchmarks(plan))


def _survey(benchmark: OpenedBenchmark) -> Suite:
    try:
        return _open_suite(benchmark)
    except DataError as error:
        problem = str(error)
    try:
        samples = tuple(benchmark.samples())
    except DataError:
        samples = tuple(_placeholders(benchmark))
    return Suite(benchmark=benchmark, samples=samples, problem=problem)


def _placeholders(benchmark: OpenedBenchmark) -> Iterator[Sample]:
    """As many samples as are published of what the spec wants, each with one picture."""
    counts = benchmark.facts.counts
    wanted = benchmark.subsets or counts.keys()
    total = sum(counts.get(subset) or 0 for subset in wanted)
    asked = [each for each in (total, benchmark.limit, benchmark.sample) if each is not None]
    for number in range(min(asked)):
        yield Sample(
            benchmark=benchmark.name,
            id=str(number),
            prompt="?" * _PLACEHOLDER_CHARACTERS,
            kind="harmful",
            pictures=(DescribedPicture(description=""),),
        )


def _open_benchmarks(plan: EvalPlan) -> list[OpenedBenchmark]:
    opened = [open_benchmark(spec, data=plan.data) for spec in plan.benchmarks]
    names = [benchmark.name for benchmark in opened]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"two of the benchmarks are called {name!r}; run them one by one, "
                "each with an --out of its own"
            )
    return [_limited(benchmark, plan.limit) for benchmark in opened]


def _limited(benchmark: OpenedBenchmark, limit: int | None) -> OpenedBenchmark:
    limits = [each for each in (benchmark.limit, limit) if each is not None]
    return replace(benchmark, limit=min(limits, default=None))


def _open_suite(benchmark: OpenedBenchmark) -> Suite:
    samples = tuple(benchmark.samples())
    if not samples:
        raise ConfigError(f"benchmark {benchmark.spec}: there are no samples in it")
    missing = [
        picture
        for sample in samples
        for picture in sample.pictures
        if isinstance(picture, FilePicture) and picture.path is None
    ]
    if missing:
        named = ", ".join(picture.name for picture in missing[:3])
        raise DataError(
            f"benchmark {benchmark.spec}: {len(missing)} pictures of {len(samples)} samples are "
            f"missing ({named}{', …' if len(missing) > 3 else ''}). {missing[0].fix}",
            path=missing[0].places[0].parent,
        )
    return Suite(benchmark=benchmark, samples=samples)


def _open_targets(specs: Sequence[str]) -> list[Engine]:
    opened = [open_engine(spec) for spec in specs]
    return list({engine.spec: engine for engine in opened}.values())


def _open_contender(plan: EvalPlan, target: Engine, spec: str) -> Contender:
    # A perceiver each: none is faster because another looked at the picture before it.
    perceiver = DescribedPictures(DEFAULT_DETECTORS)
    spec = with_policy(spec, plan.policy)
    defence = open_defence(spec, target=target, perceiver=perceiver)
    return Contender(
        entry=Entry(target=target.spec, defence=spec, fingerprint=fingerprint(defence)),
        target=target,
        defence=defence,
        perceiver=perceiver,
    )


def with_policy(spec: str, policy: str) -> str:
    """A guard's spec that says its policy, where it is not the default; others as they are."""
    parsed = EngineSpec.parse(spec)
    if parsed.scheme != "guard" or "policy" in parsed.options or policy == DEFAULT_POLICY:
        return spec
    return f"{spec}{'&' if parsed.options else '?'}policy={quote(policy, safe='/:.')}"


def open_judges(specs: Sequence[str]) -> tuple[Judge, ...]:
    """The judges, each name once.

    Raises:
        ConfigError, UnknownName: a judge that there is not, or a wrong option.
    """
    opened = [open_judge(spec) for spec in specs]
    return tuple({judge.name: judge for judge in opened}.values())


async def close_judges(judges: Sequence[Judge]) -> None:
    """Free the judges' models, whatever one of them raises."""
    async with AsyncExitStack() as held:
        for judge in judges:
            held.push_async_callback(judge.aclose)


def fingerprint(defence: Defence) -> str:
    """What decides a defence's behaviour beyond its spec."""
    if isinstance(defence, Guard):
        return f"{defence.policy.fingerprint}/{defence.rewriter.fingerprint}"
    return str(getattr(defence, "fingerprint", ""))
