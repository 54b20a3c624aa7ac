"""ECSO (Gou et al., ECCV 2024), "eyes closed, safety on": a second answer without the picture.

The target looks at its own answer; where it calls it harmful, it describes the picture with the
query in mind and answers again from the description alone, which brings back the caution that
language models have with text.
"""

from __future__ import annotations

import re
from dataclasses import replace

from vlmguard.defences.base import last_user_turn
from vlmguard.defences.ledger import Ledger
from vlmguard.engines import Engine, Sampling
from vlmguard.perception import Perceiver
from vlmguard.prompts import load_prompt
from vlmguard.quoting import quote
from vlmguard.types import Chat, Reply

TEMPERATURE = 0.2
"""The paper's."""

_PLAIN = re.compile(r"\W*(yes|no)\b", re.IGNORECASE)
_CAPTION_TOKENS = 512


class Ecso:
    """Answers, checks the answer, and if it is harmful answers again without the picture.

    A request without pictures, and an empty answer, are not checked: there are no eyes to close,
    and nothing to judge.

    Args:
        temperature: of all calls, the first answer included.
        perceiver: describes pictures to a target that cannot see.
    """

    name = "ecso"

    def __init__(
        self, *, temperature: float = TEMPERATURE, perceiver: Perceiver | None = None
    ) -> None:
        self._temperature = temperature
        self._perceiver = perceiver

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The first answer, or the one given with eyes closed.

        Raises:
            InputError: there is no user message.
            EngineError: the target failed.
        """
        last = last_user_turn(chat)
        sampling = replace(sampling or Sampling(), temperature=self._temperature)
        ledger = Ledger(chat, target, self._perceiver)
        first = await ledger.first(chat, sampling)
        if not chat.images:
            return ledger.reply(first, chat)
        if not first.text.strip():
            ledger.note("ECSO: the target answered nothing, so there was nothing to check.")
            return ledger.reply(first, chat)
        if not await self._harmful(chat, first.text, ledger, sampling):
            return ledger.reply(first, chat)
        ledger.note("ECSO: the target called its answer harmful and answered without the picture.")
        query = chat.messages[last].text
        caption = await self._caption(chat, query, ledger, sampling)
        prompt = load_prompt("vlmguard.defences", "ecso_answer.md")
        blind = Chat(messages=tuple(replace(message, images=()) for message in chat.messages))
        blind = blind.with_text(last, prompt.fill(caption=quote(caption), query=query))
        with ledger.timed("answer without picture"):
            second = await ledger.call(blind, sampling)
        return ledger.reply(second, blind)

    async def _harmful(self, chat: Chat, answer: str, ledger: Ledger, sampling: Sampling) -> bool:
        """Whether the target plainly says so."""
        query = chat.messages[last_user_turn(chat)].text
        prompt = load_prompt("vlmguard.defences", "ecso_harm.md")
        question = prompt.fill(query=quote(query), answer=quote(answer))
        with ledger.timed("harm check"):
            told = await ledger.call(Chat.of(question, chat.images), _own(sampling, max_tokens=16))
        plain = _PLAIN.match(told.text)
        if plain is None:
            ledger.note(
                "ECSO: the harm check was answered neither yes nor no, which is not a flag: "
                f"{told.text.strip()!r:.100}"
            )
        return plain is not None and plain.group(1).lower() == "yes"

    async def _caption(self, chat: Chat, query: str, ledger: Ledger, sampling: Sampling) -> str:
        """The pictures in words."""
        prompt = load_prompt("vlmguard.defences", "ecso_caption.md").fill(query=quote(query))
        with ledger.timed("caption"):
            told = await ledger.call(
                Chat.of(prompt, chat.images), _own(sampling, max_tokens=_CAPTION_TOKENS)
            )
        if not told.text.strip():
            ledger.note("ECSO: the target's description of the picture is empty.")
        return told.text


def _own(sampling: Sampling, *, max_tokens: int) -> Sampling:
    """For questions of the defence: without the stops and constraints of the user's answer."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        seed=sampling.seed,
    )
