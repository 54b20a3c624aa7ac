"""The run: every answer once, failures recorded, judging apart from answering."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.drawing import encode, shapes
from vlmguard.defences import NoDefence
from vlmguard.engines import Capability, Sampling
from vlmguard.engines.scripted import Answer as Said
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import (
    DataError,
    EngineRejected,
    EngineUnavailable,
    RunStopped,
    StoreError,
)
from vlmguard.evals.answering import Contender, Entry
from vlmguard.evals.described import DescribedPictures
from vlmguard.evals.run import Run, RunSettings
from vlmguard.evals.store import RunStore
from vlmguard.evals.types import Answer, Judge, Judgement, Sample
from vlmguard.types import Chat, Image

SAMPLING = Sampling(max_tokens=64, temperature=1.0, seed=7)


@dataclass
class CountingJudge:
    """Counts what it is asked; "odd" answers it cannot read."""

    name: str = "counting"
    judged: list[str] = field(default_factory=list)
    error: Exception | None = None

    async def judge(self, sample: Sample, answer: Answer) -> Judgement:
        self.judged.append(answer.text)
        if self.error is not None:
            raise self.error
        if "odd" in answer.text:
            return Judgement(judge=self.name, unscored="the grade is no number: 'perhaps'")
        return Judgement(judge=self.name, metrics={"safe": 1.0})

    async def aclose(self) -> None:
        """Nothing to free."""


@dataclass(frozen=True)
class Drawn:
    """A picture in memory."""

    data: bytes

    def load(self) -> Image:
        return Image(data=self.data, media_type="image/png")


@dataclass(frozen=True)
class Missing:
    """A picture that is not there."""

    def load(self) -> Image:
        raise DataError("the picture is missing", path=Path("gone.png"))


def sample(number: int, prompt: str = "") -> Sample:
    return Sample(
        benchmark="own", id=str(number), prompt=prompt or f"question {number}", kind="harmless"
    )


def contender(
    script: Callable[[Chat, Sampling], Said], *, defence: str = "none", fingerprint: str = ""
) -> tuple[Contender, ScriptedEngine]:
    engine = ScriptedEngine(script, capabilities=frozenset({Capability.VISION}))
    perceiver = DescribedPictures([])
    return Contender(
        entry=Entry(target=engine.spec, defence=defence, fingerprint=fingerprint),
        target=engine,
        defence=NoDefence(perceiver),
        perceiver=perceiver,
    ), engine


def asked(engine: ScriptedEngine) -> list[str]:
    return [chat.messages[-1].text for chat, _ in engine.calls]


async def go(
    folder: Path,
    samples: list[Sample],
    who: Contender,
    *judges: Judge,
    concurrency: int = 4,
    repeats: int = 1,
    retry_failed: bool = False,
) -> RunStore:
    """Answer and judge, and give the store as a reader finds it."""
    store = RunStore(folder)
    try:
        settings = RunSettings(
            sampling=SAMPLING,
            concurrency=concurrency,
            repeats=repeats,
            retry_failed=retry_failed,
        )
        run = Run(samples, store=store, settings=settings)
        await run.answer([who])
        await run.judge([who.entry], judges)
    finally:
        store.close()
    return RunStore(folder, read_only=True)


async def test_every_sample_is_answered_and_judged_once(tmp_path: Path) -> None:
    """A second run finds all answers and judgements, and asks nobody."""
    who, engine = contender(lambda chat, _: f"answer to {chat.messages[-1].text}")
    samples, judge = [sample(number) for number in range(9)], CountingJudge()
    store = await go(tmp_path, samples, who, judge)
    assert sorted(asked(engine)) == [f"question {number}" for number in range(9)]
    assert len(store.answers) == len(store.judgements) == len(judge.judged) == 9
    again = await go(tmp_path, samples, who, judge)
    assert len(engine.calls) == len(judge.judged) == 9
    assert again.answers == store.answers


async def test_another_judge_generates_nothing(tmp_path: Path) -> None:
    """Judging again calls the new judge for every answer, and no target."""
    who, engine = contender(lambda *_: "yes")
    samples = [sample(number) for number in range(3)]
    await go(tmp_path, samples, who, CountingJudge())
    second = CountingJudge(name="second")
    store = await go(tmp_path, samples, who, second)
    assert len(engine.calls) == len(second.judged) == 3
    names = [row.judgement.judge for row in store.judgements.values()]
    assert sorted(names) == ["counting"] * 3 + ["second"] * 3


async def test_more_samples_and_other_settings_ask_only_what_is_new(tmp_path: Path) -> None:
    """A longer list asks for the rest; another fingerprint of the defence asks anew."""
    who, engine = contender(lambda *_: "yes")
    await go(tmp_path, [sample(1), sample(2)], who)
    await go(tmp_path, [sample(1), sample(2), sample(3)], who)
    assert asked(engine) == ["question 1", "question 2", "question 3"]
    await go(tmp_path, [sample(1, "changed"), sample(2)], who)
    assert asked(engine)[3:] == ["changed"]
    other, fresh = contender(lambda *_: "yes", fingerprint="another policy")
    await go(tmp_path, [sample(1)], other)
    assert len(fresh.calls) == 1


async def test_repeats_are_asked_with_seeds_of_their_own(tmp_path: Path) -> None:
    """Three answers a sample, each stored and judged; a run that had one goes on with the rest."""
    who, engine = contender(lambda _, sampling: f"drawn with {sampling.seed}")
    samples, judge = [sample(1), sample(2)], CountingJudge()
    await go(tmp_path, samples, who, judge)
    store = await go(tmp_path, samples, who, judge, repeats=3)
    assert sorted(sampling.seed or 0 for _, sampling in engine.calls) == [7, 7, 8, 8, 9, 9]
    found = {(row.answer.sample_id, row.answer.repeat): row.answer.text
             for row in store.answers.values()}  # fmt: skip
    assert found == {
        (each, repeat): f"drawn with {7 + repeat}" for each in ("1", "2") for repeat in range(3)
    }
    assert len(store.judgements) == len(judge.judged) == 6
    await go(tmp_path, samples, who, judge, repeats=3)
    await go(tmp_path, samples, who, judge)
    assert len(engine.calls) == len(judge.judged) == 6


async def test_a_repeat_that_fails_is_asked_again_alone(tmp_path: Path) -> None:
    """Its siblings stand, and the failure names the repeat."""
    broken = [True]

    def script(_: Chat, sampling: Sampling) -> Said:
        return EngineUnavailable("overloaded") if broken[0] and sampling.seed == 8 else "fine"

    who, engine = contender(script)
    store = await go(tmp_path, [sample(1)], who, repeats=3)
    failed = [row.answer.repeat for row in store.answers.values() if row.answer.error is not None]
    assert failed == [1]
    broken[0] = False
    store = await go(tmp_path, [sample(1)], who, repeats=3)
    assert len(engine.calls) == 4
    assert all(row.answer.error is None for row in store.answers.values())


async def test_failures_are_recorded_and_the_run_goes_on(tmp_path: Path) -> None:
    """Bad samples keep their error; what may pass is asked again, the rest when told."""

    def script(chat: Chat, _: Sampling) -> Said:
        text = chat.messages[-1].text
        if text == "question 0":
            return EngineUnavailable("overloaded")
        if text == "question 1":
            return EngineRejected("too long", status=400)
        if text == "question 2":
            raise ZeroDivisionError("a plugin's bug")
        return "fine"

    who, engine = contender(script)
    samples, judge = [sample(number) for number in range(5)], CountingJudge()
    store = await go(tmp_path, samples, who, judge)
    errors = {row.answer.sample_id: row.answer.error for row in store.answers.values()}
    assert errors == {
        "0": "EngineUnavailable: overloaded",
        "1": "EngineRejected: too long",
        "2": "ZeroDivisionError: a plugin's bug",
        "3": None,
        "4": None,
    }
    assert judge.judged == ["fine", "fine"]
    await go(tmp_path, samples, who)
    assert asked(engine)[5:] == ["question 0", "question 2"]
    await go(tmp_path, samples, who, retry_failed=True)
    assert asked(engine)[7:] == ["question 0", "question 1", "question 2"]


async def test_a_missing_picture_fails_its_sample_only(tmp_path: Path) -> None:
    """A sample whose picture is gone is recorded; one with and one without a picture go on."""
    with_picture = Sample(
        benchmark="own",
        id="drawn",
        prompt="what is it",
        kind="harmless",
        pictures=(Drawn(encode(shapes())),),
    )
    gone = Sample(
        benchmark="own", id="gone", prompt="and this", kind="harmless", pictures=(Missing(),)
    )
    who, engine = contender(lambda *_: "fine")
    store = await go(tmp_path, [with_picture, gone, sample(1)], who)
    found = {row.answer.sample_id: row for row in store.answers.values()}
    assert found["gone"].answer.error == "DataError: gone.png: the picture is missing"
    assert found["gone"].retryable
    assert found["1"].pictures == ()
    assert len(found["drawn"].pictures[0]) == 64
    assert sorted(len(chat.images) for chat, _ in engine.calls) == [0, 1]


async def test_empty_answers_and_unreadable_grades_are_not_scored(tmp_path: Path) -> None:
    """No judge sees an empty answer; a grade that is none stays unscored and is not repeated."""
    said = {"question 0": "", "question 1": "  \n", "question 2": "an odd one", "question 3": "ok"}
    who, _ = contender(lambda chat, _: said[chat.messages[-1].text])
    judge = CountingJudge()
    store = await go(tmp_path, [sample(number) for number in range(4)], who, judge)
    assert sorted(judge.judged) == ["an odd one", "ok"]
    scores = [
        (row.judgement.unscored, dict(row.judgement.metrics)) for row in store.judgements.values()
    ]
    assert ("the grade is no number: 'perhaps'", {}) in scores
    await go(tmp_path, [sample(number) for number in range(4)], who, judge)
    assert len(judge.judged) == 2


async def test_a_judge_that_cannot_be_reached_is_asked_again(tmp_path: Path) -> None:
    """Its failure is unscored for now, and a later run tries once more."""
    who, engine = contender(lambda *_: "fine")
    judge = CountingJudge(error=EngineUnavailable("down"))
    store = await go(tmp_path, [sample(1)], who, judge)
    (row,) = store.judgements.values()
    assert row.judgement.unscored == "EngineUnavailable: down"
    judge.error = None
    store = await go(tmp_path, [sample(1)], who, judge)
    (row,) = store.judgements.values()
    assert row.judgement.metrics == {"safe": 1.0}
    assert len(engine.calls) == 1


async def test_a_target_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    """Sixteen failures in a row stop it; what was recorded is tried again later."""
    who, engine = contender(lambda *_: EngineUnavailable("connection refused"))
    with pytest.raises(RunStopped, match=r"16 times in a row.*connection refused"):
        await go(tmp_path, [sample(number) for number in range(100)], who)
    assert len(engine.calls) < 24


async def test_stop_keeps_what_is_on_its_way(tmp_path: Path) -> None:
    """A stopped run starts nothing new, and keeps the answers that were in flight."""
    store = RunStore(tmp_path)
    engine: ScriptedEngine

    def script(chat: Chat, _: Sampling) -> Said:
        if len(engine.calls) == 5:
            run.stop()
        return "fine"

    who, engine = contender(script)
    run = Run(
        [sample(number) for number in range(50)],
        store=store,
        settings=RunSettings(sampling=SAMPLING, concurrency=3),
    )
    assert not await run.answer([who])
    assert not await run.judge([who.entry], [CountingJudge()])
    store.close()
    assert len(RunStore(tmp_path, read_only=True).answers) == len(engine.calls) < 9


async def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    """A line that a crash left half-written is asked for again; the others stand."""
    who, engine = contender(lambda *_: "fine")
    samples = [sample(1), sample(2)]
    await go(tmp_path, samples, who)
    path = tmp_path / "answers.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    store = await go(tmp_path, samples, who)
    assert len(store.answers) == 2
    assert len(engine.calls) == 3
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    """The second is told so at once."""
    first = RunStore(tmp_path)
    with pytest.raises(StoreError, match="another vlmguard eval writes here"):
        RunStore(tmp_path)
    first.close()
    RunStore(tmp_path).close()


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    """A line that is no answer is an error with its number, not a lost answer."""
    (tmp_path / "answers.jsonl").write_text('{"key": 3}\n')
    with pytest.raises(DataError, match=r"answers\.jsonl:1: not a line of this version's format"):
        RunStore(tmp_path)
