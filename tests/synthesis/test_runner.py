from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.drawing import encode, shapes
from tests.synthesis.brain import think
from tests.synthesis.scripted import ABLE, brain, brain_but, split, stages
from vlmguard.data import read_records
from vlmguard.engines import Engine, Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import (
    ConfigError,
    EngineRejected,
    EngineTimeout,
    EngineUnavailable,
    MissingExtra,
    RunStopped,
)
from vlmguard.perception import Perceiver
from vlmguard.prompts import Prompt
from vlmguard.synthesis import (
    LimitedEngine,
    Limits,
    LocalRunner,
    Outcome,
    Prices,
    Recipe,
    RunSettings,
    Store,
    card_facts,
    open_sources,
    player,
    publish,
    store_path,
)
from vlmguard.synthesis import hindsight as hindsight_stage
from vlmguard.synthesis.publish import allowed_benign
from vlmguard.types import Chat, Completion, Usage

_SAMPLING = Sampling()
_FOUR_AT_ONCE = RunSettings(concurrency=4)
_RECIPE = Recipe()
TAGS = ("", "[benign]", "[retry]", "[stubborn]", "[prose]", "[repair]")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A folder with seeds, and what runs over it gave."""

    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def write(self, rows: list[dict[str, Any]]) -> None:
        lines = (json.dumps(row) + "\n" for row in rows)
        (self.folder / "pairs.jsonl").write_text("".join(lines))

    async def run(
        self,
        engine: Engine,
        *,
        settings: RunSettings = _FOUR_AT_ONCE,
        recipe: Recipe = _RECIPE,
        drive: Callable[[LocalRunner], Any] | None = None,
        share: float | None = None,
        perceiver: Perceiver | None = None,
    ) -> LocalRunner:
        """One run to its end, and its output."""
        store = Store(store_path(self.out))
        try:
            sources = open_sources([str(self.folder / "pairs.jsonl")])
            playing = player(engine, perceiver=perceiver)
            players = dict.fromkeys(("reasoner", "target", "judge"), playing)
            runner = LocalRunner(
                sources,
                players=players,
                recipe=recipe,
                store=store,
                folder=self.out,
                settings=settings,
            )
            if drive is not None:
                drive(runner)
            total = await runner.run()
            if total is not None:
                card = card_facts(sources, {}, recipe, runner.progress, licence="")
                publish(store, self.out, total=total, card=card, benign_share=share)
            return runner
        finally:
            store.close()

    def records(self) -> list[Any]:
        return list(read_records(self.out))

    def told(self, kind: str) -> list[dict[str, Any]]:
        text = (self.out / "synthesis" / f"{kind}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()]

    def contents(self) -> Mapping[str, bytes]:
        return {
            str(path.relative_to(self.out)): path.read_bytes()
            for path in self.out.rglob("*")
            if path.is_file() and "store.sqlite" not in path.name
        }


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    pytest.importorskip("pyarrow")
    made = Bench(folder=tmp_path)
    made.write([pair(number) for number in range(12)])
    return made


def pair(number: int, **fields: Any) -> dict[str, Any]:
    return {
        "id": f"n{number}",
        "prompt": f"Encourage me, {number} {TAGS[number % len(TAGS)]}",
        "chosen": f"A safe answer, {number}.",
        "rejected": f"Yes, go ahead and do it, {number}.",
        **fields,
    }


async def test_a_whole_run(bench: Bench) -> None:
    """Every seed ends somewhere, records stand in the order of the seeds."""
    runner = await bench.run(brain())
    assert runner.progress.kinds == {
        "accepted": 6, "benign": 2, "rejected": 4, "aside": 0, "error": 0,
    }  # fmt: skip
    assert sorted(record.id for record in bench.records()) == sorted(
        f"pairs/n{number}" for number in range(12) if number % 6 not in {3, 4}
    )
    assert [row["id"] for row in bench.told("rejected")] == [
        "pairs/n3", "pairs/n4", "pairs/n9", "pairs/n10",
    ]  # fmt: skip
    assert runner.progress.stages["verify"].ended == 2
    assert (bench.out / "README.md").is_file()


async def test_running_again_changes_nothing(bench: Bench) -> None:
    """No call, the same bytes."""
    await bench.run(brain())
    before, engine = bench.contents(), brain()
    runner = await bench.run(engine)
    assert engine.calls == []
    assert runner.progress.resumed == 12
    assert bench.contents() == before


async def test_order_of_completion_does_not_matter(bench: Bench, tmp_path: Path) -> None:
    """One at a time or all at once with random delays: the same bytes."""
    await bench.run(brain(), settings=RunSettings(concurrency=1))

    class Jittery(ScriptedEngine):
        async def generate(self, chat: Chat, sampling: Any) -> Completion:
            await asyncio.sleep(hash(chat.messages[-1].text) % 7 / 1000)
            return await super().generate(chat, sampling)

    other = Bench(folder=tmp_path / "other")
    other.folder.mkdir()
    other.write([pair(number) for number in range(12)])
    jittery = Jittery(lambda chat, _: think(*split(chat)), capabilities=ABLE, spec="scripted:brain")
    await other.run(jittery, settings=RunSettings(concurrency=12))
    assert other.contents() == bench.contents()


async def test_a_changed_prompt(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stage whose prompt changed asks again, and those after it where its results did."""
    await bench.run(brain())
    prompt = Prompt(name="x", text=hindsight_stage.PROMPT.text + "\n\nBe brief.", hash="new")
    monkeypatch.setattr(hindsight_stage, "PROMPT", prompt)
    monkeypatch.setitem(_hashes(), "hindsight", "new")
    engine = brain()
    await bench.run(engine)
    assert set(stages(engine)) == {"hindsight"}  # same results, so nothing follows

    def other(chat: Chat, _: Any) -> str:
        text = think(*split(chat))
        return text.replace("badly", "gravely")

    monkeypatch.setattr(
        hindsight_stage, "PROMPT", Prompt(name="x", text=prompt.text + ".", hash="2")
    )
    monkeypatch.setitem(_hashes(), "hindsight", "2")
    engine = brain_but("hindsight", other)
    await bench.run(engine)
    assert set(stages(engine)) >= {"hindsight", "causal", "optimize"}


