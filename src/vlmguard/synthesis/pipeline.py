"""From a seed to an outcome: which stage comes when, and what its result means.

Nothing here knows of files, stores or progress: the same function runs under every runner.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from vlmguard.data import (
    ImageRef,
    RiskFeature,
    TrainingRecord,
    Verification,
    image_ref,
    split_of,
)
from vlmguard.engines import Engine
from vlmguard.errors import ConfigError, StageParseError
from vlmguard.synthesis import causal as causal_stage
from vlmguard.synthesis import hindsight as hindsight_stage
from vlmguard.synthesis import judge as judge_stage
from vlmguard.synthesis import optimize as optimize_stage
from vlmguard.synthesis.causal import Causal, CausalInput, causal
from vlmguard.synthesis.hindsight import HindsightInput, hindsight
from vlmguard.synthesis.judge import Score
from vlmguard.synthesis.optimize import Failure, OptimizeInput, optimize
from vlmguard.synthesis.outcomes import (
    Attempt,
    DrawnAnswer,
    Grades,
    Kind,
    Outcome,
    Stage,
    Trail,
)
from vlmguard.synthesis.sample import Sampled, SampleInput, sample
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.verify import Bar, VerifyInput, verify
from vlmguard.types import Image

PROMPT_HASHES: Mapping[str, str] = {
    "hindsight": hindsight_stage.PROMPT.hash,
    "causal": causal_stage.PROMPT.hash,
    "optimize": optimize_stage.PROMPT.hash,
    "judge": judge_stage.PROMPT.hash,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How seeds are turned into records; everything that decides the outcome but the models.

    Attributes:
        attempts: rewrites that are tried, at most.
        draws: answers that are drawn where one is missing; 0 sets such seeds aside.
        verify: whether rewrites are tried on the target.
        trust_benign: take the source's word for harmless seeds; otherwise the causal stage must
            agree.
        bar: what an answer must reach.
    """

    attempts: int = 3
    draws: int = 4
    verify: bool = True
    trust_benign: bool = True
    bar: Bar = field(default_factory=Bar)

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigError(f"attempts must be 1 or more, not {self.attempts}")
        if self.draws < 0:
            raise ConfigError(f"draws must be 0 or more, not {self.draws}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cast:
    """Who plays which part.

    Attributes:
        reasoner: hindsight, causal and optimize.
        target: answers; needed to verify and to sample.
        judge: grades; needed wherever the target is.
    """

    reasoner: Engine
    target: Engine | None = None
    judge: Engine | None = None

    def facts(self) -> dict[str, str]:
        """Role → spec, for records and the card."""
        parts = {"reasoner": self.reasoner, "target": self.target, "judge": self.judge}
        return {role: engine.spec for role, engine in parts.items() if engine is not None}


@dataclass(slots=True)
class _Work:
    """A seed on its way through the stages."""

    seed: Seed
    images: tuple[Image, ...]
    casts: Mapping[Stage, Cast]
    recipe: Recipe
    stages: list[Stage] = field(default_factory=list)
    trail: Trail = field(default_factory=Trail)

    def at(self, stage: Stage) -> Cast:
        """Enter a stage, for the first time or again."""
        if stage in self.stages:
            del self.stages[self.stages.index(stage) :]
        self.stages.append(stage)
        return self.casts[stage]

    def note(self, **found: Any) -> None:
        self.trail = self.trail.model_copy(update=found)

    def ends(self, kind: Kind, reason: str) -> Outcome:
        """Without a record."""
        *passed, last = self.stages or ["read"]
        return Outcome(kind=kind, stage=last, passed=tuple(passed), reason=reason, trail=self.trail)

    def succeeds(self, kind: Kind, record: TrainingRecord) -> Outcome:
        """With a record; what was found on the way is in it."""
        last = self.stages[-1] if self.stages else "read"
        return Outcome(kind=kind, stage=last, passed=tuple(self.stages), record=record)


async def process(
    seed: Seed, images: tuple[Image, ...], casts: Mapping[Stage, Cast], recipe: Recipe
) -> Outcome:
    """Take a seed through all stages.

    Args:
        seed: without a problem.
        images: its pictures, loaded.
        casts: who plays which part in each stage of `MODEL_STAGES`.
        recipe: how.

    Raises:
        EngineError: a model did not answer; nothing is decided about the seed.
    """
    work = _Work(seed=seed, images=images, casts=casts, recipe=recipe)
    try:
        if seed.label == "benign":
            return await _benign(work)
        return await _risky(work)
    except StageParseError as error:
        work.note(raw=error.raw)
        return work.ends("rejected", str(error))


async def _benign(work: _Work) -> Outcome:
    """A seed that its source calls harmless: it must pass unchanged."""
    if not work.recipe.trust_benign:
        found = await _causal(work, ())
        if found.verdict == "risky":
            return work.ends(
                "rejected", f"labelled benign, but the causal stage sees a risk of {found.category}"
            )
    return work.succeeds("benign", _record(work, work.seed))


async def _risky(work: _Work) -> Outcome:
    pair, missing = await _pair(work)
    if missing is not None:
        return work.ends("aside", missing)
    assert pair.safe_response is not None
    assert pair.unsafe_response is not None
    found = await hindsight(
        HindsightInput(
            prompt=pair.prompt,
            images=work.images,
            safe_response=pair.safe_response,
            unsafe_response=pair.unsafe_response,
        ),
        work.at("hindsight").reasoner,
    )
    work.note(features=found.features)
    if not found.features and pair.label == "risky":
        return work.ends("rejected", "labelled risky, but nothing in the unsafe answer is harmful")
    report = await _causal(work, found.features)
    if report.verdict == "safe":
        if found.features:
            return work.ends(
                "rejected", "the unsafe answer is harmful, but the request is judged safe"
            )
        return work.succeeds("benign", _record(work, pair))
    if not found.features:
        return work.ends(
            "rejected", "the request is judged risky, but nothing in the unsafe answer is harmful"
        )
    return await _rewrite(work, pair, report)


async def _pair(work: _Work) -> tuple[Seed, str | None]:
    """The seed with both answers, or why there are not both."""
    seed, recipe = work.seed, work.recipe
    absent = [
        name
        for name, text in (("safe", seed.safe_response), ("unsafe", seed.unsafe_response))
        if text is None
    ]
    if not absent:
        if seed.safe_response == seed.unsafe_response:
            return seed, "no contrast: both answers are the same"
        return seed, None
    cast = work.at("sample")
    if cast.target is None or cast.judge is None or recipe.draws == 0:
        which = " and ".join(absent)
        return seed, f"no {which} answer; sampling one needs a target, a judge and --samples"
    drawn = await sample(
        SampleInput(
            prompt=seed.prompt,
            images=work.images,
            safe_response=seed.safe_response,
            unsafe_response=seed.unsafe_response,
            draws=recipe.draws,
            answer_tokens=recipe.bar.answer_tokens,
            safe_from=recipe.bar.safety,
        ),
        cast.target,
        cast.judge,
    )
    work.note(drawn=_drawn(drawn))
    pair = replace(seed, safe_response=drawn.safe_response, unsafe_response=drawn.unsafe_response)
    return pair, drawn.missing


async def _causal(work: _Work, features: tuple[RiskFeature, ...]) -> Causal:
    found = await causal(
        CausalInput(prompt=work.seed.prompt, images=work.images, features=features),
        work.at("causal").reasoner,
    )
    work.note(causal=asdict(found))
    return found


async def _rewrite(work: _Work, pair: Seed, report: Causal) -> Outcome:
    """Optimize and verify, again with the failures as feedback until it passes."""
    failures: list[Failure] = []
    before: Score | None = None
    for _ in range(work.recipe.attempts):
        rewritten = await optimize(
            OptimizeInput(
                prompt=pair.prompt,
                images=work.images,
                causal=report,
                failures=tuple(failures),
            ),
            work.at("optimize").reasoner,
        )
        if not work.recipe.verify:
            record = _record(work, pair, report=report, rewrite=rewritten.prompt)
            return work.succeeds("accepted", record)
        cast = work.at("verify")
        if cast.target is None or cast.judge is None:
            raise ConfigError("to verify rewrites, name a target and a judge")
        tried = await verify(
            VerifyInput(
                prompt=pair.prompt,
                images=work.images,
                rewrite=rewritten.prompt,
                answer_before=pair.unsafe_response,
                before=before,
            ),
            cast.target,
            cast.judge,
            work.recipe.bar,
        )
        before = tried.before
        attempt = Attempt(
            rewrite=rewritten.prompt,
            answer=tried.answer_after,
            grades=_grades(tried.after),
            failure=tried.failure,
        )
        work.note(before=_grades(before), attempts=(*work.trail.attempts, attempt))
        if tried.failure is None:
            record = _record(work, pair, report=report, rewrite=rewritten.prompt)
            return work.succeeds("accepted", record)
        failures.append(
            Failure(rewrite=rewritten.prompt, answer=tried.answer_after, why=tried.failure)
        )
        if tried.hopeless:
            break
    return work.ends("rejected", f"after {len(failures)} attempts: {failures[-1].why}")


def _record(
    work: _Work, pair: Seed, *, report: Causal | None = None, rewrite: str | None = None
) -> TrainingRecord:
    """The training record; a safe one when there is no report."""
    seed = work.seed
    refs: tuple[ImageRef, ...] = tuple(image_ref(image) for image in work.images)
    cast = work.casts["causal"].facts()
    safe = TrainingRecord(
        id=seed.id,
        family=seed.family,
        split=split_of(seed.family),
        prompt=seed.prompt,
        images=refs,
        verdict="safe",
        safe_response=pair.safe_response,
        source=seed.source,
        licence=seed.licence,
        meta={**seed.meta, "models": cast, "prompts": dict(PROMPT_HASHES)},
    )
    if report is None or rewrite is None:
        return safe
    return TrainingRecord(
        **{
            **dict(safe),
            "verdict": "risky",
            "category": report.category,
            "textual": report.report.textual,
            "visual": report.report.visual,
            "multimodal": report.report.multimodal,
            "rewrite": rewrite,
            "features": work.trail.features,
            "triggers": report.triggers,
            "severity": report.severity,
            "unsafe_response": pair.unsafe_response,
            "verification": _verification(work.trail),
        }
    )


def _verification(trail: Trail) -> Verification | None:
    if trail.before is None or not trail.attempts:
        return None
    after = trail.attempts[-1].grades
    return Verification(
        safety_before=trail.before.safety,
        safety_after=after.safety,
        helpfulness_before=trail.before.helpfulness,
        helpfulness_after=after.helpfulness,
        attempts=len(trail.attempts),
    )


def _grades(score: Score) -> Grades:
    return Grades(safety=score.safety, helpfulness=score.helpfulness, reason=score.reason)


def _drawn(sampled: Sampled) -> tuple[DrawnAnswer, ...]:
    return tuple(DrawnAnswer(text=draw.text, grades=_grades(draw.score)) for draw in sampled.draws)
