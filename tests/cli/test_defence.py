"""``vlmguard defence``: the list, and training that can be stopped and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.drawing import encode, typed_text
from vlmguard.cli import defence
from vlmguard.defences import DEFENCES
from vlmguard.engines import Sampling
from vlmguard.engines.scripted import ScriptedEngine
from vlmguard.errors import ConfigError, DataError
from vlmguard.types import Chat

EMBEDDER = "tests.defences.common:open_directions"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(defence.app, [str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two scenarios of two requests."""
    (tmp_path / "a.png").write_bytes(encode(typed_text("hello", size=(80, 60))))
    lines = [
        {"scenario": scenario, "prompt": f"{scenario} {n}", "image": "a.png", "id": n}
        for scenario in ("fraud", "hate")
        for n in range(2)
    ]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    return path


def scripted(tmp_path: Path, name: str, answers: dict[str, str]) -> str:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(answers))
    return f"scripted:{path}"


@pytest.fixture
def arguments(tmp_path: Path, data: Path) -> list[str]:
    """A training whose target refuses everything."""
    return [
        "train", "adashield-a", "--data", str(data),
        "--target", scripted(tmp_path, "target", {"*": "I am sorry."}),
        "--defender", scripted(tmp_path, "defender", {"*": "no"}),
        "--embedder", EMBEDDER, "--detectors", "none",
    ]  # fmt: skip


def test_the_list_shows_every_defence() -> None:
    """As a table and as JSON."""
    table = run("list").stdout
    told = json.loads(run("list", "--json").stdout)
    for name in DEFENCES.names():
        assert name in table
    assert {facts["name"] for facts in told["defences"]} == set(DEFENCES.names())
    assert told["third_party"] == []


def test_training_writes_a_pool_that_the_defence_reads(
    arguments: list[str], tmp_path: Path
) -> None:
    """And says how to use it."""
    pool = tmp_path / "pool.json"
    result = run(*arguments, "--out", pool)
    assert result.exit_code == 0, result.output
    assert f"adashield-a?pool={pool}" in result.output
    told = json.loads(pool.read_text())
    assert [entry["scenario"] for entry in told["entries"]] == ["fraud", "hate"]
    assert told["embedder"] == EMBEDDER


def test_an_interrupted_training_goes_on(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenarios before the interruption are kept and not trained again."""
    pool = tmp_path / "pool.json"
    asked: list[str] = []
    interrupting = True

    def answer(chat: Chat, sampling: Sampling) -> str:
        text = chat.messages[-1].text
        if "hate" in text and interrupting:
            raise KeyboardInterrupt
        asked.append("hate" if "hate" in text else "fraud")
        return "I am sorry."

    monkeypatch.setattr(defence, "open_engine", lambda spec: ScriptedEngine(answer))
    stopped = run(*arguments, "--out", pool)
    assert stopped.exit_code == 130
    assert "1 of 2 scenarios" in stopped.output
    interrupting = False
    result = run(*arguments, "--out", pool)
    assert result.exit_code == 0, result.output
    assert "going on: 1 of 2 scenarios" in result.output
    assert asked == ["fraud", "hate"]


def test_a_pool_of_another_training_is_not_mixed_in(arguments: list[str], tmp_path: Path) -> None:
    """Another target, defender, embedder or file is told."""
    pool = tmp_path / "pool.json"
    assert run(*arguments, "--out", pool).exit_code == 0
    other = scripted(tmp_path, "other", {"*": "I am sorry."})
    result = run(*arguments, "--out", pool, "--target", other)
    assert isinstance(result.exception, ConfigError)
    assert "trained with another target" in str(result.exception)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"scenario": "x", "prompt": "y"}', "image: Field required"),
        ('{"scenario": "", "prompt": "y", "image": "a.png"}', "scenario: String should have"),
        ('{"scenario": "x", "prompt": "y", "image": "none.png"}', "none.png"),
        ("nonsense", "the line: Invalid JSON"),
        ("", "no requests in it"),
    ],
)
def test_a_wrong_line_is_named(arguments: list[str], data: Path, line: str, told: str) -> None:
    """With file, line and field."""
    data.write_text(line)
    result = run(*arguments, "--out", data.parent / "pool.json")
    assert isinstance(result.exception, DataError)
    assert told in str(result.exception)


def test_a_file_that_is_not_there_is_told(arguments: list[str], tmp_path: Path) -> None:
    """Before anything is opened."""
    arguments[3] = str(tmp_path / "nothing.jsonl")
    result = run(*arguments, "--out", tmp_path / "pool.json")
    assert isinstance(result.exception, ConfigError)
    assert "is not a file" in str(result.exception)