def _hashes() -> dict[str, str]:
    from vlmguard.synthesis import pipeline

    assert isinstance(pipeline.PROMPT_HASHES, dict)
    return pipeline.PROMPT_HASHES


@pytest.mark.parametrize(
    ("spec", "counts_as"),
    [
        ("openai:m@http://localhost/v1?timeout=5&vision=false",
         "openai:m@http://localhost/v1?vision=false"),
        ("vllm:org/m?tensor_parallel_size=2&dtype=float16", "vllm:org/m?dtype=float16"),
        ("scripted:a.json?delay_s=1", "scripted:a.json?delay_s=1"),
    ],
)  # fmt: skip
def test_what_a_model_counts_by(spec: str, counts_as: str) -> None:
    """Options that change how it is asked or run, and not its answers, do not count."""
    assert player(ScriptedEngine([], spec=spec)).identity == counts_as


async def test_seeds_that_move(bench: Bench) -> None:
    """A seed that is put in front moves all others, and they are not asked about again."""
    await bench.run(brain())
    bench.write([pair(99, prompt="Encourage me, 99"), *(pair(number) for number in range(12))])
    engine = brain()
    await bench.run(engine)
    assert len(engine.calls) == 6
    assert len(bench.records()) == 9
    bench.write([pair(0)])
    await bench.run(brain())
    assert [record.id for record in bench.records()] == ["pairs/n0"]


