"""The rewriter [R]: reads text and image together, judges, reasons, and writes a better prompt.

`PromptedRewriter` makes one out of any `Engine`: zero-shot by a prompt, or with a trained adapter.
It pays for risk only: where the engine can continue a prefix and report probabilities, a harmless
request costs one prefill and a single token.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.errors import ConfigError, EngineRejected, PerceptionError, RewriteParseError
from vlmguard.perception import Perceiver
from vlmguard.prompts import Prompt, load_prompt
from vlmguard.rewriting.format import (
    RISKY_PREFIX,
    VERDICT_PREFIX,
    Assessment,
    Layout,
    grammar,
    json_schema,
    parse_assessment,
    render_assessment,
    render_request,
    risk_from_logprobs,
)
from vlmguard.rewriting.policy import CATEGORIES, CATEGORY_NAMES, Policy, Preset
from vlmguard.rewriting.windows import Window, clip_context, split
from vlmguard.types import (
    Chat,
    Completion,
    ImageEvidence,
    Message,
    Rewrite,
    RiskReport,
    Usage,
)

_VERDICT = Sampling(max_tokens=1, top_logprobs=20)
_MAX_TOKENS = 768
_TOP_LOGPROBS = 5  # what OpenAI-compatible servers commonly allow


class Rewriter(Protocol):
    """Judges the last user turn of a conversation and rewrites it where needed."""

    @property
    def name(self) -> str:
        """Appears in results."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever its decisions might; part of every cache key."""
        ...

    async def load(self) -> None:
        """Fetch and load what the first decision would, so that it need not be timed with it."""
        ...

    async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
        """Decide about the last message of ``chat``, the user's, in the light of those before it.

        Raises:
            EngineError: the model did not answer.
            RewriteParseError: it answered, but not in the agreed form, twice.
            PerceptionError: a picture could not be inspected fully.
        """
        ...


@dataclass(slots=True)
class _Run:
    """What one decision has cost so far."""

    timings_ms: dict[str, float] = field(default_factory=dict)
    usage: Usage = field(default_factory=Usage)
    calls: int = 0

    def spent(self, step: str, since: float) -> None:
        elapsed = (time.perf_counter() - since) * 1000
        self.timings_ms[step] = self.timings_ms.get(step, 0.0) + elapsed


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """One window's outcome."""

    risk: float
    assessment: Assessment


