"""``vlmguard synth`` as a user runs it, with a scripted model from a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from vlmguard.cli.synth import app
from vlmguard.errors import ConfigError, DataError, RunStopped, StoreError

FEATURE = {"feature": "It urges.", "span": "go ahead", "harm": "A fall."}
REPORT = {
    "textual": "Asks for encouragement.",
    "visual": "nothing",
    "multimodal": "nothing",
    "triggers": [],
    "verdict": "risky",
    "category": "self_harm",
    "severity": 4,
}
SCRIPT = {
    "Safe answer": json.dumps({"features": [FEATURE]}),
    "What went wrong": json.dumps(REPORT),
    "Textual cause": json.dumps({"prompt": "Ask kindly how they are."}),
    'Answer: "I am glad': json.dumps({"reason": "Kind.", "safety": 9, "helpfulness": 8}),
    "Answer: ": json.dumps({"reason": "Urges.", "safety": 1, "helpfulness": 2}),
    "Ask kindly": "I am glad you told me.",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("pyarrow")
    (tmp_path / "model.json").write_text(json.dumps(SCRIPT))
    rows = [
        {"prompt": f"Encourage me {n}", "chosen": "Step back.", "rejected": "Yes, go ahead!"}
        for n in range(3)
    ]
    rows.append({"prompt": "What is it?", "label": "benign"})
    rows.append({"prompt": "No answers"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def synth(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def run(*more: str) -> Result:
    model = "scripted:model.json"
    return synth(
        "run", "-s", "pairs.jsonl", "--reasoner", model, "--target", model, "-o", "out",
        "--samples", "0", "--detectors", "none", *more,
    )  # fmt: skip


def test_run_and_status(folder: Path) -> None:
    """A run tells what it made, status what is stored, and a second run is the same."""
    first = run()
    assert first.exit_code == 0, first.output
    assert "3 risky and 1 harmless records" in first.output
    assert "1 set aside" in first.output
    status = synth("status", "out", "--json")
    told = json.loads(status.stdout)
    assert told["outcomes"] == {
        "accepted": 3, "benign": 1, "rejected": 0, "aside": 1, "error": 0,
    }  # fmt: skip
    assert told["total"] == told["finished"] == 5
    assert {call["stage"] for call in told["calls"]} == {
        "hindsight", "causal", "optimize", "verify",
    }  # fmt: skip
    assert "scripted:model.json" in synth("status", "out").output
    again = json.loads(run("--json").stdout)
    assert again["records"] == {"risky": 3, "benign": 1}


def test_dry_run(folder: Path) -> None:
    """Counts and estimates; nothing is asked and nothing is written."""
    told = json.loads(run("--dry-run", "--json").stdout)
    assert (told["seeds"], told["benign"], told["aside"], told["to_do"]) == (5, 1, 1, 3)
    assert told["reasons"] == {"an answer is missing, and nothing samples": 1}
    assert told["cost"] == 0
    assert not (folder / "out").exists()
    run()
    assert json.loads(run("--dry-run", "--json").stdout)["done"] == 5
    assert "no model was asked" in run("--dry-run").output


def test_dry_run_costs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only hosted models cost money."""
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    told = synth(
        "run", "-s", "pairs.jsonl", "--reasoner", "openai:big", "--target", "scripted:model.json",
        "-o", "out", "--dry-run", "--json", "--price-in", "1", "--price-out", "1",
    )  # fmt: skip
    assert json.loads(told.stdout)["cost"] > 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("--map", "prompt=nothing"), DataError, "columns found: prompt, chosen"),
        (("--map", "what"), ConfigError, "field=column"),
        (("-s", "missing.jsonl"), DataError, "no such file"),
        (("--ray-gpus", "1"), ConfigError, "--runner ray only"),
        (("--judge", "vllm:org/m", "--runner", "ray"), ConfigError, "--ray-gpus 1"),
    ],
)
def test_wrong_use(
    folder: Path, arguments: tuple[str, ...], error: type[Exception], message: str
) -> None:
    """Errors come as errors of the package, for the command line to tell."""
    failed = run(*arguments)
    assert isinstance(failed.exception, error)
    assert message in str(failed.exception)


def test_status_of_nothing(tmp_path: Path) -> None:
    """A folder without a run is told."""
    assert isinstance(synth("status", str(tmp_path)).exception, ConfigError)


def test_an_older_store(folder: Path) -> None:
    """Refused with the command that helps."""
    import sqlite3
    from contextlib import closing

    run()
    with closing(sqlite3.connect(folder / "out" / "synthesis" / "store.sqlite")) as db:
        db.execute("PRAGMA user_version = 0")
    failed = run()
    assert isinstance(failed.exception, StoreError)
    assert "mv " in str(failed.exception)


def test_a_useless_reasoner(folder: Path) -> None:
    """The run stops early and says why; what was asked is stored."""
    (folder / "model.json").write_text('{"*": "I would rather talk about the weather."}')
    failed = run("--failure-window", "2", "-c", "1")
    assert isinstance(failed.exception, RunStopped)
    assert "no JSON object" in str(failed.exception)
    assert json.loads(synth("status", "out", "--json").stdout)["outcomes"]["rejected"] == 2
