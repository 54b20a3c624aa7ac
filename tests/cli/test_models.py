"""``vlmguard pull`` and ``vlmguard models`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner, Result

from tests.models.small import CONTENT, SMALL
from vlmguard import models as store
from vlmguard.cli import models as commands
from vlmguard.errors import ConfigError, ModelStoreError, UnknownName
from vlmguard.models import inventory

app = typer.Typer()
app.command()(commands.pull)
app.command()(commands.models)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that knows the small model only, without a network."""
    monkeypatch.setenv("VLMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLMGUARD_OFFLINE", "1")
    for module in (store, inventory):
        monkeypatch.setattr(module, "KNOWN", {SMALL.name: SMALL})
    monkeypatch.setattr("vlmguard.models.hub.cached_snapshots", tuple)
    return tmp_path / "home"


@pytest.fixture
def given(tmp_path: Path) -> Path:
    """The small model's file, somewhere else."""
    path = tmp_path / "given.gguf"
    path.write_bytes(CONTENT)
    return path


def run(*arguments: str | Path) -> Result:
    """A call of the command line; errors are the caller's to see."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_pull_prints_the_path_alone(home: Path, given: Path) -> None:
    """So that a script can use it; a second pull prints the same."""
    result = run("pull", "small", "--from-file", given)
    assert result.exit_code == 0
    assert result.stdout == f"{home}/models/small/model.gguf\n"
    assert run("pull", "small").stdout == result.stdout


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["pull", "large"], UnknownName),
        (["pull", "small"], ModelStoreError),
        (["pull", "small", "--revision", "main"], ConfigError),
        (["pull", "hf:model"], ConfigError),
        (["pull", "hf:org/model", "--from-file", "x"], ConfigError),
        (["pull", "small", "--from-file", "/nowhere"], ModelStoreError),
    ],
)
def test_errors_are_left_to_the_top(arguments: list[str], error: type[Exception]) -> None:
    """The commands raise; the top of the command line translates, once."""
    pytest.importorskip("huggingface_hub")
    assert type(run(*arguments).exception) is error


def test_models_lists_what_is_known_and_here(home: Path, given: Path) -> None:
    """State, size, licence, source; then the path, or the way to get it."""
    listed = run("models").stdout
    assert "small  absent  300 kB  Apache-2.0" in listed
    assert "fetch it: vlmguard pull small" in listed
    path = run("pull", "small", "--from-file", given).stdout.strip()
    listed = run("models").stdout
    assert "small  here  300 kB  Apache-2.0" in listed
    assert f"  {path}\n" in listed
    assert "small-model 1.0" in listed


def test_models_as_json(given: Path) -> None:
    """One object on standard output; these names are stable."""
    path = run("pull", "small", "--from-file", given).stdout.strip()
    assert json.loads(run("models", "--json").stdout) == {
        "store": str(store.store_dir()),
        "models": [
            {
                "name": "small",
                "what": "random bytes for tests",
                "state": "here",
                "size": 300_000,
                "licence": "Apache-2.0",
                "source": "small-model 1.0 (Python package index)",
                "path": path,
                "problem": None,
            }
        ],
    }


def test_damage_is_listed_and_fails_a_verification(given: Path) -> None:
    """The list shows it either way; --verify also ends with an error."""
    path = Path(run("pull", "small", "--from-file", given).stdout.strip())
    assert run("models", "--verify").exit_code == 0
    path.write_bytes(CONTENT[:-1])
    result = run("models")
    assert result.exit_code == 0
    assert "small  damaged" in result.stdout
    assert "vlmguard pull small --force" in result.stdout
    for options in ([], ["--json"]):
        result = run("models", "--verify", *options)
        assert isinstance(result.exception, ModelStoreError)
        assert "damaged" in result.stdout


def test_paths_stay_whole_in_a_narrow_terminal(
    given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A path that is cut into two lines cannot be copied."""
    path = run("pull", "small", "--from-file", given).stdout.strip()
    monkeypatch.setattr("vlmguard.cli.models.out", Console(width=20))
    assert f"  {path}\n" in run("models").stdout