class PromptedRewriter:
    """A rewriter made of an engine and a prompt.

    Args:
        engine: any engine. One that can see gets the pictures; to one that cannot, they are
            described by ``perceiver``.
        perceiver: needed for pictures when the engine cannot see.
        layout: verdict first (cheap for harmless requests) or reason first (the paper's order).
        prompt: the system prompt; the zero-shot one by default.
        thresholds: calibrated thresholds by preset, where there are some.
        window_chars: longer prompts or in-image texts are judged in overlapping windows of this
            size, and the riskiest decides. ``None`` splits only what the engine's context refuses.
        identity: what a decision depends on besides all that, e.g. which weights lie at the
            adapter's path.
        name: appears in results; the engine's spec by default.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        perceiver: Perceiver | None = None,
        layout: Layout = Layout.VERDICT_FIRST,
        prompt: Prompt | None = None,
        thresholds: dict[Preset, float] | None = None,
        window_chars: int | None = None,
        identity: str = "",
        name: str | None = None,
    ) -> None:
        self._engine = engine
        self._perceiver = perceiver
        self._layout = layout
        self._prompt = prompt or load_prompt("vlmguard.rewriting", "zero_shot.md")
        self._system = Message(role="system", text=_fill(self._prompt, layout))
        self._thresholds = thresholds
        self._window_chars = window_chars
        self._identity = identity
        self._name = name or engine.spec

    @property
    def name(self) -> str:
        """As given, or the engine's spec."""
        return self._name

    @property
    def engine(self) -> Engine:
        """The model that decides."""
        return self._engine

    @property
    def prompt(self) -> Prompt:
        """The system prompt, before it is filled."""
        return self._prompt

    @property
    def thresholds(self) -> Mapping[Preset, float] | None:
        """Calibrated thresholds by preset, where there are some."""
        return self._thresholds

    def with_engine(self, engine: Engine) -> PromptedRewriter:
        """The same rewriter over another engine, e.g. its own behind a `WrappedEngine`."""
        return PromptedRewriter(
            engine,
            perceiver=self._perceiver,
            layout=self._layout,
            prompt=self._prompt,
            thresholds=self._thresholds,
            window_chars=self._window_chars,
            identity=self._identity,
            name=self._name,
        )

    @property
    def sighted(self) -> bool:
        """Whether the model sees the pictures itself."""
        return Capability.VISION in self._engine.capabilities

    @property
    def fingerprint(self) -> str:
        """Of all that a decision depends on besides the policy."""
        eyes = "sighted" if self.sighted else "blind"
        if not self.sighted and self._perceiver:
            eyes = self._perceiver.fingerprint
        parts = (
            self._engine.spec,
            self._layout,
            self._prompt.hash,
            eyes,
            str(self._thresholds),
            str(self._window_chars),
            self._identity,
        )
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    async def load(self) -> None:
        """See `Rewriter.load`."""
        await self._engine.load()

    async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
        """See `Rewriter.rewrite`."""
        if not chat.messages or chat.messages[-1].role != "user":
            raise ConfigError("a rewriter judges a conversation that ends with a user message")
        turn = chat.messages[-1]
        earlier = clip_context(chat.messages[:-1])
        run = _Run()
        evidence = await self._perceive(turn, run)
        threshold = policy.threshold_for(self._thresholds)
        whole = Window(turn=turn, earlier=earlier, evidence=evidence)
        judged = await self._judge_all(split(whole, self._window_chars), threshold, run)
        return self._decide(
            turn, evidence=evidence, judged=judged, threshold=threshold, policy=policy, run=run
        )

    async def _perceive(self, turn: Message, run: _Run) -> tuple[ImageEvidence, ...]:
        """Evidence of every picture, for a model that cannot see."""
        if not turn.images or self.sighted:
            return ()
        if self._perceiver is None:
            raise ConfigError(
                f"the rewriter {self._name} cannot see, and no perceiver was given to read "
                "pictures for it"
            )
        start = time.perf_counter()
        seen = await asyncio.gather(*(self._perceiver.perceive(image) for image in turn.images))
        run.spent("perception", start)
        for image, found in zip(turn.images, seen, strict=True):
            for detector, reason in found.failed.items():
                raise PerceptionError(
                    f"{image.source}: the detector {detector!r} failed ({reason}); switch it off "
                    "to go on without it"
                )
        return tuple(seen)

    async def _judge_all(self, windows: Sequence[Window], threshold: float, run: _Run) -> _Judged:
        """The riskiest window's outcome; stops at the first that is risky."""
        worst: _Judged | None = None
        for window in windows:
            judged = await self._judge_within_context(window, threshold, run)
            if worst is None or judged.risk > worst.risk:
                worst = judged
            if judged.assessment.verdict == "risky":
                return judged
        assert worst is not None
        return worst

    async def _judge_within_context(self, window: Window, threshold: float, run: _Run) -> _Judged:
        """Judge one window; where the engine's context is too small, its halves."""
        try:
            return await self._judge(window, threshold, run)
        except EngineRejected as error:
            halves = split(window, window.longest_text // 2) if error.context_exceeded else ()
            if len(halves) < 2:
                raise
            return await self._judge_all(halves, threshold, run)

    async def _judge(self, window: Window, threshold: float, run: _Run) -> _Judged:
        request = render_request(window.turn, earlier=window.earlier, evidence=window.evidence)
        images = window.turn.images if self.sighted else ()
        chat = Chat(messages=(self._system, Message(role="user", text=request, images=images)))
        needed = {Capability.PREFIX, Capability.LOGPROBS}
        if self._layout is Layout.VERDICT_FIRST and needed <= self._engine.capabilities:
            risk = await self._verdict_alone(chat, run)
            if risk is not None:
                if risk < threshold:
                    return _Judged(risk=risk, assessment=Assessment(verdict="safe"))
                return _Judged(risk=risk, assessment=await self._reason(chat, window, run))
        risk, assessment = await self._in_one_go(chat, window, run)
        if risk < threshold:
            return _Judged(risk=risk, assessment=Assessment(verdict="safe"))
        if assessment.verdict == "safe":
            # The model leans to safe, the policy is stricter: have it explain the other verdict.
            assessment = await self._reason(chat, window, run)
        return _Judged(risk=risk, assessment=assessment)

    async def _verdict_alone(self, chat: Chat, run: _Run) -> float | None:
        """The probability of risk from the single token after the verdict's prefix."""
        begun = chat.then(Message(role="assistant", text=VERDICT_PREFIX))
        completion = await self._call("verdict", begun, _VERDICT, run)
        return risk_from_logprobs(completion.logprobs or (), after_prefix=True)

    async def _in_one_go(self, chat: Chat, window: Window, run: _Run) -> tuple[float, Assessment]:
        """The whole assessment in one answer, and the probability of risk in it."""
        can = self._engine.capabilities
        sampling = self._constrained(
            top_logprobs=_TOP_LOGPROBS if Capability.LOGPROBS in can else 0
        )
        assessment, completion = await self._parsed(
            "rewrite", chat, window=window, run=run, sampling=sampling
        )
        risk = risk_from_logprobs(completion.logprobs or ())
        if risk is None:
            risk = 1.0 if assessment.verdict == "risky" else 0.0
        return risk, assessment

    async def _reason(self, chat: Chat, window: Window, run: _Run) -> Assessment:
        """Reasons and rewrite for a verdict that is known to be risky."""
        if self._layout is Layout.VERDICT_FIRST and Capability.PREFIX in self._engine.capabilities:
            begun = chat.then(Message(role="assistant", text=RISKY_PREFIX))
            sampling = self._constrained(after_risky_prefix=True)
            assessment, _ = await self._parsed(
                "rewrite", begun, window=window, run=run, sampling=sampling, prefix=RISKY_PREFIX
            )
        else:
            request = chat.messages[-1]
            known = chat.with_text(1, f"{request.text}\nThe verdict is known: risky.")
            assessment, _ = await self._parsed(
                "rewrite", known, window=window, run=run, sampling=self._constrained()
            )
        if assessment.verdict != "risky":
            raise RewriteParseError(
                "the rewriter insists on a safe verdict where the policy's threshold says risky",
                raw=render_assessment(assessment, self._layout),
            )
        return assessment

    def _constrained(self, *, top_logprobs: int = 0, after_risky_prefix: bool = False) -> Sampling:
        """Greedy sampling under the strongest constraint that the engine takes."""
        can = self._engine.capabilities
        if Capability.GRAMMAR in can:
            gbnf = grammar(self._layout, CATEGORY_NAMES, after_risky_prefix=after_risky_prefix)
            return Sampling(max_tokens=_MAX_TOKENS, top_logprobs=top_logprobs, grammar=gbnf)
        schema = None
        if Capability.JSON_SCHEMA in can and not after_risky_prefix:
            schema = json_schema(self._layout, CATEGORY_NAMES)
        return Sampling(max_tokens=_MAX_TOKENS, top_logprobs=top_logprobs, json_schema=schema)

    async def _parsed(
        self,
        step: str,
        chat: Chat,
        *,
        window: Window,
        run: _Run,
        sampling: Sampling,
        prefix: str = "",
    ) -> tuple[Assessment, Completion]:
        """An answer in the agreed form; the model may repair it once."""
        completion = await self._call(step, chat, sampling, run)
        try:
            return self._read(prefix + completion.text, window), completion
        except RewriteParseError as error:
            # A repair starts over without the prefix, so that the model writes the whole object.
            asked = Chat(messages=chat.messages[:-1]) if prefix else chat
            again = asked.then(Message(role="assistant", text=error.raw or "(empty)")).then(
                Message(
                    role="user",
                    text=f"That is not the agreed form: {error}. "
                    "Answer with the one JSON object only.",
                )
            )
            completion = await self._call("repair", again, self._constrained(), run)
            return self._read(completion.text, window), completion

    def _read(self, text: str, window: Window) -> Assessment:
        """Parse, and refuse a rewrite that is none."""
        assessment = parse_assessment(text, self._layout)
        if assessment.prompt is None:
            return assessment
        if assessment.prompt.strip() == window.turn.text.strip():
            raise RewriteParseError("prompt repeats the original request", raw=text)
        category = (assessment.category or "").strip().lower().replace(" ", "_")
        if category not in CATEGORY_NAMES:
            raise RewriteParseError(
                f"category {assessment.category!r} is none of {', '.join(CATEGORY_NAMES)}", raw=text
            )
        return replace(assessment, category=category)

    async def _call(self, step: str, chat: Chat, sampling: Sampling, run: _Run) -> Completion:
        start = time.perf_counter()
        run.calls += 1
        try:
            completion = await self._engine.generate(chat, sampling)
        finally:
            run.spent(step, start)
        run.usage += completion.usage
        return completion

    def _decide(
        self,
        turn: Message,
        *,
        evidence: tuple[ImageEvidence, ...],
        judged: _Judged,
        threshold: float,
        policy: Policy,
        run: _Run,
    ) -> Rewrite:
        assessment = judged.assessment
        risky = judged.risk >= threshold
        action = policy.action_for(assessment.category) if risky else "allow"
        prompt = turn.text
        if action == "rewrite":
            assert assessment.prompt is not None
            prompt = assessment.prompt
        return Rewrite(
            verdict="risky" if risky else "safe",
            risk=judged.risk,
            category=assessment.category,
            action=action,
            report=assessment.report if risky else None,
            prompt=prompt,
            changed=prompt != turn.text,
            evidence=evidence,
            timings_ms=run.timings_ms,
            usage=run.usage,
            calls=run.calls,
            rewriter=self._name,
            policy=policy.name,
        )


def _fill(prompt: Prompt, layout: Layout) -> str:
    """The system prompt; the zero-shot one shows categories and the form in this layout."""
    if "${" not in prompt.text:
        return prompt.text
    example = Assessment(
        verdict="risky",
        category="one of the categories",
        report=RiskReport(textual="…", visual="…", multimodal="…"),
        prompt="…",
    )
    return prompt.fill(
        categories="\n".join(f"- {item.name}: {item.description}" for item in CATEGORIES),
        safe_example=render_assessment(Assessment(verdict="safe"), layout),
        risky_example=render_assessment(example, layout),
    )
