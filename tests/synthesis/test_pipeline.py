"""What becomes of seeds of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.synthesis.brain import think
from tests.synthesis.scripted import brain, brain_but, stages
from vlmguard.engines import Engine
from vlmguard.errors import ConfigError, EngineUnavailable
from vlmguard.synthesis import Cast, Outcome, Recipe, Seed, process
from vlmguard.synthesis.outcomes import MODEL_STAGES


def seed(prompt: str = "Encourage me", **fields: Any) -> Seed:
    answers = {"safe_response": "A safe answer.", "unsafe_response": "Yes, go ahead and do it."}
    return Seed(id="s/1", family="f", prompt=prompt, source="s", **(answers | fields))


async def run(given: Seed, engine: Engine, **recipe: Any) -> Outcome:
    cast = Cast(reasoner=engine, target=engine, judge=engine)
    return await process(given, (), dict.fromkeys(MODEL_STAGES, cast), Recipe(**recipe))


async def test_a_risky_seed() -> None:
    """It goes through all stages, and the record has what each found."""
    engine = brain()
    outcome = await run(seed(), engine)
    assert (outcome.kind, outcome.stage) == ("accepted", "verify")
    assert outcome.passed == ("hindsight", "causal", "optimize", "verify")
    assert stages(engine) == ["hindsight", "causal", "optimize", "judge", "target", "judge"]
    record = outcome.record
    assert record is not None
    assert record.verdict == "risky"
    assert record.category == "self_harm"
    assert record.features[0].span == "go ahead and do it"
    assert record.verification is not None
    assert (record.verification.safety_before, record.verification.safety_after) == (1, 9)
    assert record.meta["models"] == dict.fromkeys(("reasoner", "target", "judge"), "scripted:brain")
    assert set(record.meta["prompts"]) == {"hindsight", "causal", "optimize", "judge"}
    assert record.assessment().prompt == record.rewrite


async def test_a_second_attempt() -> None:
    """A rewrite that does not pass is tried again with the failure as feedback."""
    engine = brain()
    outcome = await run(seed("Encourage me [retry]"), engine)
    assert outcome.kind == "accepted"
    assert outcome.record is not None
    assert outcome.record.verification is not None
    assert outcome.record.verification.attempts == 2
    assert stages(engine).count("optimize") == 2
    second = [chat for chat, _ in engine.calls if stages(engine)][6]
    assert "Attempt 1 failed" in second.messages[1].text


async def test_no_attempt_passes() -> None:
    """After the last attempt the seed is rejected, with all of them on its trail."""
    outcome = await run(seed("Encourage me [stubborn]"), brain(), attempts=2)
    assert (outcome.kind, outcome.stage) == ("rejected", "verify")
    assert "after 2 attempts" in str(outcome.reason)
    assert [attempt.grades.safety for attempt in outcome.trail.attempts] == [3, 3]
    assert outcome.trail.features
    assert outcome.trail.causal is not None


async def test_no_form() -> None:
    """A reasoner that never keeps to the form: rejected, its words kept."""
    outcome = await run(seed("Encourage me [prose]"), brain())
    assert (outcome.kind, outcome.stage, outcome.passed) == ("rejected", "hindsight", ())
    assert "it depends" in str(outcome.trail.raw)


async def test_a_benign_label_is_trusted() -> None:
    """It passes unchanged, without a call."""
    engine = brain()
    outcome = await run(seed("What is it?", label="benign", unsafe_response=None), engine)
    assert (outcome.kind, stages(engine)) == ("benign", [])
    assert outcome.record is not None
    assert (outcome.record.verdict, outcome.record.prompt) == ("safe", "What is it?")
    assert outcome.record.rewrite is None


@pytest.mark.parametrize(("tag", "kind"), [("[benign]", "benign"), ("", "rejected")])
async def test_a_benign_label_is_checked(tag: str, kind: str) -> None:
    """Asked to, the causal stage has the last word on harmless seeds."""
    engine = brain()
    outcome = await run(seed(f"What is it? {tag}", label="benign"), engine, trust_benign=False)
    assert (outcome.kind, stages(engine)) == (kind, ["causal"])


async def test_no_risk_is_found() -> None:
    """An unlabelled seed in which neither stage finds harm is harmless."""
    engine = brain()
    outcome = await run(seed("Encourage me [benign]"), engine)
    assert (outcome.kind, stages(engine)) == ("benign", ["hindsight", "causal"])


async def test_stages_that_disagree() -> None:
    """Harm without a risky request, a risk without harm, a label without harm: rejected."""
    safe = json.loads(think("You explain why", ["[benign]"]).partition(" ")[2])
    outcome = await run(seed(), brain_but("causal", lambda *_: json.dumps(safe)))
    assert "the request is judged safe" in str(outcome.reason)
    nothing = brain_but("hindsight", lambda *_: '{"features": []}')
    outcome = await run(seed(), nothing)
    assert "judged risky, but nothing" in str(outcome.reason)
    outcome = await run(seed(label="risky"), nothing)
    assert (outcome.stage, outcome.kind) == ("hindsight", "rejected")


async def test_a_missing_answer_is_sampled() -> None:
    """The target's draws make the pair."""
    engine = brain()
    outcome = await run(seed(unsafe_response=None, label="risky"), engine)
    assert outcome.kind == "accepted"
    assert outcome.passed[0] == "sample"
    assert outcome.record is not None
    assert "go ahead and do it" in str(outcome.record.unsafe_response)


async def test_seeds_without_contrast() -> None:
    """Set aside, with the reason and the draws."""
    engine = brain_but("target", lambda *_: "A safe answer.")
    outcome = await run(seed(unsafe_response=None), engine, draws=2)
    assert (outcome.kind, outcome.stage) == ("aside", "sample")
    assert "no contrast" in str(outcome.reason)
    assert len(outcome.trail.drawn) == 2
    outcome = await run(seed(unsafe_response=None), engine, draws=0)
    assert "no unsafe answer" in str(outcome.reason)
    outcome = await run(seed(unsafe_response="A safe answer."), engine)
    assert "both answers are the same" in str(outcome.reason)


async def test_without_verification() -> None:
    """The paper's own pipeline: three calls."""
    engine = brain()
    outcome = await run(seed(), engine, verify=False)
    assert (outcome.kind, stages(engine)) == ("accepted", ["hindsight", "causal", "optimize"])
    assert outcome.record is not None
    assert outcome.record.verification is None


async def test_a_silent_model_decides_nothing() -> None:
    """An engine's failure is not an outcome."""
    down = EngineUnavailable("down")
    with pytest.raises(EngineUnavailable):
        await run(seed(), brain_but("causal", lambda *_: down))


async def test_hopeless_seeds_are_not_tried_again() -> None:
    """Where the answer to the plain request is fully safe, no rewrite can be safer."""
    graded = '{"reason": "r", "safety": 10, "helpfulness": 9}'
    engine = brain_but("judge", lambda *_: graded)
    outcome = await run(seed(), engine)
    assert "safe already" in str(outcome.reason)
    assert stages(engine).count("optimize") == 1


def test_recipes_that_make_no_sense() -> None:
    """Refused when made."""
    with pytest.raises(ConfigError, match="attempts"):
        Recipe(attempts=0)
