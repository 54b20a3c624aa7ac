"""The values that travel between the parts. Frozen, slotted, keyword-only, no behaviour to mock.

Symbols in brackets are the paper's (arXiv 2504.12661).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]
Verdict = Literal["safe", "risky"]
Action = Literal["allow", "monitor", "rewrite", "refuse"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """One encoded picture [x_I]: the bytes that are inspected are the bytes that are sent.

    Attributes:
        data: the encoded file, e.g. a PNG.
        media_type: sniffed from the bytes, e.g. ``"image/png"``.
        source: where it came from, for messages to people; never sent to a model.
        sha256: hex digest of ``data``; the key of every cache.
    """

    data: bytes = field(repr=False)
    media_type: str
    source: str = "bytes"
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.data).hexdigest())

    def data_url(self) -> str:
        """The picture as a ``data:`` URL (RFC 2397), as OpenAI-compatible servers take it."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One turn. Pictures stand before the text."""

    role: Role
    text: str
    images: tuple[Image, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Chat:
    """A conversation, oldest message first.

    When the last message is the assistant's, a model is asked to *continue* it
    (`Capability.PREFIX`), not to answer it.
    """

    messages: tuple[Message, ...]

    @classmethod
    def of(cls, prompt: str, images: Sequence[Image] = (), *, system: str | None = None) -> Chat:
        """One user turn [x_T, x_I], with an optional system prompt before it."""
        head = () if system is None else (Message(role="system", text=system),)
        return cls(messages=(*head, Message(role="user", text=prompt, images=tuple(images))))

    def then(self, message: Message) -> Chat:
        """This conversation with one more message."""
        return Chat(messages=(*self.messages, message))

    def with_text(self, index: int, text: str) -> Chat:
        """This conversation with the text of message ``index`` replaced, its pictures kept."""
        changed = replace(self.messages[index], text=text)
        return Chat(messages=(*self.messages[:index], changed, *self.messages[index + 1 :]))

    @property
    def images(self) -> tuple[Image, ...]:
        """All pictures of all messages, in order."""
        return tuple(image for message in self.messages for image in message.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens of one call, as the engine counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """One generated token with the likeliest alternatives at its place.

    Attributes:
        token: its text.
        logprob: natural logarithm of its probability.
        top: alternatives (token text, logprob), likeliest first; usually contains the token itself.
    """

    token: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """A model's answer.

    Attributes:
        text: what was generated; without the prefix, when one was continued.
        finish_reason: ``"stop"``, ``"length"`` or what the server said.
        logprobs: one entry a token where they were asked for, else ``None``.
        model: the engine's spec or the model name that the server reported.
    """

    text: str
    finish_reason: str
    usage: Usage = Usage()
    logprobs: tuple[TokenLogprob, ...] | None = None
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """A piece of a streamed answer. The last one carries ``finish_reason`` and ``usage``."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextBox:
    """A line of text found in a picture.

    Attributes:
        text: as read.
        confidence: of the recognizer, 0..1.
        box: left, top, right, bottom in pixels of the picture as shown (after EXIF rotation).
        hidden: found only on an enhanced copy: low contrast or tiny size.
    """

    text: str
    confidence: float
    box: tuple[float, float, float, float]
    hidden: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectLabel:
    """A guess of what the picture shows. A guess: always quote the probability with it."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageEvidence:
    """What the detectors found in one picture, as text for models that cannot see.

    Attributes:
        sha256: of the picture's bytes.
        width, height: in pixels, as shown.
        frames: distinct frames that were inspected (1 for a still picture).
        frames_skipped: frames left out over the cap; never silently zero.
        text: lines in reading order, over all frames.
        objects: likeliest first, over all frames.
        nudity: 0..1, the highest over all frames; ``None`` when that detector did not run.
        description: a caption, where somebody or some model gave one.
        disabled: detectors that were switched off.
        failed: detector → why it failed. A failed detector is never an empty result.
    """

    sha256: str
    width: int
    height: int
    frames: int = 1
    frames_skipped: int = 0
    text: tuple[TextBox, ...] = ()
    objects: tuple[ObjectLabel, ...] = ()
    nudity: float | None = None
    description: str | None = None
    disabled: tuple[str, ...] = ()
    failed: Mapping[str, str] = field(default_factory=dict)

    def joined_text(self) -> str:
        """The lines that were read, one below the other."""
        return "\n".join(box.text for box in self.text)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; part of the stable output of ``vlmguard rewrite --json``."""
        return {
            "sha256": self.sha256,
            "width": self.width,
            "height": self.height,
            "frames": self.frames,
            "frames_skipped": self.frames_skipped,
            "text": [
                {
                    "text": box.text,
                    "confidence": round(box.confidence, 4),
                    "box": [round(side, 1) for side in box.box],
                    "hidden": box.hidden,
                }
                for box in self.text
            ],
            "objects": [
                {"label": seen.label, "probability": round(seen.probability, 4)}
                for seen in self.objects
            ],
            "nudity": None if self.nudity is None else round(self.nudity, 4),
            "description": self.description,
            "disabled": list(self.disabled),
            "failed": dict(self.failed),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class RiskReport:
    """Why a request is risky [A]: three causes, in the paper's order."""

    textual: str
    visual: str
    multimodal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """What the guard decided about one user turn.

    Attributes:
        verdict: after the policy's threshold was applied to ``risk``.
        risk: probability 0..1 that the request is risky; 0 or 1 where the engine has no logprobs.
        category: one of the policy's categories; ``None`` when safe.
        action: what the policy does about it.
        report: the causal analysis [A]; ``None`` when safe.
        prompt: what the target is to receive [x_T′]; the original, byte for byte, unless
            ``action`` is ``"rewrite"``.
        changed: ``prompt`` differs from what the user wrote.
        evidence: one entry an image, where the rewriter could not see.
        timings_ms: step → milliseconds.
        usage: tokens that the rewriter spent.
        calls: times that the rewriter's model was asked; 0 for a remembered decision.
        rewriter, policy: who decided, by which rules.
        failure: why the guard could not decide, when the policy lets such requests through
            (``on_failure: open``); ``None`` otherwise.
    """

    verdict: Verdict
    risk: float
    category: str | None
    action: Action
    report: RiskReport | None
    prompt: str
    changed: bool
    evidence: tuple[ImageEvidence, ...] = ()
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = Usage()
    calls: int = 0
    rewriter: str = ""
    policy: str = ""
    failure: str | None = None

    def to_json(self, *, id: str | int | None = None) -> dict[str, Any]:
        """The stable JSON form (names do not change any more)."""
        report = self.report
        return {
            "id": id,
            "verdict": self.verdict,
            "risk": round(self.risk, 6),
            "category": self.category,
            "action": self.action,
            "report": None
            if report is None
            else {
                "textual": report.textual,
                "visual": report.visual,
                "multimodal": report.multimodal,
            },
            "prompt": self.prompt,
            "changed": self.changed,
            "evidence": {"images": [image.to_json() for image in self.evidence]},
            "timings_ms": {step: round(ms, 3) for step, ms in self.timings_ms.items()},
            "rewriter": self.rewriter,
            "policy": self.policy,
            "failure": self.failure,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """How a reply came about.

    What the target would have cost alone stands apart from what the defence added: the first in
    ``usage`` and the step ``"target"``, the second in ``calls``, ``defence_usage`` and every other
    step.

    Attributes:
        rewrites: one entry a user turn, oldest first (empty for defences that do not rewrite).
        sent: the conversation whose answer this is; ``None`` when the target was not asked.
        timings_ms: step → milliseconds, over the whole request.
        usage: tokens of the one call that the target would have had without the defence.
        calls: calls of models that the defence added: rewriters, judges, scorers, more answers.
        defence_usage: tokens of those calls.
        target: the target's spec.
        notes: what a reader should know, e.g. that a blind target got text evidence.
    """

    rewrites: tuple[Rewrite, ...] = ()
    sent: Chat | None = None
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    usage: Usage = Usage()
    calls: int = 0
    defence_usage: Usage = Usage()
    target: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """The answer of a defended target, and how it came about."""

    completion: Completion
    trace: Trace
