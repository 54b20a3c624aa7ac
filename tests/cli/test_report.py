"""``vlmguard report`` as a user runs it."""

from __future__ import annotations

import json
import webbrowser
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.evals.server import scripted_server
from vlmguard.cli.main import app
from vlmguard.errors import VLMGuardError


def call(*words: object) -> Result:
    return CliRunner().invoke(app, [*map(str, words)])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run over two items of one's own."""
    folder = tmp_path_factory.mktemp("evaluated")
    items = folder / "items.jsonl"
    rows = [{"id": str(n), "prompt": f"question {n}", "kind": "harmless"} for n in range(2)]
    items.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    with scripted_server() as server:
        names = ["-t", server.spec(), "-d", "none", "-o", folder / "run"]
        result = call("eval", f"custom:{items}", *names, "--no-logs", "--report", "none")
    assert result.exit_code == 0, result.output
    return folder / "run"


def test_a_report_of_a_run(finished: Path, tmp_path: Path) -> None:
    """A folder gives all formats with samples; the JSON file gives the page again."""
    result = call("report", finished, "-f", "json,html,csv", "-o", tmp_path, "--show")
    assert result.exit_code == 0, result.output
    assert "refusal % ↓" in result.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "report.csv",
        "report.html",
        "report.json",
    ]
    again = call("report", tmp_path / "report.json", "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    assert "question 1" in (tmp_path / "again" / "report.html").read_text("utf-8")
    figures = call("report", finished / "results.json", "-o", tmp_path / "figures")
    assert "has no samples" in " ".join(figures.stderr.split())


def test_the_page_is_opened(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--open gives the page to the browser, and where there is none says where it is."""
    opened: list[str] = []

    def no_browser(url: str) -> bool:
        opened.append(url)
        return False

    monkeypatch.setattr(webbrowser, "open", no_browser)
    result = call("report", finished, "-o", tmp_path, "--open")
    assert result.exit_code == 0, result.output
    assert opened == [(tmp_path / "report.html").as_uri()]
    assert "no browser was found; the page is" in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "cannot be read: No such file"),
        (["."], "no run was started here"),
        (["text.json"], "no results of an evaluation"),
        (["text.json", "-f", "pdf"], "format 'pdf': unknown; known: html"),
        (["text.json", "-f", "md", "--open"], "--open needs the page"),
    ],
)
def test_wrong_use_is_told(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong path, file or format is one sentence, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    Path("text.json").write_text('{"cells": 3}')
    result = call("report", *words)
    assert isinstance(result.exception, VLMGuardError)
    assert message in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["text.json"]
