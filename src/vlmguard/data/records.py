"""The record that synthesis writes and training reads. Pydantic, since it comes in from files.

Symbols in brackets are the paper's.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vlmguard.rewriting.format import Assessment
from vlmguard.types import (
    ImageEvidence,
    Message,
    ObjectLabel,
    RiskReport,
    TextBox,
    Verdict,
)

SCHEMA_VERSION = 1
Split = Literal["train", "validation", "test"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ImageRef(_Model):
    """A picture beside the records.

    Attributes:
        sha256: of its bytes; the file is named after it.
        media_type: e.g. ``"image/png"``.
        path: relative to the dataset's folder, e.g. ``"images/ab/abcd….png"``.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: str
    path: str


class Evidence(_Model):
    """What a picture shows, for rewriters that cannot see; the picture itself may not exist.

    Attributes:
        text: lines as read.
        objects: (label, probability 0..1), likeliest first.
        nudity: 0..1; ``None`` when not looked for.
        description: a caption, where there is one.
    """

    text: tuple[str, ...] = ()
    objects: tuple[tuple[str, Annotated[float, Field(ge=0, le=1)]], ...] = ()
    nudity: Annotated[float, Field(ge=0, le=1)] | None = None
    description: str | None = None

    def words(self) -> str:
        """Description and text, one line below the other; what duplicates are told by."""
        return "\n".join([*([self.description] if self.description else []), *self.text])

    def as_image_evidence(self) -> ImageEvidence:
        """In the form that `vlmguard.rewriting.format.render_request` takes."""
        return ImageEvidence(
            sha256="",
            width=0,
            height=0,
            text=tuple(TextBox(text=line, confidence=1.0, box=(0, 0, 0, 0)) for line in self.text),
            objects=tuple(ObjectLabel(label=name, probability=p) for name, p in self.objects),
            nudity=self.nudity,
            description=self.description,
        )


class Turn(_Model):
    """An earlier message of the conversation."""

    role: Literal["user", "assistant"]
    text: str

    def as_message(self) -> Message:
        """Without pictures."""
        return Message(role=self.role, text=self.text)


class RiskFeature(_Model):
    """One element of what hindsight found [F].

    Attributes:
        feature: what is harmful about the unsafe answer.
        span: the words of the answer that show it.
        harm: what it leads to.
    """

    feature: str
    span: str
    harm: str


class Verification(_Model):
    """How the target's answer to the rewritten prompt was judged.

    Attributes:
        safety: 0..10, before and after.
        helpfulness: 0..10, before and after.
        attempts: rewrites that were tried, this one included.
    """

    safety_before: float
    safety_after: float
    helpfulness_before: float
    helpfulness_after: float
    attempts: int = 1


class TrainingRecord(_Model):
    """One example for the rewriter.

    Attributes:
        id: unique in the dataset.
        family: records of one family stay in one split.
        split: which one.
        prompt: the user's text [x_T]; may be empty when there is a picture.
        images: the pictures [x_I].
        evidence: one entry a picture, where it was computed or authored.
        earlier: messages before the prompt, oldest first.
        verdict: ``safe`` records have nothing of what follows.
        category: a policy category.
        report: the causes [A].
        rewrite: the optimized prompt [x_T′].
        features: what hindsight found [F].
        triggers: words or picture elements that set the risk off.
        severity: 1 (slight) … 5 (grave).
        safe_response, unsafe_response: the contrasted answers [Y_safe, Y_unsafe].
        verification: scores of the verify stage.
        source, licence: where the seed came from.
        meta: anything else, e.g. models and prompt hashes.
    """

    id: Annotated[str, Field(min_length=1)]
    family: Annotated[str, Field(min_length=1)]
    split: Split = "train"
    prompt: str
    images: tuple[ImageRef, ...] = ()
    evidence: tuple[Evidence, ...] = ()
    earlier: tuple[Turn, ...] = ()
    verdict: Verdict
    category: str | None = None
    textual: str | None = None
    visual: str | None = None
    multimodal: str | None = None
    rewrite: str | None = None
    features: tuple[RiskFeature, ...] = ()
    triggers: tuple[str, ...] = ()
    severity: Annotated[int, Field(ge=1, le=5)] | None = None
    safe_response: str | None = None
    unsafe_response: str | None = None
    verification: Verification | None = None
    source: str = ""
    licence: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _whole(self) -> TrainingRecord:
        explained = (self.category, self.textual, self.visual, self.multimodal, self.rewrite)
        if self.verdict == "risky" and any(part is None for part in explained):
            raise ValueError(
                "a risky record needs category, textual, visual, multimodal and rewrite"
            )
        if self.verdict == "safe" and any(part is not None for part in explained):
            raise ValueError("a safe record has a verdict and nothing after it")
        if not self.prompt.strip() and not self.images and not self.evidence:
            raise ValueError("a record needs a prompt or a picture")
        if self.rewrite is not None and self.rewrite.strip() == self.prompt.strip():
            raise ValueError("the rewrite repeats the prompt")
        return self

    def assessment(self) -> Assessment:
        """What the rewriter is to answer, in the form that `format.render_assessment` takes."""
        if self.verdict == "safe":
            return Assessment(verdict="safe")
        report = RiskReport(
            textual=self.textual or "", visual=self.visual or "", multimodal=self.multimodal or ""
        )
        return Assessment(
            verdict="risky", category=self.category, report=report, prompt=self.rewrite
        )
