"""``vlmguard train`` as a user meets it, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

for _name in ("torch", "transformers", "trl", "datasets", "sklearn", "matplotlib"):
    pytest.importorskip(_name)

from tests import tiny_models  # noqa: E402
from tests.training import common  # noqa: E402
from vlmguard.cli import train as commands  # noqa: E402
from vlmguard.errors import ConfigError, DataError, MissingExtra  # noqa: E402

app = typer.Typer()
app.command()(commands.train)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of three steps, with its data beside it."""
    folder = tmp_path_factory.mktemp("recipe")
    model = tiny_models.save_llama(folder / "model")
    common.write(folder, common.text_records())
    file = folder / "tiny.yaml"
    file.write_text(
        f"name: tiny\nmodel: {model}\noutput: {folder / 'unused'}\n"
        "data: {paths: [records.jsonl], max_length: 500}\n"
        "lora: {r: 4}\noptimizer: {max_steps: 3, batch_size: 4, precision: fp32}\n",
        encoding="utf-8",
    )
    return file


def run(*arguments: str | Path) -> Result:
    """A call of the command line; errors are the caller's to see."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_dry_run_says_what_would_happen_and_writes_nothing(recipe: Path, tmp_path: Path) -> None:
    """Records, weights, tokens, steps, memory and one example; the folder stays unclaimed."""
    result = run(recipe, "--out", tmp_path / "out", "--dry-run")
    assert result.exit_code == 0, result.exception
    told = " ".join(result.stdout.split())
    assert "12 train, 4 validation, 4 test" in told
    assert "trainable" in told
    assert "steps 3" in told
    assert "GB" in told
    assert 'Prompt: "poison bread"' in told
    assert '"prompt": "Say no, kindly."}' in told
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_adapter_is_the_only_output(recipe: Path, tmp_path: Path) -> None:
    """So that a script can use it; progress goes to standard error."""
    result = run(recipe, "--out", tmp_path / "out", "--set", "optimizer.max_steps=1")
    assert result.exit_code == 0, result.exception
    assert result.stdout == f"{tmp_path / 'out' / 'adapter'}\n"
    assert "epoch" in result.stderr
    again = run(recipe, "--out", tmp_path / "out")
    assert isinstance(again.exception, ConfigError)
    assert "--resume" in str(again.exception)


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (["--set", "optimizer.epochs=many"], ConfigError, "optimizer.epochs"),
        (["--set", "model=no/where"], ConfigError, "no/where"),
        (["--set", "model=nowhere.gguf"], ConfigError, "nowhere.gguf"),
        (["--set", "data.paths=[nowhere.jsonl]"], DataError, "nowhere.jsonl"),
        (["--set", "prompt=none.md"], ConfigError, "none.md"),
        (["--set", "lora.targets=[nothing]"], ConfigError, "nothing"),
        (["--set", "evaluation.report_to=[nobody]"], ConfigError, "nobody is not installed"),
        (["--set", "tuning=qlora"], (ConfigError, MissingExtra), "qlora"),
        (["--set", "data.max_length=10"], ConfigError, "harmless records that can be used"),
    ],
)
def test_what_cannot_be_done_is_said(
    recipe: Path,
    tmp_path: Path,
    arguments: list[str],
    kind: type[Exception],
    message: str,
) -> None:
    """Before anything is trained, in one line that names the setting."""
    result = run(recipe, "--out", tmp_path / "out", "--dry-run", *arguments)
    assert isinstance(result.exception, kind)
    assert message in str(result.exception)


def test_without_its_libraries_training_says_what_to_install(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extra is named before a traceback could be."""
    monkeypatch.setattr(commands, "_NEEDED", ("not_a_module",))
    result = run(recipe)
    assert isinstance(result.exception, MissingExtra)
    assert "vlmguard-r1[train]" in str(result.exception)
