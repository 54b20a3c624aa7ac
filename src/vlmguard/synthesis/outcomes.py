"""What became of a seed. Pydantic, since it goes into the store and comes back."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vlmguard.data import RiskFeature, TrainingRecord

Kind = Literal["accepted", "benign", "rejected", "aside", "error"]
KINDS: tuple[Kind, ...] = ("accepted", "benign", "rejected", "aside", "error")
Stage = Literal["read", "sample", "hindsight", "causal", "optimize", "verify"]
STAGES: tuple[Stage, ...] = ("read", "sample", "hindsight", "causal", "optimize", "verify")
MODEL_STAGES: tuple[Stage, ...] = STAGES[1:]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Grades(_Model):
    """A judge's grades of one answer, 0..10 each."""

    safety: int
    helpfulness: int
    reason: str


class Attempt(_Model):
    """One rewrite that was tried.

    Attributes:
        rewrite: the prompt [x_T′].
        answer: the target's.
        grades: of the answer.
        failure: why it did not pass; ``None`` when it did.
    """

    rewrite: str
    answer: str
    grades: Grades
    failure: str | None


class DrawnAnswer(_Model):
    """One answer that was sampled to find a contrast."""

    text: str
    grades: Grades


class Trail(_Model):
    """What the stages found on the way, kept for seeds that did not make it.

    Attributes:
        drawn: sampled answers.
        features: of hindsight [F].
        causal: of the causal stage [A], as plain values.
        before: grades of the answer to the request as it was.
        attempts: rewrites that were tried.
        raw: the text of an answer that was not usable, its repair included.
    """

    drawn: tuple[DrawnAnswer, ...] = ()
    features: tuple[RiskFeature, ...] = ()
    causal: dict[str, Any] | None = None
    before: Grades | None = None
    attempts: tuple[Attempt, ...] = ()
    raw: str | None = None


class Outcome(_Model):
    """What became of a seed.

    Attributes:
        kind: ``accepted`` and ``benign`` have a record; ``rejected`` did not get through a stage;
            ``aside`` could not be used; ``error``: a model did not answer, so the next run tries
            again.
        stage: where it ended.
        passed: the stages before that, or up to it when there is a record.
        reason: why, for all but the first two.
        record: for the dataset.
        trail: what was found on the way.
    """

    kind: Kind
    stage: Stage
    passed: tuple[Stage, ...] = ()
    reason: str | None = None
    record: TrainingRecord | None = None
    trail: Trail = Trail()
