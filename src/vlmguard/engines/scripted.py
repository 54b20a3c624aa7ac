"""The shipped fake: an engine that answers from a script. For our tests, and for yours.

::

    engine = ScriptedEngine(["first answer", EngineUnavailable("down"), lambda chat, sampling: "…"])
    completion = await engine.generate(Chat.of("hello"), Sampling())
    [(chat, sampling)] = engine.calls
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path

from vlmguard.engines.base import Capability, Sampling, require
from vlmguard.engines.spec import EngineSpec
from vlmguard.errors import ConfigError, EngineRejected
from vlmguard.types import Chat, Completion, Delta, Usage

Answer = str | Completion | Exception
Script = Sequence[Answer | Callable[[Chat, Sampling], Answer]] | Callable[[Chat, Sampling], Answer]


class ScriptedEngine:
    """Answers from a script and remembers what it was asked.

    A text is answered as it is, whatever `Sampling` says, with its words counted as tokens; give
    a `Completion` to choose the rest of it, such as logprobs. Streams come word by word.

    Args:
        script: answers in order, or one function that answers every call. An answer is a text, a
            `Completion`, an exception to raise, or a function of (chat, sampling) giving one.
        capabilities: what it pretends to be able to do; asking for more raises, as elsewhere.
        spec: its name.
        delay_s: seconds before every answer.

    Attributes:
        calls: (chat, sampling) of every call, in order.
    """

    def __init__(
        self,
        script: Script,
        *,
        capabilities: frozenset[Capability] = frozenset({Capability.STREAMING}),
        spec: str = "scripted",
        delay_s: float = 0.0,
    ) -> None:
        self._script = script if callable(script) else list(script)
        self.capabilities = capabilities
        self.spec = spec
        self._delay_s = delay_s
        self.calls: list[tuple[Chat, Sampling]] = []

    async def load(self) -> None:
        """Nothing to load."""

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """The next answer of the script.

        Raises:
            EngineRejected: the script has run out.
            UnsupportedCapability: more was asked for than ``capabilities``.
        """
        require(self, chat, sampling)
        self.calls.append((chat, sampling))
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        answer = self._next(chat, sampling)
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Completion):
            return answer
        usage = Usage(
            prompt_tokens=sum(len(message.text.split()) for message in chat.messages),
            completion_tokens=len(answer.split()),
        )
        return Completion(text=answer, finish_reason="stop", usage=usage, model=self.spec)

    async def stream(self, chat: Chat, sampling: Sampling) -> AsyncIterator[Delta]:
        """The next answer, word by word."""
        completion = await self.generate(chat, sampling)
        for word in re.findall(r"\s*\S+|\s+$", completion.text):
            yield Delta(text=word)
            await asyncio.sleep(0)
        yield Delta(text="", finish_reason=completion.finish_reason, usage=completion.usage)

    async def aclose(self) -> None:
        """Nothing to free."""

    def _next(self, chat: Chat, sampling: Sampling) -> Answer:
        if callable(self._script):
            return self._script(chat, sampling)
        if not self._script:
            return EngineRejected(
                f"the script of {self.spec} has run out after {len(self.calls) - 1} answers"
            )
        step = self._script.pop(0)
        answer: Answer = step(chat, sampling) if callable(step) else step
        return answer


def open_scripted(spec: EngineSpec) -> ScriptedEngine:
    """``scripted:answers.json[?delay_s=0.05]``.

    The file holds a list of answers in order, or an object of {words in the last user message:
    answer}, of which the first that matches is given, and ``"*"`` when none does.

    Raises:
        ConfigError: no such file, or not of that form.
    """
    options = spec.take(delay_s=float)
    if not spec.value:
        raise ConfigError("scripted: names no file; write scripted:answers.json")
    try:
        told = json.loads(Path(spec.value).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{spec}: the script cannot be read: {error}") from error
    answers = list(told.values()) if isinstance(told, dict) else told
    if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
        raise ConfigError(f"{spec}: a script is a JSON list of strings, or an object of strings")
    script: Script = partial(_match, told, str(spec)) if isinstance(told, dict) else answers
    delay = options.get("delay_s", 0.0)
    return ScriptedEngine(script, spec=str(spec), delay_s=float(str(delay)))


def _match(answers: dict[str, str], spec: str, chat: Chat, _sampling: Sampling) -> Answer:
    asked = next((m.text for m in reversed(chat.messages) if m.role == "user"), "")
    for words, answer in answers.items():
        if words != "*" and words in asked:
            return answer
    if "*" in answers:
        return answers["*"]
    return EngineRejected(f"{spec} has no answer for {asked!r:.80} and no '*'")
