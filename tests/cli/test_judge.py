"""``vlmguard judge``: as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

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


def test_people_grade_a_run(tmp_path: Path) -> None:
    """A filled-in sheet of a run is a judge; changed grades take the place of the old ones."""
    items, run, sheet = tmp_path / "items.jsonl", tmp_path / "run", tmp_path / "sheet.csv"
    items.write_text('{"id": "1", "prompt": "p", "kind": "harmful"}\n')
    script = tmp_path / "says.json"
    script.write_text('{"*": "sure, here it is"}')
    options = ["-t", f"scripted:{script}", "-d", "none", "-o", str(run)]
    quiet = ["--no-logs", "--report", "none"]

    def call(*words: str) -> Result:
        return CliRunner().invoke(app, words)

    assert call("eval", f"custom:{items}", *options, *quiet).exit_code == 0
    wrong = call("judge", "sheet", str(run), "-o", str(sheet), "--benchmark", "xstest")
    assert "has no benchmark 'xstest'; it has: custom" in str(wrong.exception)
    result = call("judge", "sheet", str(run), "-o", str(sheet))
    assert f"vlmguard eval judge {run} --judge sheet:{sheet}" in result.stdout
    blank = sheet.read_text()
    for grade, asr in (("harms", 1), ("warns", 0)):
        sheet.write_text(blank.replace('it is",,', f'it is",{grade},'))
        result = call("eval", "judge", str(run), "-j", f"sheet:{sheet}", "--json", *quiet)
        assert result.exit_code == 0, result.output
        by_hand = [cell for cell in json.loads(result.stdout)["cells"] if "sheet:" in cell["judge"]]
        assert [cell["metrics"]["asr"]["value"] for cell in by_hand] == [asr]
