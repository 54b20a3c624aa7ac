"""What travels between benchmarks, runs, judges and reports.

A `Benchmark` yields `Sample`s; a defence in front of a target makes an `Answer` of each; `Judge`s
make `Judgement`s of answers. Answers and judgements are stored apart, so that judging again never
generates again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from vlmguard.types import Chat, Image, Usage

Kind = Literal["harmful", "harmless", "advice"]
"""What a sample asks for. ``advice``: a professional's question, to be answered with care; neither
a refusal nor a plain answer is expected, so it counts for no rate."""


class Picture(Protocol):
    """A picture of a sample, read or drawn when it is needed."""

    def load(self) -> Image:
        """The encoded picture.

        Raises:
            DataError: it is missing or damaged; names the file and how to get it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One item of a benchmark.

    Attributes:
        benchmark: the variant's name, e.g. ``"figstep"`` or ``"mm-safetybench-typo"``.
        id: unique within the variant.
        prompt: the text that is sent [x_T].
        kind: what it asks for.
        pictures: what is sent with it [x_I], in order.
        description: stands for a picture that is not there; only in variants named ``…-described``.
            ``pictures`` then holds stand-ins, which `vlmguard.evals.described.DescribedPictures`
            reads and nothing else.
        category: the benchmark's own category, for tables.
        subset: the part of the benchmark that is scored apart, e.g. ``"safe_safes"``; ``""`` if
            there is one part only.
        goal: what the attacker wants, in plain words, where prompt and picture hide it (a judge
            that cannot see the picture needs it); ``""`` where the prompt says it.
        reference: the benchmark's reference answer or safety note for judges, by name, e.g.
            ``{"safety_warning": …, "reference_answer": …}``.
    """

    benchmark: str
    id: str
    prompt: str
    kind: Kind
    pictures: tuple[Picture, ...] = ()
    description: str | None = None
    category: str = ""
    subset: str = ""
    goal: str = ""
    reference: Mapping[str, str] = field(default_factory=dict)

    def chat(self) -> Chat:
        """The request as a target would get it, pictures loaded.

        Raises:
            DataError: a picture is missing or damaged.
        """
        return Chat.of(self.prompt, [picture.load() for picture in self.pictures])


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a defended target said to a sample.

    Attributes:
        benchmark, sample_id: which sample.
        target, defence: who answered, as specs that open them again.
        repeat: which of several answers to the same sample, from 0.
        text: the answer; ``""`` when the target said nothing, which is no safe answer.
        error: why there is no answer (``"InputError: …"``), else ``None``.
        verdict, risk, category, action, rewrite, reasons: the guard's decision about the last
            turn, where the defence makes one; ``rewrite`` is what the target received.
        latency_ms: wall time of the whole defended answer.
        defence_ms: the part of it that the defence added.
        calls: calls to models beyond the target's one.
        usage: tokens of the target's answer.
        defence_usage: tokens that the defence spent beside.
    """

    benchmark: str
    sample_id: str
    target: str
    defence: str
    text: str
    error: str | None = None
    verdict: str | None = None
    risk: float | None = None
    category: str | None = None
    action: str | None = None
    rewrite: str | None = None
    reasons: tuple[str, ...] = ()
    latency_ms: float = 0.0
    defence_ms: float = 0.0
    calls: int = 0
    repeat: int = 0
    usage: Usage = field(default_factory=Usage)
    defence_usage: Usage = field(default_factory=Usage)

    @property
    def empty(self) -> bool:
        """The target said nothing, which is neither safe nor a failure."""
        return self.error is None and not self.text.strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What a judge said about an answer.

    Attributes:
        judge: the judge's name with its model, e.g. ``"rubric:openai:gpt-4o@…"``; stands in every
            table, because two judges are two scales.
        metrics: metric → value, e.g. ``{"safe": 1.0, "effective": 0.0}`` or ``{"safety": 7.0}``;
            empty when unscored.
        unscored: why there is no score (an unparseable grade, an empty answer, an error), else
            ``None``. Unscored answers are counted, and never counted safe, unsafe or averaged in.
        explanation: the judge's own words, for people.
    """

    judge: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    unscored: str | None = None
    explanation: str = ""


class Judge(Protocol):
    """Scores answers."""

    @property
    def name(self) -> str:
        """Goes into tables and keys of stored judgements; another one when it decides otherwise."""
        ...

    async def judge(self, sample: Sample, answer: Answer) -> Judgement:
        """Score one answer.

        Raises:
            EngineError: the judge's model cannot be reached. What it says never raises.
        """
        ...

    async def aclose(self) -> None:
        """Free its model, where it has one."""
        ...


class Benchmark(Protocol):
    """A set of samples with an official way to score them."""

    @property
    def name(self) -> str:
        """The variant's name, e.g. ``"mm-safetybench-typo"``."""
        ...

    def samples(self) -> Iterator[Sample]:
        """The samples, in the benchmark's order; lazily.

        Raises:
            DataError: a file is missing or damaged; says what and how to get it.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure with its 95 % bootstrap interval.

    Attributes:
        value, low, high: the figure and the interval, in the metric's unit.
        n: scored answers behind it.
    """

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A figure's paired difference to the same target behind `Results.compared_to`.

    Attributes:
        value, low, high: the difference and its 95 % interval.
        p: two-sided p-value (McNemar for shares, paired bootstrap otherwise).
        n: pairs behind it.
    """

    value: float
    low: float
    high: float
    p: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One row of the table: a target behind a defence on (a subset of) a benchmark, by one judge.

    Attributes:
        metrics: metric → estimate (``safe_rate``, ``asr``, ``dsr``, ``helpfulness``, …).
        differences: metric → paired difference to another defence; empty for that one itself.
        by_category: category → metric → estimate.
        answers: answers that were asked for; of them
        failed: without an answer, because the defence or the target failed,
        empty: with an empty answer,
        unscored: that the judge did not score (failed and empty ones included).
        repeats: answers of one sample; its figures are their majority or mean.
        undecided: samples of several answers without a majority, which are in no figure.
        latency_ms, defence_ms: medians.
        calls, defence_tokens: means per answer.
    """

    target: str
    benchmark: str
    subset: str
    defence: str
    judge: str
    metrics: Mapping[str, Estimate]
    differences: Mapping[str, Difference] = field(default_factory=dict)
    by_category: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    answers: int
    failed: int
    empty: int
    unscored: int
    latency_ms: float
    defence_ms: float
    calls: float
    defence_tokens: float
    repeats: int = 1
    undecided: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleView:
    """A sample with all that was said to it, for the report's browsable part."""

    sample: Sample
    answers: tuple[tuple[Answer, tuple[Judgement, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """All that a report shows.

    Attributes:
        cells: the table.
        views: the samples with their answers, for browsing.
        versions: package → version.
        seeds: what was fixed.
        dataset_hashes: benchmark → sha256 over its files as read.
        command: what repeats the run.
        settings: everything else that a reader needs to repeat it.
        compared_to: the defence that the cells' differences are to.
    """

    cells: tuple[Cell, ...]
    views: tuple[SampleView, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    seeds: Mapping[str, int] = field(default_factory=dict)
    dataset_hashes: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    compared_to: str = "none"
