"""The guard: whole conversations, remembered decisions, and failures that never pass silently."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.drawing import encode, typed_text
from vlmguard import Guard, NoDefence
from vlmguard.defences.guard import WITHHELD
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import (
    EngineTimeout,
    EngineUnavailable,
    InputError,
    RewriteParseError,
    VLMGuardError,
)
from vlmguard.images import load_image
from vlmguard.rewriting import Policy, PromptedRewriter
from vlmguard.types import Chat, Image, Message, Rewrite, RiskReport, Usage

SEES = frozenset({Capability.VISION})


class Rules:
    """A rewriter that finds every turn with the word "bad" risky."""

    name = "rules"
    fingerprint = "rules-1"

    def __init__(self) -> None:
        self.seen: list[Chat] = []
        self.before: Callable[[], object] | None = None

    async def load(self) -> None:
        pass

    async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
        self.seen.append(chat)
        await asyncio.sleep(0)
        if self.before:
            self.before()
        turn = chat.messages[-1]
        risky = "bad" in turn.text
        action = policy.action_for("violence") if risky else "allow"
        prompt = turn.text.replace("bad", "good") if action == "rewrite" else turn.text
        return Rewrite(
            verdict="risky" if risky else "safe",
            risk=float(risky),
            category="violence" if risky else None,
            action=action,
            report=RiskReport(textual="t", visual="v", multimodal="m") if risky else None,
            prompt=prompt,
            changed=prompt != turn.text,
            rewriter=self.name,
            policy=policy.name,
        )


def user(text: str, *images: Image) -> Message:
    return Message(role="user", text=text, images=images)


def said(text: str) -> Message:
    return Message(role="assistant", text=text)


def picture(text: str = "hello") -> Image:
    return load_image(encode(typed_text(text)))


async def test_a_harmless_request_reaches_the_target_byte_for_byte() -> None:
    """Text and pictures are the very same."""
    target = ScriptedEngine(["fine"], capabilities=SEES)
    chat = Chat.of("  what\u200b is\nthis? ", [picture()], system="Be brief.")
    reply = await Guard(Rules()).respond(chat, target)
    assert reply.completion.text == "fine"
    assert target.calls[0][0] == chat
    assert reply.trace.sent == chat


async def test_a_risky_request_reaches_the_target_rewritten_with_the_same_picture() -> None:
    """The target never sees the original words."""
    target = ScriptedEngine(["fine"], capabilities=SEES)
    image = picture()
    reply = await Guard(Rules()).respond(Chat.of("a bad thing", [image]), target)
    [(sent, _)] = target.calls
    assert sent.messages[-1] == user("a good thing", image)
    assert reply.trace.rewrites[0].category == "violence"
    assert set(reply.trace.timings_ms) == {"guard", "target"}
    assert reply.trace.target == target.spec


async def test_refusing_does_not_ask_the_target() -> None:
    """The policy's own words are the answer."""
    target = ScriptedEngine([])
    policy = Policy(default_action="refuse", refusal="No.")
    reply = await Guard(Rules(), policy=policy).respond(Chat.of("bad"), target)
    assert reply.completion.text == "No."
    assert target.calls == []
    assert reply.trace.sent is None


async def test_earlier_turns_keep_their_remembered_rewrite() -> None:
    """Each turn is judged once, in the conversation as the target sees it."""
    rules = Rules()
    guard = Guard(rules)
    first = await guard.prepare(Chat.of("bad start"))
    assert first.chat.messages[-1].text == "good start"
    whole = Chat(messages=(user("bad start"), said("ok"), user("and then?")))
    second = await guard.prepare(whole)
    assert [message.text for message in second.chat.messages] == ["good start", "ok", "and then?"]
    assert [rewrite.verdict for rewrite in second.rewrites] == ["risky", "safe"]
    assert len(rules.seen) == 2
    assert rules.seen[1].messages[0].text == "good start"
    assert set(second.rewrites[0].timings_ms) == {"cache"}


async def test_an_earlier_refused_turn_is_withheld() -> None:
    """The original does not come back through the history, nor do its pictures."""
    policy = Policy(default_action="refuse")
    whole = Chat(messages=(user("bad", picture()), said("No."), user("hello")))
    prepared = await Guard(Rules(), policy=policy).prepare(whole)
    assert prepared.refusal is None
    assert prepared.chat.messages[0] == user(WITHHELD)


async def test_system_prompts_are_untouched_and_not_judged() -> None:
    """They are the operator's."""
    rules = Rules()
    chat = Chat.of("hello", system="Never be bad.")
    prepared = await Guard(rules).prepare(chat)
    assert prepared.chat == chat
    assert len(rules.seen) == 1


async def test_the_same_request_at_the_same_time_is_decided_once() -> None:
    """A burst costs one decision."""
    rules = Rules()
    guard = Guard(rules)
    await asyncio.gather(*(guard.rewrite("hello") for _ in range(10)))
    assert len(rules.seen) == 1


async def test_the_memory_distinguishes_what_matters() -> None:
    """Other words, another picture, another turn before it: another decision."""
    rules = Rules()
    guard = Guard(rules)
    await guard.prepare(Chat.of("hello"))
    await guard.prepare(Chat.of("hello", [picture("a")]))
    await guard.prepare(Chat.of("hello", [picture("b")]))
    await guard.prepare(Chat(messages=(user("x"), said("y"), user("hello"))))
    assert len(rules.seen) == 5
    await guard.prepare(Chat.of("hello", [picture("a")], system="another operator"))
    assert len(rules.seen) == 5


