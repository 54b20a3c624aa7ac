"""One request through the guard, with everything that can be seen of it on the way."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path

from vlmguard.defences import Guard, sighted_target
from vlmguard.engines import Capability, Engine, Sampling
from vlmguard.errors import VLMGuardError
from vlmguard.images import load_image
from vlmguard.rewriting import Policy, PromptedRewriter
from vlmguard.rewriting.format import VERDICT_PREFIX, risk_from_logprobs
from vlmguard.types import Chat, Completion, ImageEvidence, Rewrite
from vlmguard.ui.models import Models
from vlmguard.ui.partial import PartialAssessment, read_partial
from vlmguard.ui.watching import Memory, WatchedEngine

_log = logging.getLogger(__name__)
_REDRAW_S = 0.08


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What the visitor asks, and of whom.

    Attributes:
        picture: an uploaded file; ``None`` for a prompt without one.
        target, rewriter: specs.
        policy: with the threshold that the page shows.
        max_tokens: of an answer.
    """

    prompt: str
    picture: Path | None
    target: str
    rewriter: str
    policy: Policy
    max_tokens: int = 200

    def at(self, threshold: float) -> Ask:
        """The same at another threshold."""
        return replace(self, policy=self.policy.model_copy(update={"threshold": float(threshold)}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One of the two answers.

    Attributes:
        text: so far.
        problem: why there is none, or no more.
        refused: it is the policy's refusal, and the target was not asked.
        done: nothing more comes.
    """

    text: str = ""
    problem: str = ""
    refused: bool = False
    done: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All that is known at a moment of a run.

    Attributes:
        prompt: the user's.
        picture: the file that was inspected.
        threshold: in force.
        step: what is going on, for people.
        evidence: what the detectors found in the picture; ``None`` where nobody read it (yet).
        risk: 0..1, as soon as the verdict's token is there.
        partial: reasons and rewrite, as they are written.
        rewrite: the decision, once it is made.
        unguarded, guarded: the answers.
        notes: what a reader should know.
        problem: why the guard could not decide.
        asked, recalled: calls of models, and those that were spared by memory.
        elapsed_ms: since the run began.
    """

    prompt: str
    picture: Path | None
    threshold: float
    step: str = ""
    evidence: ImageEvidence | None = None
    risk: float | None = None
    partial: PartialAssessment = field(default_factory=PartialAssessment)
    rewrite: Rewrite | None = None
    unguarded: Answer = field(default_factory=Answer)
    guarded: Answer = field(default_factory=Answer)
    notes: tuple[str, ...] = ()
    problem: str = ""
    asked: int = 0
    recalled: int = 0
    elapsed_ms: float = 0.0

    @property
    def veiled(self) -> bool:
        """Whether the unguarded answer stays covered: until the guard has found no risk."""
        return self.rewrite is None or self.rewrite.verdict == "risky"

    @property
    def passed_risky(self) -> bool:
        """Whether the policy let a risky prompt through, so that the guarded answer is covered."""
        rewrite = self.rewrite
        return rewrite is not None and rewrite.verdict == "risky" and rewrite.action == "monitor"


class Run:
    """One request on its way. It is its own listener.

    Args:
        models: where engines come from.
        ask: what to ask.
        memory: answers of earlier runs that need not be asked for again.
    """

    def __init__(self, models: Models, ask: Ask, memory: Memory) -> None:
        self._models = models
        self._ask = ask
        self._memory = memory
        self._before = (memory.asked, memory.recalled)
        self._changed = asyncio.Event()
        self._one_answer = False
        self._sampling = Sampling(max_tokens=ask.max_tokens)
        threshold = ask.policy.threshold_for()
        self.now = Snapshot(prompt=ask.prompt, picture=ask.picture, threshold=threshold)

    async def snapshots(self) -> AsyncGenerator[Snapshot, None]:
        """The state whenever it has changed, the last one when everything is done.

        Closing the iterator stops the models.
        """
        start = time.perf_counter()
        work = asyncio.create_task(self._work())
        work.add_done_callback(lambda _: self._changed.set())
        try:
            while not work.done():
                await self._changed.wait()
                self._changed.clear()
                self._set(elapsed_ms=(time.perf_counter() - start) * 1000, told=False)
                yield self.now
                await asyncio.sleep(_REDRAW_S)
            work.result()
            self._set(step="done", elapsed_ms=(time.perf_counter() - start) * 1000)
            yield self.now
        finally:
            work.cancel()

    # --- Listener ---

    def said(self, sampling: Sampling, text: str) -> None:
        """See `vlmguard.ui.watching.Listener`."""
        if sampling.max_tokens > 1:
            self._set(step="writing reasons and rewrite", partial=read_partial(text))

    def answered(self, chat: Chat, completion: Completion) -> None:
        """See `vlmguard.ui.watching.Listener`."""
        after_prefix = chat.messages[-1].text == VERDICT_PREFIX
        if completion.logprobs:
            risk = risk_from_logprobs(completion.logprobs, after_prefix=after_prefix)
            if risk is not None:
                self._set(risk=max(risk, self.now.risk or 0.0))

    # --- Work ---

    async def _work(self) -> None:
        try:
            chat, target, rewriter = await self._begin()
        except Exception as error:  # noqa: BLE001  # whatever it was, it is shown
            self._set(problem=_told(error))
            return
        await asyncio.gather(
            self._unguarded(chat, target),
            self._guarded(chat, target, rewriter),
        )

    async def _begin(self) -> tuple[Chat, Engine, PromptedRewriter]:
        """Open what is needed, and look at the picture."""
        ask = self._ask
        self._set(step="loading the models")
        target = self._models.target(ask.target)
        rewriter = self._models.rewriter(ask.rewriter, target=ask.target)
        images = [load_image(ask.picture)] if ask.picture is not None else []
        if images and not (rewriter.sighted and Capability.VISION in target.capabilities):
            self._set(step="looking at the picture")
            evidence = await self._models.perceiver.perceive(images[0])
            self._set(evidence=evidence)
        await rewriter.load()
        await target.load()
        chat = Chat.of(ask.prompt, images)
        watched = rewriter.with_engine(WatchedEngine(rewriter.engine, self._memory, self))
        return chat, WatchedEngine(target, self._memory), watched

    async def _guarded(self, chat: Chat, target: Engine, rewriter: PromptedRewriter) -> None:
        guard = Guard(rewriter, policy=self._ask.policy, perceiver=self._models.perceiver)
        self._set(step="judging the request")
        try:
            prepared = await guard.prepare(chat)
        except Exception as error:  # noqa: BLE001  # whatever it was, it is shown
            self._set(problem=_told(error))
            withheld = "The guard could not decide, so the original prompt was not sent."
            self._set(guarded=Answer(problem=withheld, done=True))
            return
        rewrite = prepared.rewrites[-1]
        self._set(rewrite=rewrite, risk=rewrite.risk, step="answering")
        if prepared.refusal is not None:
            self._set(guarded=Answer(text=prepared.refusal, refused=True, done=True))
        elif prepared.chat == chat:
            # The target is asked greedily: the same prompt has the same answer.
            self._one_answer = True
            self._set(guarded=self.now.unguarded)
        else:
            await self._follow(prepared.chat, target, lambda answer: self._set(guarded=answer))

    async def _unguarded(self, chat: Chat, target: Engine) -> None:
        if not chat.messages[-1].text.strip() and not chat.images:
            self._set(unguarded=Answer(problem="Nothing was asked.", done=True))
            return

        def show(answer: Answer) -> None:
            self._set(unguarded=answer)
            if self._one_answer:
                self._set(guarded=answer)

        await self._follow(chat, target, show)

    async def _follow(self, chat: Chat, target: Engine, show: Callable[[Answer], None]) -> None:
        """Stream an answer; a failure becomes part of it."""
        answer = Answer()
        if chat.images:
            target, notes = sighted_target(target, self._models.perceiver)
            self._set(notes=tuple(dict.fromkeys((*self.now.notes, *notes))))
        try:
            async with aclosing(target.stream(chat, self._sampling)) as deltas:  # type: ignore[type-var]
                async for delta in deltas:
                    answer = replace(answer, text=answer.text + delta.text)
                    show(answer)
                    if delta.finish_reason == "length":
                        answer = replace(answer, text=f"{answer.text} …")
        except Exception as error:  # noqa: BLE001  # whatever it was, it is shown
            answer = replace(answer, problem=_told(error))
        show(replace(answer, done=True))

    def _set(self, *, told: bool = True, **changes: object) -> None:
        asked, recalled = self._before
        self.now = replace(
            self.now,
            asked=self._memory.asked - asked,
            recalled=self._memory.recalled - recalled,
            **changes,  # type: ignore[arg-type]  # names of its fields
        )
        if told:
            self._changed.set()


def _told(error: Exception) -> str:
    """A failure in words for the page; what nobody foresaw goes to the log in full."""
    if isinstance(error, VLMGuardError):
        return str(error)
    _log.exception("an unexpected error in the playground")
    return f"An unexpected error ({type(error).__name__}); the server's log has more."


async def finished(run: Run) -> Snapshot:
    """The last state of a run, for callers that do not watch."""
    async for _ in run.snapshots():
        pass
    return run.now
