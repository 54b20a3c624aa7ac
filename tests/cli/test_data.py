"""``vlmguard data`` as a user calls it: output, exit codes, messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.data.test_dedupe import LONG, safe, saved
from tests.data.test_reader import CONTRAST, harmless, write_lines
from vlmguard.cli.data import app
from vlmguard.errors import ConfigError, DataError


@pytest.fixture
def contrast(tmp_path: Path) -> Path:
    write_lines(tmp_path / "set" / "a.jsonl", CONTRAST, harmless())
    return tmp_path / "set"


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_stats(contrast: Path) -> None:
    """Counts stand in the table and in the JSON."""
    assert "violence" in run("stats", contrast).output
    told = json.loads(run("stats", contrast, "--json").stdout)
    assert told["counts"]["verdict"] == {"risky": 1, "safe": 1}
    assert told["counts"]["carrier"] == {"typed": 2}
    assert told["lengths"]["prompt"]["longest"] == len(str(CONTRAST["prompt"]))


def test_show(contrast: Path, tmp_path: Path) -> None:
    """Records are chosen by id, family, category and verdict, in the terminal and as a page."""
    shown = run("show", contrast, "--verdict", "risky").output
    assert "pipe-list/1" in shown
    assert "pipe-list/2" not in shown
    assert "pipe-list/2" in run("show", contrast, "--id", "pipe-list").output
    page = tmp_path / "page.html"
    assert run("show", contrast, "--category", "violence", "--html", page).exit_code == 0
    assert "1 records" in page.read_text(encoding="utf-8")
    assert isinstance(run("show", contrast, "--id", "absent").exception, ConfigError)
    assert isinstance(run("show", contrast, "--verdict", "odd").exception, ConfigError)


def test_check(contrast: Path) -> None:
    """A good set exits with 0, a bad one with 1 and a line for each problem."""
    good = run("check", contrast)
    assert good.exit_code == 0
    assert "no problems" in good.output
    write_lines(contrast / "b.jsonl", {**CONTRAST, "family": "lone"})
    bad = run("check", contrast, "--json")
    assert bad.exit_code == 1
    assert "lone" in json.loads(bad.stdout)["problems"][1]["message"]


def test_dedupe(tmp_path: Path) -> None:
    """The pair is shown, and the later record is left out of the new folder."""
    pytest.importorskip("datasketch")
    path = saved(tmp_path, safe("a", LONG), safe("b", LONG))
    result = run("dedupe", path, "--write", tmp_path / "out")
    assert result.exit_code == 0
    assert "b repeats a" in result.output
    [line] = (tmp_path / "out" / "train.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "a"


def test_decontaminate(contrast: Path, tmp_path: Path) -> None:
    """An overlap shows both texts and exits with 1; none exits with 0."""
    pytest.importorskip("datasketch")
    bench = tmp_path / "bench.json"
    bench.write_text(json.dumps({"question": "fill in the list"}))
    found = run("decontaminate", contrast, "--against", bench)
    assert found.exit_code == 1
    assert "bench.json:question: fill in the list" in found.output
    bench.write_text(json.dumps({"question": LONG}))
    assert run("decontaminate", contrast, "--against", bench).exit_code == 0


def test_export(contrast: Path, tmp_path: Path) -> None:
    """What is written and what is left out is told; an unusable set is an error."""
    result = run("export", contrast, tmp_path / "out", "--format", "ms-swift", "--blind", "--json")
    assert sum(json.loads(result.stdout)["written"].values()) == 2
    failed = run("export", contrast, tmp_path / "vlm", "--format", "ms-swift")
    assert isinstance(failed.exception, DataError)
    assert "--blind" in str(failed.exception)
