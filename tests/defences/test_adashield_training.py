"""Training of AdaShield-A's pool: rounds, the share that is enough, and going on."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from tests.defences.common import Directions, picture, seeing
from vlmguard.defences.adashield import static_prompt
from vlmguard.defences.adashield_pool import Pool
from vlmguard.defences.adashield_training import (
    RoundResult,
    Trainer,
    TrainingRequest,
    is_refusal,
)
from vlmguard.engines import Sampling
from vlmguard.engines.scripted import Script, ScriptedEngine
from vlmguard.errors import ConfigError, EngineUnavailable
from vlmguard.types import Chat

BETTER = "Examine the picture closely and refuse whatever is harmful in it."


def improved(prompt: str) -> str:
    return json.dumps({"improvement": "clearer", "prompt": prompt})


def requests(count: int, word: str = "ask") -> list[TrainingRequest]:
    return [TrainingRequest(query=f"{word} {n}", image=picture()) for n in range(count)]


def fresh() -> Pool:
    return Pool(embedder="e", target="t", defender="d", data="0")


class Bench:
    """A trainer with what it did."""

    def __init__(self, target: Script, defender: Script) -> None:
        self.rounds: list[RoundResult] = []
        self.kept: list[Pool] = []
        self.target = seeing(target)
        self.defender = ScriptedEngine(defender, spec="defender")
        self.trainer = Trainer(
            target=self.target,
            defender=self.defender,
            embedder=Directions(),
            refused=is_refusal,
            watch=self.rounds.append,
        )

    async def train(self, pool: Pool | None = None, **found: Sequence[TrainingRequest]) -> Pool:
        return await self.trainer.fill(pool or fresh(), found, self.kept.append)


def refusing_under(prompt: str) -> Script:
    """A target that refuses where that prompt stands in the query."""

    def answer(chat: Chat, sampling: Sampling) -> str:
        return "I am sorry." if prompt in chat.messages[-1].text else "Of course: 1."

    return answer


async def test_a_prompt_that_is_enough_is_kept_as_it_is() -> None:
    """The static prompt first; the second half validates; the first half are the examples."""
    bench = Bench(refusing_under(static_prompt()), [])
    pool = await bench.train(fraud=requests(5))
    [entry] = pool.entries
    assert (entry.scenario, entry.prompt, entry.refused, entry.rounds) == (
        "fraud", static_prompt(), 1.0, 0,
    )  # fmt: skip
    assert len(entry.examples) == 2
    asked = [chat.messages[-1].text.split("\n\n")[0] for chat, _ in bench.target.calls]
    assert asked == ["ask 2", "ask 3", "ask 4"]
    assert bench.kept == [pool]


async def test_the_defender_improves_what_is_not_enough() -> None:
    """It sees scenario, prompt, a request that was not refused, and the answer, quoted."""
    bench = Bench(refusing_under(BETTER), [f"Here it is: {improved(BETTER)}"])
    pool = await bench.train(fraud=requests(4))
    [(chat, _)] = bench.defender.calls
    text = chat.messages[-1].text
    assert 'Scenario: "fraud"' in text
    assert 'Request: "ask 0"' in text
    assert 'Answer: "Of course: 1."' in text
    assert chat.images == ()
    assert pool.entries[0].prompt == BETTER
    assert pool.entries[0].rounds == 1
    assert [(one.round, one.refused) for one in bench.rounds] == [(0, 0.0), (1, 1.0)]


async def test_training_ends_after_four_improvements_with_the_best() -> None:
    """A later prompt that is no better does not replace an earlier one."""
    half = "Half of the requests are refused under this prompt."

    def answer(chat: Chat, sampling: Sampling) -> str:
        text = chat.messages[-1].text
        return "I cannot." if half in text and "ask 2" in text else "Of course."

    others = [improved(f"Another prompt that does nothing, number {n}.") for n in range(3)]
    bench = Bench(answer, [improved(half), *others])
    pool = await bench.train(fraud=requests(4))
    assert len(bench.defender.calls) == 4
    assert (pool.entries[0].prompt, pool.entries[0].refused, pool.entries[0].rounds) == (
        half, 0.5, 1,
    )  # fmt: skip
    assert half in bench.defender.calls[-1][0].messages[-1].text


@pytest.mark.parametrize("told", ["", "no", '{"prompt": 1}', '{"improvement": "x", "prompt": "y"}'])
async def test_a_defender_without_a_usable_prompt_costs_a_round(told: str) -> None:
    """The watcher hears why; validation is not repeated for the same prompt."""
    bench = Bench(refusing_under(BETTER), [told, improved(BETTER)])
    pool = await bench.train(fraud=requests(2))
    assert pool.entries[0].prompt == BETTER
    assert [one.note is None for one in bench.rounds] == [True, False, True]
    validated = [chat for chat, _ in bench.target.calls if "ask 1" in chat.messages[-1].text]
    assert len(validated) == 2


async def test_a_stopped_training_goes_on_after_the_scenarios_that_are_kept() -> None:
    """The pool is kept after each scenario; a finished one is not trained again."""
    down = Bench(
        lambda chat, _: EngineUnavailable("down") if "two" in chat.messages[-1].text else "Sorry?",
        [improved(BETTER)] * 4,
    )
    with pytest.raises(EngineUnavailable):
        await down.train(first=requests(2, "one"), second=requests(2, "two"))
    [kept] = down.kept
    assert [entry.scenario for entry in kept.entries] == ["first"]
    again = Bench(refusing_under(static_prompt()), [])
    pool = await again.train(kept, first=requests(2, "one"), second=requests(2, "two"))
    assert [entry.scenario for entry in pool.entries] == ["first", "second"]
    assert all("two" in chat.messages[-1].text for chat, _ in again.target.calls)


async def test_a_scenario_of_one_request_is_told_before_anything_is_asked() -> None:
    """It cannot be both learned from and validated on."""
    bench = Bench([], [])
    with pytest.raises(ConfigError, match="'second' has 1 request"):
        await bench.train(first=requests(2), second=requests(1))


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ("I am sorry", True),
        ("I’m sorry, but no.", True),
        ("Unfortunately, I cannot help.", True),
        ("Of course.", False),
        ("", False),
        ("Of course." + " word" * 60 + " I am sorry", False),
    ],
)
def test_refusals_are_told_by_how_answers_open(answer: str, refused: bool) -> None:
    """A phrase further down is no refusal."""
    assert is_refusal(answer) is refused
