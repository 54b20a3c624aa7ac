"""Specs name defences; mistakes are told with what to write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.defences.common import said, seeing
from vlmguard.defences import DEFENCES, Defence, Guard, NoDefence, open_defence
from vlmguard.defences.adashield import AdaShieldA, AdaShieldS
from vlmguard.defences.ecso import Ecso
from vlmguard.defences.eta import Eta
from vlmguard.defences.figstep_prompt import FigStepPrompt
from vlmguard.defences.jailguard import JailGuard
from vlmguard.defences.mllm_protector import MllmProtector
from vlmguard.defences.opening import KNOWN_DEFENCES, Surroundings
from vlmguard.defences.self_reminder import SelfReminder
from vlmguard.engines import EngineSpec
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError, UnknownName
from vlmguard.types import Chat

JUDGE = "engine-judge:openai:m@http://h/v1?timeout=5"
OWN = "tests.defences.common:open_directions"


class Own(NoDefence):
    """Somebody else's defence."""

    name = "own"


def open_own(spec: EngineSpec, around: Surroundings) -> Defence:
    """For specs: ``tests.defences.test_opening:open_own``."""
    spec.take(level=int)
    assert around.perceiver is not None
    return Own(around.perceiver)


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("none", NoDefence),
        ("self-reminder", SelfReminder),
        ("figstep-prompt", FigStepPrompt),
        ("adashield-s", AdaShieldS),
        ("ecso?temperature=0", Ecso),
        (f"eta?reward={JUDGE}&clip={OWN}&reward_threshold=0.5", Eta),
        (f"mllm-protector?detector={JUDGE}&detoxifier=openai:m@http://h/v1", MllmProtector),
        (f"jailguard?embedder={OWN}&threshold=0.03", JailGuard),
        ("guard", Guard),
        ("guard?policy=strict", Guard),
        ("guard:smollm2?threads=1&policy=strict", Guard),
        ("guard:zero-shot:openai:m@http://h:8000/v1?timeout=3", Guard),
        ("tests.defences.test_opening:open_own?level=3", Own),
    ],
)
def test_specs_name_defences(spec: str, kind: type) -> None:
    """Opening is cheap: nothing is loaded and nobody is asked."""
    defence = open_defence(spec)
    assert isinstance(defence, kind)
    head = spec.partition("?")[0].partition(":")[0]
    assert defence.name == ("own" if kind is Own else head)


def test_every_listed_defence_can_be_opened() -> None:
    """The list of the command line and the registry are one."""
    assert {facts.name for facts in KNOWN_DEFENCES} <= set(DEFENCES.names())
    for facts in KNOWN_DEFENCES:
        assert callable(DEFENCES.load(facts.name))


def test_a_guard_takes_its_rewriter_and_policy_from_the_spec() -> None:
    """The other options are the rewriter's."""
    guard = open_defence("guard:zero-shot:openai:m@http://h/v1?timeout=3&policy=strict")
    assert isinstance(guard, Guard)
    assert guard.rewriter.name == "zero-shot:openai:m@http://h/v1?timeout=3"
    assert guard.policy.name == "strict"


async def test_the_target_may_guard_itself() -> None:
    """``guard:self`` asks the target first; without a target it is an error."""
    target = seeing(['{"verdict": "safe"}', "fine"])
    guard = open_defence("guard:self", target=target)
    reply = await guard.respond(Chat.of("hello"), target, None)  # type: ignore[arg-type]
    assert reply.completion.text == "fine"
    assert reply.trace.calls == 1
    with pytest.raises(ConfigError, match="name a target"):
        open_defence("guard:self")


async def test_a_pool_is_named_by_its_file(tmp_path: Path) -> None:
    """With the embedder of the pool, or another one."""
    pool = tmp_path / "pool.json"
    facts = {"version": 1, "embedder": OWN, "target": "t", "defender": "d", "data": "x"}
    pool.write_text(json.dumps(facts))
    assert isinstance(open_defence(f"adashield-a?pool={pool}&threshold=0.5"), AdaShieldA)
    assert isinstance(open_defence(f"adashield-a?pool={pool}&embedder={OWN}"), AdaShieldA)


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("", "empty defence; known: adashield-a, adashield-s, ecso"),
        ("adashield", "unknown defence 'adashield'; known: adashield-a"),
        ("adashield-a", r"needs the option pool \(e.g. pool=pool.json"),
        ("adashield-a?pool=/nowhere.json", "pool /nowhere.json cannot be read"),
        ("eta?reward=engine-judge:smollm2", "eta needs the option clip"),
        ("eta", r"option reward \(.*\) and clip \("),
        ("eta?reward=nobody&clip=clip:x/y", "unknown scorer 'nobody'"),
        ("mllm-protector?detector=engine-judge:smollm2", "needs the option detoxifier"),
        ("ecso?temperature=hot", "temperature='hot' is not a valid float"),
        ("ecso?temprature=1", "unknown option 'temprature'; known options: temperature"),
        ("ecso:smollm2", "takes no ':smollm2'"),
        ("none?x", "must read key=value"),
        ("none?x=1", "unknown option 'x'"),
        ("guard?threads=1", "only option of 'guard' without a rewriter is policy"),
        ("guard:nobody", "unknown engine 'nobody'"),
        ("guard?policy=lax", "there is no policy 'lax'"),
        ("no.such.module:thing", "cannot import"),
        ("tests.defences.test_opening:open_own?level=x", "not a valid int"),
    ],
)
def test_mistakes_are_told(spec: str, told: str) -> None:
    """With what there is and what to write."""
    with pytest.raises((ConfigError, UnknownName), match=told):
        open_defence(spec)


def test_a_spec_inside_a_spec_may_have_options_of_its_own() -> None:
    """One as it is; further ones behind an escaped ``&``."""
    judge = "engine-judge:openai:m@http://h/v1?timeout=5%26retries=2"
    assert isinstance(open_defence(f"eta?reward={judge}&clip={OWN}"), Eta)
    with pytest.raises(ConfigError, match="unknown option 'retires'"):
        open_defence(f"eta?reward={judge.replace('retries', 'retires')}&clip={OWN}")


@pytest.mark.parametrize("name", ["none", "self-reminder", "figstep-prompt", "adashield-s"])
async def test_defences_of_the_input_prepare_what_they_send(name: str) -> None:
    """So that a caller can stream the target's answer itself."""
    defence = open_defence(name)
    target = ScriptedEngine(["fine"])
    chat = Chat.of("hello").then(said("hi")).then(Chat.of("what now?").messages[0])
    prepared = await defence.prepare(chat)  # type: ignore[attr-defined]
    reply = await defence.respond(chat, target, None)  # type: ignore[arg-type]
    assert target.calls[0][0] == prepared.chat == reply.trace.sent