FAILURES = [
    EngineUnavailable("the rewriter is down"),
    RewriteParseError("garbage", raw="???"),
    EngineTimeout("slow"),
]


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_closed_means_closed(error: VLMGuardError) -> None:
    """The target is not asked when the guard cannot decide."""
    rules = Rules()
    rules.before = raising(error)
    target = ScriptedEngine([])
    with pytest.raises(type(error)):
        await Guard(rules).respond(Chat.of("hello"), target)
    assert target.calls == []


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
async def test_open_passes_and_says_so(error: VLMGuardError) -> None:
    """Explicitly chosen, visible in the result, and not remembered."""
    rules = Rules()
    rules.before = raising(error)
    guard = Guard(rules, policy=Policy(on_failure="open"))
    rewrite = await guard.rewrite("bad thing")
    assert rewrite.prompt == "bad thing"
    assert rewrite.action == "monitor"
    assert rewrite.failure is not None
    assert str(error) in rewrite.failure
    rules.before = None
    assert (await guard.rewrite("bad thing")).failure is None


async def test_a_hanging_rewriter_is_a_failure_after_the_policys_timeout() -> None:
    """The message names the setting."""

    class Hanging(Rules):
        async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
            await asyncio.sleep(60)
            raise AssertionError

    with pytest.raises(EngineTimeout, match=r"timeout_s of 0\.05 s"):
        await Guard(Hanging(), policy=Policy(timeout_s=0.05)).rewrite("hello")


async def test_loading_is_not_a_slow_decision() -> None:
    """A first download may take longer than any decision should."""

    class Loading(Rules):
        async def load(self) -> None:
            await asyncio.sleep(0.1)

    rewrite = await Guard(Loading(), policy=Policy(timeout_s=0.05)).rewrite("hello")
    assert rewrite.verdict == "safe"


async def test_bad_input_is_an_error_under_any_policy() -> None:
    """Failing open is about the guard, not about the request."""
    guard = Guard(Rules(), policy=Policy(on_failure="open", max_prompt_chars=10, max_images=1))
    with pytest.raises(InputError, match="max_prompt_chars of 10"):
        await guard.rewrite("x" * 11)
    with pytest.raises(InputError, match="max_images of 1"):
        await guard.rewrite("x", [encode(typed_text("a")), encode(typed_text("b"))])
    with pytest.raises(InputError, match="empty"):
        await guard.rewrite(" ")
    with pytest.raises(InputError, match="no user message"):
        await guard.prepare(Chat(messages=(said("x"),)))
    with pytest.raises(InputError, match="not UTF-8 at character 3"):
        await guard.rewrite("abc\udcff")


async def test_a_picture_alone_is_a_request() -> None:
    """Image-only requests are judged like any other."""
    rules = Rules()
    await Guard(rules).rewrite("", [encode(typed_text("hello"))])
    assert rules.seen[0].messages[-1].images


async def test_strange_but_valid_text_passes_through_unchanged() -> None:
    """NUL, right-to-left, zero-width: the target gets what the user wrote."""
    for text in ("a\x00b", "\u202egnirts\u202c", "z\u200bw\u2060", "שלום", "👩‍👩‍👧"):
        rewrite = await Guard(Rules()).rewrite(text)
        assert rewrite.prompt == text
        assert not rewrite.changed


async def test_cancelling_a_request_cancels_its_review() -> None:
    """A client that went away costs nothing more."""
    finished = False

    class Slow(Rules):
        async def rewrite(self, chat: Chat, policy: Policy) -> Rewrite:
            nonlocal finished
            await asyncio.sleep(0.05)
            finished = True
            return await super().rewrite(chat, policy)

    task = asyncio.create_task(Guard(Slow()).rewrite("hello"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    assert not finished


async def test_the_blocking_call_works_inside_a_running_loop() -> None:
    """As in a notebook."""
    assert Guard(Rules()).rewrite_blocking("bad").prompt == "good"


async def test_no_defence_changes_nothing() -> None:
    """The baseline that all others are compared with."""
    target = ScriptedEngine(["a", "b"], capabilities=SEES)
    chat = Chat.of("bad", [picture()])
    reply = await NoDefence().respond(chat, target, Sampling(max_tokens=5))
    assert target.calls == [(chat, Sampling(max_tokens=5))]
    assert reply.trace.rewrites == ()


async def test_the_stable_json_has_its_names() -> None:
    """Users parse this: names do not change."""
    rewrite = await Guard(Rules()).rewrite("bad")
    told = replace(rewrite, timings_ms={"verdict": 1.23456}).to_json(id="7")
    assert list(told) == [
        "id", "verdict", "risk", "category", "action", "report", "prompt", "changed",
        "evidence", "timings_ms", "rewriter", "policy", "failure",
    ]  # fmt: skip
    assert told["report"] == {"textual": "t", "visual": "v", "multimodal": "m"}
    assert told["timings_ms"] == {"verdict": 1.235}
    assert told["evidence"] == {"images": []}


async def test_what_the_guard_costs_stands_beside_what_the_target_costs() -> None:
    """Calls and tokens of the decision are counted; a remembered one is free."""
    rewriter = PromptedRewriter(
        ScriptedEngine(['{"verdict": "safe"}'], spec="judge"), name="the rewriter"
    )
    target = ScriptedEngine(["one", "one two"])
    guard = Guard(rewriter)
    first = (await guard.respond(Chat.of("hello"), target)).trace
    again = (await guard.respond(Chat.of("hello"), target)).trace
    assert (first.calls, again.calls) == (1, 0)
    assert first.defence_usage.completion_tokens == 2
    assert again.defence_usage == Usage()
    assert [trace.usage.completion_tokens for trace in (first, again)] == [1, 2]
