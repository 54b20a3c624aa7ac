"""VLMGuard-R1 as a defence: a rewriter in front of any target."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from vlmguard.defences.base import Prepared, answer
from vlmguard.engines import Engine, Sampling
from vlmguard.errors import (
    EngineError,
    EngineTimeout,
    InputError,
    ModelStoreError,
    OutputError,
    PerceptionError,
)
from vlmguard.images import load_images
from vlmguard.memo import Memo
from vlmguard.perception import Perceiver
from vlmguard.rewriting import Policy, Rewriter, load_policy, open_rewriter
from vlmguard.types import Chat, Image, Message, Reply, Rewrite, Usage

_FAILURES = (EngineError, OutputError, PerceptionError, ModelStoreError)
"""What ``on_failure`` is about. Bad input and bad configuration are errors under any policy."""

WITHHELD = "(This earlier message was withheld by the safety policy.)"
"""Stands for an earlier turn that the policy refused; its pictures are left out as well."""


class DecisionStore(Protocol):
    """Where decisions are kept beyond a guard's own memory, e.g. for several processes.

    A failure of its own is a miss, never an exception.
    """

    async def get(self, key: str) -> Rewrite | None:
        """The decision of that key, if there is one."""
        ...

    async def put(self, key: str, rewrite: Rewrite) -> None:
        """Keep a decision."""
        ...


class Guard:
    """Reviews every user turn of a conversation and rewrites the risky ones.

    Each turn is judged once, with its pictures and the turns before it as the target sees them,
    and remembered: a long conversation costs one decision a turn, not one for the whole transcript.

    Args:
        rewriter: a rewriter, an engine spec for one, or ``None`` for ``VLMGUARD_REWRITER`` and
            then the embedded model.
        policy: a policy, a preset's name or the path of a YAML file.
        perceiver: reads pictures for rewriters and targets that cannot see; by default one with
            all detectors, loaded when first needed.
        cache_size: decisions to remember.
        store: asked for a decision that is not remembered, before it is made; and told of it.

    Raises:
        ConfigError: the spec or the policy is wrong.
    """

    name = "guard"

    def __init__(
        self,
        rewriter: Rewriter | str | None = None,
        *,
        policy: Policy | str | Path = "balanced",
        perceiver: Perceiver | None = None,
        cache_size: int = 1024,
        store: DecisionStore | None = None,
    ) -> None:
        self._perceiver = perceiver or Perceiver()
        if rewriter is None or isinstance(rewriter, str):
            rewriter = open_rewriter(rewriter, perceiver=self._perceiver)
        self._rewriter = rewriter
        self._policy = policy if isinstance(policy, Policy) else load_policy(policy)
        self._memo: Memo[str, Rewrite] = Memo(cache_size)
        self._store = store
        self._rules = hashlib.sha256(
            f"{self._policy.fingerprint}{self._rewriter.fingerprint}".encode()
        )

    @property
    def policy(self) -> Policy:
        """The rules in force."""
        return self._policy

    @property
    def rewriter(self) -> Rewriter:
        """Who decides."""
        return self._rewriter

    async def rewrite(
        self,
        prompt: str,
        images: Sequence[Image | str | Path | bytes] = (),
        *,
        allow_remote: bool = False,
    ) -> Rewrite:
        """Decide about one prompt with its pictures.

        Args:
            prompt: the user's text [x_T]; may be empty when there is a picture.
            images: paths, encoded bytes, ``data:`` URLs, loaded pictures, or http(s) URLs.
            allow_remote: fetch http(s) URLs (safely: see `vlmguard.images.fetch`).

        Raises:
            InputError: the prompt or a picture cannot be used.
            EngineError, OutputError, PerceptionError: the guard failed and the policy is closed.
        """
        loaded = await load_images(images, allow_remote=allow_remote)
        prepared = await self.prepare(Chat.of(prompt, loaded))
        return prepared.rewrites[-1]

    def rewrite_blocking(
        self,
        prompt: str,
        images: Sequence[Image | str | Path | bytes] = (),
        *,
        allow_remote: bool = False,
    ) -> Rewrite:
        """`rewrite` for notebooks and scripts without an event loop of their own."""
        # A notebook's loop already runs in this thread, so the work is done in another one.
        with ThreadPoolExecutor(max_workers=1) as worker:
            return worker.submit(
                lambda: asyncio.run(self.rewrite(prompt, images, allow_remote=allow_remote))
            ).result()

    async def prepare(self, chat: Chat) -> Prepared:
        """The conversation as the target is to receive it.

        Raises:
            InputError: the conversation is empty or over the policy's caps.
            EngineError, OutputError, PerceptionError: the guard failed and the policy is closed.
        """
        self._check(chat)
        start = time.perf_counter()
        messages: list[Message] = []
        rewrites: list[Rewrite] = []
        refusal: str | None = None
        last = max(i for i, message in enumerate(chat.messages) if message.role == "user")
        read = self._rules.copy()  # what the next decision depends on, hashed as it grows
        for index, message in enumerate(chat.messages):
            sent = message
            if message.role == "user":
                asked = read.copy()
                _feed(asked, message)
                rewrite = await self._decide(asked.hexdigest(), Chat(messages=(*messages, message)))
                rewrites.append(rewrite)
                if rewrite.action != "refuse":
                    if rewrite.prompt != message.text:
                        sent = replace(message, text=rewrite.prompt)
                elif index == last:
                    refusal = self._policy.refusal
                else:
                    sent = Message(role="user", text=WITHHELD)
            messages.append(sent)
            _feed(read, sent)
        return Prepared(
            chat=Chat(messages=tuple(messages)),
            refusal=refusal,
            rewrites=tuple(rewrites),
            timings_ms={"guard": (time.perf_counter() - start) * 1000},
            calls=sum(rewrite.calls for rewrite in rewrites),
            usage=sum((rewrite.usage for rewrite in rewrites), Usage()),
        )

    async def respond(self, chat: Chat, target: Engine, sampling: Sampling | None = None) -> Reply:
        """The target's answer to the reviewed conversation, with a trace of how it came about.

        Raises:
            VLMGuardError: bad input, or the guard (policy closed) or the target failed.
        """
        prepared = await self.prepare(chat)
        return await answer(prepared, target, sampling or Sampling(), perceiver=self._perceiver)

    def _check(self, chat: Chat) -> None:
        """Refuse what no rewriter should be asked."""
        users = [message for message in chat.messages if message.role == "user"]
        if not users:
            raise InputError("the conversation has no user message")
        if not users[-1].text.strip() and not users[-1].images:
            raise InputError("the request is empty: give a prompt, a picture, or both")
        cap = self._policy.max_images
        if len(chat.images) > cap:
            raise InputError(
                f"{len(chat.images)} pictures are more than the policy's max_images of {cap}"
            )
        for message in users:
            check_text(message.text, self._policy.max_prompt_chars)

    async def _decide(self, key: str, chat: Chat) -> Rewrite:
        """The decision about the last turn: remembered, or made now.

        Args:
            key: what the decision depends on: rules, rewriter, texts and pictures.
            chat: ends with that turn.
        """
        start = time.perf_counter()
        known = self._memo.peek(key)
        if known is not None:
            elapsed = (time.perf_counter() - start) * 1000
            return replace(known, timings_ms={"cache": elapsed}, usage=Usage(), calls=0)
        try:
            return await self._memo.get(key, lambda: self._stored_or_judged(key, chat))
        except _FAILURES as error:
            if self._policy.on_failure == "closed":
                raise
            return self._passed_unguarded(chat.messages[-1].text, error)

    async def _stored_or_judged(self, key: str, chat: Chat) -> Rewrite:
        if self._store is None:
            return await self._judge(chat)
        start = time.perf_counter()
        stored = await self._store.get(key)
        if stored is not None:
            elapsed = (time.perf_counter() - start) * 1000
            return replace(stored, timings_ms={"store": elapsed}, usage=Usage(), calls=0)
        rewrite = await self._judge(chat)
        await self._store.put(key, rewrite)
        return rewrite

    async def _judge(self, chat: Chat) -> Rewrite:
        limit = self._policy.timeout_s
        await self._rewriter.load()  # a first download is no slow decision
        try:
            async with asyncio.timeout(limit) as timer:
                return await self._rewriter.rewrite(chat, self._policy)
        except TimeoutError:
            if not timer.expired():
                raise
            raise EngineTimeout(
                f"the rewriter {self._rewriter.name} took longer than the policy's "
                f"timeout_s of {limit:g} s"
            ) from None

    def _passed_unguarded(self, prompt: str, error: Exception) -> Rewrite:
        """The result under ``on_failure: open``: the original goes through, and this says so."""
        return Rewrite(
            verdict="risky",
            risk=1.0,
            category=None,
            action="monitor",
            report=None,
            prompt=prompt,
            changed=False,
            rewriter=self._rewriter.name,
            policy=self._policy.name,
            failure=f"{type(error).__name__}: {error}",
        )


def _feed(digest: hashlib._Hash, message: Message) -> None:
    """Add a message to what a decision depends on."""
    if message.role == "system":
        return  # the operator's; rewriters do not read it
    for field in (message.role, message.text, *(image.sha256 for image in message.images)):
        data = field.encode()
        digest.update(len(data).to_bytes(8) + data)
    digest.update(b"\xff")


def check_text(text: str, max_chars: int) -> None:
    """Refuse text that no engine can be sent.

    Raises:
        InputError: lone surrogates (bytes that were not UTF-8), or too long.
    """
    if len(text) > max_chars:
        raise InputError(
            f"the prompt has {len(text):,} characters, more than the policy's max_prompt_chars "
            f"of {max_chars:,}"
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the prompt is not valid Unicode: bytes that are not UTF-8 at character {error.start}"
        ) from None
