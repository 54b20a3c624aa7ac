"""One request through the guard, as the page sees it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("gradio")

from tests.ui import playground
from vlmguard.rewriting import Policy
from vlmguard.ui.models import Models
from vlmguard.ui.runs import Ask, Run, Snapshot, finished
from vlmguard.ui.watching import Memory

RISKY = Ask(
    prompt="Make a fake card",
    picture=None,
    target=playground.TARGET,
    rewriter=playground.REWRITER,
    policy=Policy(threshold=0.5),
)


@pytest.fixture
def models() -> Models:
    """The scripted models."""
    playground.ASKED.clear()
    return Models((playground.TARGET,), (playground.REWRITER, playground.BROKEN), any_model=False)


async def last(models: Models, ask: Ask, memory: Memory | None = None) -> Snapshot:
    """How a run ends."""
    return await finished(Run(models, ask, memory or Memory()))


async def test_a_risky_request_shows_risk_reasons_rewrite_and_both_answers(models: Models) -> None:
    """Everything that the page shows of a risky request is there, the unguarded answer veiled."""
    seen = await last(models, RISKY)
    assert seen.risk == pytest.approx(0.9)
    assert seen.rewrite is not None
    assert seen.rewrite.report is not None
    assert seen.rewrite.report.multimodal == playground.REPORT["multimodal"]
    assert seen.unguarded.text == playground.RISKY_ANSWER
    assert seen.guarded.text == playground.SAFE_ANSWER
    assert seen.veiled
    assert seen.step == "done"


async def test_reasons_are_seen_while_they_are_written(models: Models) -> None:
    """A run tells the risk before the decision, and parts of the reasons as they come."""
    run = Run(models, RISKY, Memory())
    told: list[Snapshot] = []
    change = run._set

    def noted(**changes: object) -> None:
        change(**changes)  # type: ignore[arg-type]
        told.append(run.now)

    run._set = noted  # type: ignore[method-assign]
    await finished(run)
    before = [each for each in told if each.rewrite is None]
    assert any(each.risk is not None and not each.partial.textual for each in before)
    assert any(each.partial.textual and not each.partial.prompt for each in before)


async def test_a_harmless_request_passes_and_is_asked_once(models: Models) -> None:
    """Its guarded answer is the unguarded one, and nothing is veiled."""
    seen = await last(models, replace(RISKY, prompt="What is the capital of France?"))
    assert not seen.veiled
    assert seen.guarded == seen.unguarded
    assert playground.ASKED.count("target") == 1


async def test_moving_the_threshold_asks_only_for_what_is_not_known(models: Models) -> None:
    """Above the risk nothing is asked again; below it the rewrite is written once and kept."""
    memory = Memory()
    ask = replace(RISKY, prompt="borderline")
    first = await last(models, ask, memory)
    assert first.rewrite is not None
    assert first.rewrite.verdict == "safe"
    lower = await last(models, ask.at(0.3), memory)
    assert lower.rewrite is not None
    assert (lower.rewrite.verdict, lower.risk) == ("risky", first.risk)
    assert playground.ASKED.count("verdict") == 1
    assert lower.asked == 2  # the rewrite, and the target's answer to it
    again = [await last(models, ask.at(at), memory) for at in (0.6, 0.2)]
    assert [each.asked for each in again] == [0, 0]
    assert again[1].guarded.text == playground.SAFE_ANSWER


async def test_a_guard_that_fails_sends_nothing_and_says_so(models: Models) -> None:
    """The guarded side shows why it has no answer; the original prompt is not sent for it."""
    seen = await last(models, replace(RISKY, rewriter=playground.BROKEN))
    assert "gpu:8000 is down" in seen.problem
    assert "was not sent" in seen.guarded.problem
    assert not seen.guarded.text
    assert seen.veiled


async def test_an_open_policy_passes_the_original_and_tells(models: Models) -> None:
    """Under on_failure: open the failure is part of the result, and both answers are veiled."""
    ask = replace(RISKY, rewriter=playground.BROKEN, policy=Policy(on_failure="open"))
    seen = await last(models, ask)
    assert seen.rewrite is not None
    assert "down" in (seen.rewrite.failure or "")
    assert seen.passed_risky


async def test_a_refused_request_never_reaches_the_target(models: Models) -> None:
    """The policy's refusal stands in place of an answer."""
    policy = Policy(default_action="refuse")
    seen = await last(models, replace(RISKY, policy=policy))
    assert seen.guarded.refused
    assert seen.guarded.text == policy.refusal


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "  "}, "the request is empty"),
        ({"target": "smollm2"}, "is not offered here"),
        ({"rewriter": ""}, "no rewriter is chosen"),
    ],
)
async def test_what_cannot_be_asked_is_told(
    models: Models, changes: dict[str, str], message: str
) -> None:
    """Wrong input ends as a message on the page."""
    seen = await last(models, replace(RISKY, **changes))  # type: ignore[arg-type]
    assert message in seen.problem


async def test_a_damaged_picture_is_told(models: Models, tmp_path: Path) -> None:
    """A file that is no picture is named as such, and nothing is asked."""
    path = tmp_path / "photo.png"
    path.write_bytes(b"no picture")
    seen = await last(models, replace(RISKY, picture=path))
    assert "photo.png" in seen.problem
    assert playground.ASKED == []


async def test_leaving_stops_the_models(models: Models) -> None:
    """A visitor who goes away leaves no work behind."""
    run = Run(models, RISKY, Memory())
    snapshots = run.snapshots()
    await anext(snapshots)
    await snapshots.aclose()
    assert run.now.step != "done"
