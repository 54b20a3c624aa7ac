"""An engine that looks into the store before it asks, and keeps every answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from vlmguard.engines import Engine, Sampling
from vlmguard.engines.wrapping import WrappedEngine
from vlmguard.synthesis.outcomes import Stage
from vlmguard.synthesis.rows import Call
from vlmguard.types import Chat, Completion, Usage


class Stopped(Exception):
    """No new calls are made: the run was asked to end. Not an error."""


class Answers(Protocol):
    """Where answers are kept: the store, or the way to it from another machine."""

    async def find(self, call: Call) -> Completion | None:
        """The stored answer of a call.

        Raises:
            Stopped: there is none, and the run is ending (a store of this process need not know).
        """
        ...

    async def keep_answer(self, call: Call, completion: Completion) -> None:
        """Store an answer; returns once it is committed.

        Raises:
            StoreError: it could not be.
        """
        ...


class Watcher(Protocol):
    """Hears of every call, and says when to stop.

    After `asked` comes `called` or `failed`, never both.
    """

    @property
    def stopping(self) -> bool:
        """Whether new calls are refused."""
        ...

    def asked(self) -> None:
        """A call goes to the model."""
        ...

    def called(self, stage: Stage, model: str, usage: Usage, *, stored: bool) -> None:
        """A call was answered by the store, or by the model and its answer is committed."""
        ...

    def failed(self) -> None:
        """A call that went to the model left no answer in the store."""
        ...


class StoredEngine(WrappedEngine):
    """``engine`` as one stage uses it.

    Args:
        engine: the model.
        model: its spec, and what else decides its answers (the eyes of a blind one).
        stage: that asks.
        prompt: hash of the stage's prompt; empty where the prompt is the user's.
        store: where answers are kept.
        watcher: hears of calls.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        model: str,
        stage: Stage,
        prompt: str,
        store: Answers,
        watcher: Watcher,
    ) -> None:
        super().__init__(engine)
        self._model = model
        self._stage = stage
        self._prompt = prompt
        self._store = store
        self._watcher = watcher

    async def generate(self, chat: Chat, sampling: Sampling) -> Completion:
        """The stored answer, or the model's, which is stored before it is returned.

        Raises:
            Stopped: the model would have to be asked, and the run is ending.
            StoreError: the answer could not be stored.
            EngineError: the model did not answer.
        """
        key = _key(self._stage, self._prompt, self._model, chat, sampling)
        call = Call(key=key, stage=self._stage, model=self._model, prompt=self._prompt)
        known = await self._store.find(call)
        if known is not None:
            self._watcher.called(self._stage, self._model, known.usage, stored=True)
            return known
        if self._watcher.stopping:
            raise Stopped
        self._watcher.asked()
        try:
            completion = await self._engine.generate(chat, sampling)
            await self._store.keep_answer(call, completion)
        except BaseException:
            self._watcher.failed()
            raise
        self._watcher.called(self._stage, self._model, completion.usage, stored=False)
        return completion


def _key(stage: str, prompt: str, model: str, chat: Chat, sampling: Sampling) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    parts: list[object] = [stage, prompt, model]
    for message in chat.messages:
        parts += [message.role, message.text, *(image.sha256 for image in message.images)]
    parts += [
        sampling.max_tokens,
        sampling.temperature,
        sampling.top_p,
        sampling.seed,
        sampling.stop,
        sampling.top_logprobs,
        sampling.grammar,
        _schema_digest(sampling.json_schema),
    ]
    digest.update(repr(parts).encode("utf-8", "surrogatepass"))
    return digest.digest()


_digests: dict[int, tuple[Mapping[str, Any], str]] = {}


def _schema_digest(schema: Mapping[str, Any] | None) -> str:
    """Of a schema; the stages pass the same few objects again and again."""
    if schema is None:
        return ""
    kept = _digests.get(id(schema))
    if kept is None or kept[0] is not schema:
        text = json.dumps(schema, sort_keys=True)
        kept = (schema, hashlib.sha256(text.encode()).hexdigest())
        if len(_digests) < 64:
            _digests[id(schema)] = kept
    return kept[1]
