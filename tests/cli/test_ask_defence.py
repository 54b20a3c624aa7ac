"""``vlmguard ask --defence``: any defence before any target."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from tests.drawing import encode, typed_text
from vlmguard.cli import ask
from vlmguard.errors import ConfigError, UnknownName

app = typer.Typer()
app.command()(ask.ask)


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    """What every call says: a prompt, a picture, a scripted target, no detectors."""
    answers = {
        "one word yes": "Yes.",
        "Describe the picture": "A sign.",
        "harmless and ethical": "Better not.",
        "*": "Certainly! Step one",
    }
    target, image = tmp_path / "target.json", tmp_path / "a.png"
    target.write_text(json.dumps(answers))
    image.write_bytes(encode(typed_text("hello")))
    return ["Do it.", "-i", str(image), "-t", f"scripted:{target}", "--detectors", "none"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_defence_that_answers_itself_is_shown(asked: list[str]) -> None:
    """With its notes, and beside the bare answer."""
    result = run(*asked, "--defence", "ecso", "--compare")
    assert result.exit_code == 0, result.output
    assert "Better not." in result.output
    assert "Certainly!" in result.output
    assert "Answer under ecso" in result.output


def test_a_defence_of_the_input_is_streamed(asked: list[str]) -> None:
    """It has no decision to show."""
    result = run(*asked, "--defence", "self-reminder")
    assert "Certainly! Step one" in result.output
    assert "VLMGuard-R1" not in result.output


def test_json_says_what_the_defence_added(asked: list[str]) -> None:
    """Calls and tokens; a defence that does not rewrite has no rewrite."""
    told = json.loads(run(*asked, "--defence", "ecso", "--json").stdout)
    assert told["defence"] == "ecso"
    assert told["rewrite"] is None
    assert told["answer"] == "Better not."
    assert told["added"]["calls"] == 3
    assert told["added"]["completion_tokens"] == 1 + 2 + 2
    assert set(told["timings_ms"]) > {"target", "harm check", "caption", "total"}


def test_options_of_the_guard_do_not_go_unnoticed(asked: list[str]) -> None:
    """They belong into the spec."""
    for option in (("-p", "strict"), ("-r", "smollm2")):
        result = run(*asked, "--defence", "guard", *option)
        assert isinstance(result.exception, ConfigError)
        assert "guard:REWRITER?policy=POLICY" in str(result.exception)


def test_an_unknown_defence_is_told(asked: list[str]) -> None:
    """With those there are."""
    result = run(*asked, "--defence", "gaurd")
    assert isinstance(result.exception, UnknownName)
    assert "self-reminder" in str(result.exception)
