"""MLLM-Protector (Pi et al., EMNLP 2024): a detector of harmful answers, and a detoxifier."""

from __future__ import annotations

from dataclasses import replace

from vlmguard.defences.base import last_user_turn
from vlmguard.defences.ledger import Ledger
from vlmguard.defences.scoring import Scorer
from vlmguard.engines import Engine, Sampling
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote
from vlmguard.types import Chat, Reply

THRESHOLD = 0.5
"""The paper's."""


class MllmProtector:
    """Answers, scores the answer, and has an unsafe one rewritten.

    Args:
        detector: its score is the probability 0..1 that an answer is harmless.
        detoxifier: the engine that rewrites an answer; it reads text only.
        threshold: a score below it is unsafe.
        perceiver: describes pictures to a target that cannot see.
    """

    name = "mllm-protector"

    def __init__(
        self,
        detector: Scorer,
        detoxifier: Engine,
        *,
        threshold: float = THRESHOLD,
        perceiver: Perceiver | None = None,
    ) -> None:
        self._detector = detector
        self._detoxifier = detoxifier
        self._threshold = threshold
        self._perceiver = perceiver

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The target's answer, or the detoxifier's version of it.

        An empty answer is not scored. An unsafe answer is never given, also when the detoxifier
        writes nothing.

        Raises:
            InputError: there is no user message.
            EngineError, OutputError: target, detector or detoxifier failed.
        """
        query = chat.messages[last_user_turn(chat)].text
        sampling = sampling or Sampling()
        ledger = Ledger(chat, target, self._perceiver)
        first = await ledger.first(chat, sampling)
        if not first.text.strip():
            ledger.note("MLLM-Protector: the target answered nothing, so nothing was scored.")
            return ledger.reply(first, chat)
        with ledger.timed("detector"):
            score = await ledger.score(self._detector, chat, first.text)
        if score >= self._threshold:
            return ledger.reply(first, chat)
        ledger.note(
            f"MLLM-Protector: the answer scored {score:.3f}, below {self._threshold:g}, and was "
            "rewritten."
        )
        prompt = load_prompt("vlmguard.defences", "mllm_protector_detoxify.md")
        question = Chat.of(prompt.fill(query=quote(query), answer=quote(first.text)))
        with ledger.timed("detoxifier"):
            second = await ledger.call(
                question, Sampling(max_tokens=sampling.max_tokens), engine=self._detoxifier
            )
        if not second.text.strip():
            ledger.note("MLLM-Protector: the detoxifier wrote nothing.")
        return ledger.reply(replace(second, text=second.text.strip()), chat)
