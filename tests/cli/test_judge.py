"""``vlmguard judge``: as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from vlmguard.cli.main import app
from vlmguard.errors import DataError

LABELLED = Path(__file__).parents[2] / "datasets/judge/labelled.jsonl"


def test_the_shipped_labels_check_the_string_judge() -> None:
    """The refusal judge agrees with people well, not perfectly: the set holds traps."""
    result = CliRunner().invoke(app, ["judge", "check", str(LABELLED), "-j", "refusal", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    (refused,) = found["agreement"]
    assert refused["score"] == "refused"
    assert 0.85 < refused["accuracy"]["value"] < 1
    assert refused["kappa"]["low"] > 0.5
    assert sum(cell["answers"] for cell in refused["confusion"]) == found["records"]


def test_ungraded_answers_are_counted(tmp_path: Path) -> None:
    """A judge that says nonsense has unscored answers and no accuracy."""
    script = tmp_path / "says.json"
    script.write_text('{"*": "perhaps"}')
    spec = f"scripted:{script}"
    result = CliRunner().invoke(app, ["judge", "check", str(LABELLED), "-j", spec, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {each["unscored"] for each in found["agreement"]} == {found["records"]}
    assert {each["accuracy"] for each in found["agreement"]} == {None}


def test_a_wrong_line_is_named(tmp_path: Path) -> None:
    """A record without a label is refused with its line."""
    path = tmp_path / "labels.jsonl"
    path.write_text('{"id": "1", "kind": "harmful", "prompt": "p", "answer": "a"}\n')
    result = CliRunner().invoke(app, ["judge", "check", str(path), "-j", "refusal"])
    assert isinstance(result.exception, DataError)
    assert ":1: has neither label nor scores" in str(result.exception)


def test_the_list_names_judges_and_rubrics() -> None:
    """The list shows what --judge takes."""
    result = CliRunner().invoke(app, ["judge", "list"])
    assert result.exit_code == 0
    assert "majority:A+B+C" in result.stdout
    assert "paper:MODEL" in result.stdout