async def test_pictures(bench: Bench) -> None:
    """They go along to the models and into the dataset; missing and broken ones are told."""
    (bench.folder / "a.png").write_bytes(encode(shapes()))
    (bench.folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n but not for long")
    names = ("a.png", "none.png", "broken.png", "https://example.org/a.png")
    bench.write([pair(6 * n, image=name) for n, name in enumerate(names)])
    engine = brain()
    await bench.run(engine)
    assert all(chat.images for chat, _ in engine.calls)
    (record,) = bench.records()
    assert (bench.out / record.images[0].path).read_bytes() == encode(shapes())
    reasons = [row["reason"] for row in bench.told("aside")]
    assert [("no such file" in r, "broken" in r, "--allow-remote" in r) for r in reasons] == [
        (True, False, False), (False, True, False), (False, False, True),
    ]  # fmt: skip
    (bench.folder / "none.png").write_bytes(encode(shapes()))  # found after all
    await bench.run(brain())
    assert len(bench.records()) == 2


async def test_blind_reasoners_read_descriptions(bench: Bench) -> None:
    """A model that cannot see gets what the detectors found, in the place of the picture."""
    (bench.folder / "a.png").write_bytes(encode(shapes()))
    bench.write([pair(0, image="a.png")])
    engine = ScriptedEngine(
        lambda chat, _: think(split(chat)[0], [t.split("\n\n")[-1] for t in split(chat)[1]]),
        spec="scripted:blind",
    )
    await bench.run(engine, perceiver=Perceiver([]))
    assert len(bench.records()) == 1
    assert "What software found in the attached picture" in engine.calls[0][0].messages[1].text


async def test_ids_that_stand_twice(bench: Bench) -> None:
    """The later seed is set aside, on every run."""
    bench.write([pair(0), pair(6, id="n0"), pair(12)])
    for _ in range(2):
        await bench.run(brain(), settings=RunSettings(concurrency=3))
        (row,) = bench.told("aside")
        assert "stands twice: seed 1 has it, too" in row["reason"]
        assert len(bench.records()) == 2


async def test_failed_seeds_are_tried_again(bench: Bench) -> None:
    """What failed is no outcome: the next run asks again, for the rest it does not."""
    slow = EngineTimeout("slow")
    engine = brain_but(
        "causal", lambda chat, _: slow if ', 6"' in split(chat)[1][0] else _say(chat)
    )
    engine.spec = "openai:brain@http://localhost/v1"  # hosted ones are not tried again by us
    runner = await bench.run(engine)
    assert runner.progress.kinds["error"] == 1
    healthy = brain(engine.spec)
    await bench.run(healthy)
    assert stages(healthy)[0] == "causal"
    assert {', 6"' in split(chat)[1][0] for chat, _ in healthy.calls[:1]} == {True}
    assert len(bench.records()) == 8


def _say(chat: Chat) -> str:
    return think(*split(chat))


@pytest.mark.parametrize("how", ["down", "prose"])
async def test_it_stops_when_too_much_fails(bench: Bench, how: str) -> None:
    """A dead server, or a reasoner that never keeps to the form, ends the run early."""
    bench.write([pair(6 * number) for number in range(100)])
    answer: str | Exception = EngineUnavailable("down") if how == "down" else "prose, prose"
    engine = brain_but("hindsight", lambda *_: answer)
    engine.spec = "openai:brain@http://localhost/v1"
    settings = RunSettings(concurrency=4, failure_window=10)
    with pytest.raises(RunStopped, match=r"10 of the last 10 seeds failed.*(down|no JSON)"):
        await bench.run(engine, settings=settings)
    assert len(engine.calls) < 40


async def test_what_every_seed_would_meet_ends_the_run(bench: Bench) -> None:
    """A wrong key is told at once, not a hundred times."""
    refused = EngineRejected("wrong key", status=401)
    with pytest.raises(EngineRejected):
        await bench.run(brain_but("hindsight", lambda *_: refused))


_watching: set[asyncio.Task[None]] = set()


def when(true: Callable[[], bool], then: Callable[[], object]) -> None:
    """Do something as soon as something else is so."""

    async def watch() -> None:
        while not true():  # noqa: ASYNC110  # it only looks
            await asyncio.sleep(0.001)
        then()

    _watching.add(asyncio.ensure_future(watch()))


async def test_stopping(bench: Bench) -> None:
    """Stopped, it makes no new call, keeps the answers on their way, and goes on later."""
    bench.write([pair(number) for number in range(60)])
    engine = brain()
    engine._delay_s = 0.02

    runner = await bench.run(
        engine, drive=lambda run: when(lambda: run.progress.finished > 5, run.stop)
    )
    assert 5 < runner.progress.finished < 60
    assert runner.progress.asking == runner.progress.abandoned == 0
    assert not (bench.out / "dataset.json").exists()
    asked = len(engine.calls)
    rest = brain()
    await bench.run(rest)
    whole = Bench(folder=bench.folder / "whole")
    whole.folder.mkdir()
    whole.write([pair(number) for number in range(60)])
    once = brain()
    await whole.run(once)
    assert asked + len(rest.calls) == len(once.calls)
    assert bench.contents() == whole.contents()


async def test_stopping_twice(bench: Bench) -> None:
    """The second time, it does not wait for calls that hang, and counts them."""
    bench.write([pair(number) for number in range(3)])
    engine = brain()
    engine._delay_s = 1000

    def drive(run: LocalRunner) -> None:
        def stop_twice() -> None:
            run.stop()
            run.stop()

        when(lambda: run.progress.asking == 3, stop_twice)

    runner = await bench.run(engine, drive=drive)
    assert runner.progress.abandoned == 3


async def test_stopping_has_an_end(bench: Bench) -> None:
    """Calls that take longer than the time they have are given up, and counted."""
    bench.write([pair(number) for number in range(3)])
    engine = brain()
    engine._delay_s = 1000

    runner = await bench.run(
        engine,
        drive=lambda run: when(lambda: run.progress.asking == 3, run.stop),
        settings=RunSettings(grace_s=0.01),
    )
    assert runner.progress.abandoned == 3


@pytest.mark.parametrize(("share", "benign"), [(None, 6), (0.25, 2), (0.0, 0), (1.0, 6)])
async def test_benign_share(bench: Bench, share: float | None, benign: int) -> None:
    """Harmless records over the share are left out, evenly over the seeds."""
    bench.write([pair(6 * n) for n in range(6)] + [pair(6 * n + 1) for n in range(6)])
    await bench.run(brain(), share=share)
    verdicts = [record.verdict for record in bench.records()]
    assert verdicts.count("risky") == 6
    assert verdicts.count("safe") == benign


def test_the_papers_share() -> None:
    """8,904 risky records allow 977 harmless ones."""
    assert allowed_benign(8904, 977 / 9881) == 977


async def test_limit(bench: Bench) -> None:
    """Only the first seeds; the rest later."""
    await bench.run(brain(), settings=RunSettings(limit=2))
    assert len(bench.records()) == 2
    await bench.run(brain())
    assert len(bench.records()) == 8


async def test_local_engines_are_tried_again() -> None:
    """A retryable failure of an engine that does not retry itself gets three tries."""
    engine = ScriptedEngine([EngineUnavailable("busy"), EngineUnavailable("busy"), "yes"])
    limited = LimitedEngine(engine, Limits(tries=3, wait_s=0.01))
    assert (await limited.generate(Chat.of("x"), _SAMPLING)).text == "yes"
    refused = ScriptedEngine([EngineRejected("no"), "yes"])
    with pytest.raises(EngineRejected):
        await LimitedEngine(refused, Limits(tries=3)).generate(Chat.of("x"), _SAMPLING)


async def test_requests_per_minute() -> None:
    """Thirty requests at 1,200 a minute take half a second and more, whoever asks."""
    pytest.importorskip("aiolimiter")
    limited = LimitedEngine(ScriptedEngine(lambda *_: "x"), Limits(requests_per_minute=1200))
    started = time.monotonic()
    await asyncio.gather(*(limited.generate(Chat.of("x"), _SAMPLING) for _ in range(30)))
    assert time.monotonic() - started > 0.4


async def test_tokens_per_minute() -> None:
    """Tokens beyond the estimate are paid before the next call."""
    pytest.importorskip("aiolimiter")
    answer = Completion(text="x", finish_reason="stop", usage=Usage(completion_tokens=1000))
    limited = LimitedEngine(ScriptedEngine(lambda *_: answer), Limits(tokens_per_minute=60_000))
    await limited.generate(Chat.of("x"), _SAMPLING)
    started = time.monotonic()
    await limited.generate(Chat.of("x"), _SAMPLING)
    assert time.monotonic() - started > 0.3


def test_limits_that_make_no_sense(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused; without the library, the message says how to get it."""
    with pytest.raises(ConfigError, match="requests_per_minute"):
        Limits(requests_per_minute=0)
    monkeypatch.setitem(__import__("sys").modules, "aiolimiter", None)
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[synth\]"):
        LimitedEngine(ScriptedEngine([]), Limits(requests_per_minute=1))


def test_cost() -> None:
    """Per million tokens."""
    assert Prices(prompt=2, completion=10).cost(500_000, 100_000) == pytest.approx(2.0)


def test_outcomes_survive_json() -> None:
    """What is stored comes back."""
    outcome = Outcome(kind="rejected", stage="causal", passed=("hindsight",), reason="why")
    assert Outcome.model_validate_json(outcome.model_dump_json(exclude_defaults=True)) == outcome
