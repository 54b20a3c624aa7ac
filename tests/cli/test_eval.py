"""``vlmguard eval`` as a user runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.evals.server import Scripted, scripted_server
from vlmguard.cli.main import app
from vlmguard.errors import VLMGuardError
from vlmguard.evals.report import load_results


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted_server() as scripted:
        yield scripted


@pytest.fixture
def items(tmp_path: Path) -> Path:
    """Six text-only items of one's own."""
    return write_items(tmp_path / "items.jsonl", [f"question {number}" for number in range(6)])


def write_items(path: Path, prompts: list[str]) -> Path:
    rows = [
        {"id": str(number), "prompt": prompt, "kind": "harmless"}
        for number, prompt in enumerate(prompts)
    ]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, words)])


QUIET = ("--no-logs", "--report", "none")


def told(result: Result) -> str:
    """What the user is told of an error."""
    assert result.exit_code != 0
    assert isinstance(result.exception, VLMGuardError | SystemExit)
    return str(result.exception) if isinstance(result.exception, VLMGuardError) else result.output


def test_a_run_prints_a_table_and_writes_its_files(
    server: Scripted, items: Path, tmp_path: Path
) -> None:
    """Two defences, one judge: a table, answers, judgements, results; run again, no call."""
    options = ["--target", server.spec(), "--defence", "none,self-reminder", "--judge", "refusal"]
    words = [f"custom:{items}", *options, "--out", tmp_path / "run", "--no-logs"]
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "self-remi" in result.stdout  # folded to the width of the terminal
    assert (tmp_path / "run" / "report.html").is_file()
    assert len(server.asked) == 12
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert {cell["defence"] for cell in results["cells"]} == {"none", "self-reminder"}
    assert all(cell["answers"] == 6 for cell in results["cells"])
    assert results["command"].startswith(f"vlmguard eval custom:{items} --target")
    assert len(next(iter(results["dataset_hashes"].values()))) == 64
    assert call(*words).exit_code == 0
    assert len(server.asked) == 12


def test_repeats_are_counted_once_a_sample(server: Scripted, items: Path, tmp_path: Path) -> None:
    """Three answers a sample: estimated, asked, found again, reported as six outcomes."""
    options = ["-t", server.spec(), "-d", "none", "--repeats", 3, "--temperature", 1]
    words = [f"custom:{items}", *options, "-o", tmp_path / "run", "--json"]
    assert json.loads(call(*words, "--dry-run").stdout)["parts"][0]["to_do"] == 18
    for _ in range(2):
        result = call(*words, "--no-logs", "--report", "md")
        assert result.exit_code == 0, result.output
        (cell,) = json.loads(result.stdout)["cells"]
        assert (cell["answers"], cell["repeats"], cell["undecided"]) == (18, 3, 0)
        assert cell["metrics"]["over_refusal"]["n"] == 6
        assert len(server.asked) == 18
    assert "--repeats 3" in json.loads(result.stdout)["command"]
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Each sample was answered 3 times and counts once" in report


def test_judging_again_generates_nothing(server: Scripted, items: Path, tmp_path: Path) -> None:
    """`vlmguard eval judge` asks the new judge for every answer and no target."""
    out = tmp_path / "run"
    call(f"custom:{items}", "-t", server.spec(), "-d", "none", "-o", out, *QUIET)
    before = (out / "answers.jsonl").read_bytes()
    result = call("judge", out, "--judge", "refusal", "--json", *QUIET)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cells"][0]["judge"].startswith("refusal#")
    assert len(server.asked) == 6
    assert (out / "answers.jsonl").read_bytes() == before


def test_another_comparison_generates_nothing(
    server: Scripted, items: Path, tmp_path: Path
) -> None:
    """The same run with differences to another defence; the reports say to which."""
    words = [f"custom:{items}", "-t", server.spec(), "-d", "none,self-reminder"]
    words += ["-o", str(tmp_path / "run"), "--no-logs", "--report", "md,json"]
    call(*words)
    assert call(*words, "--compare-to", "self-reminder").exit_code == 0
    assert len(server.asked) == 12
    report = (tmp_path / "run" / "report.md").read_text()
    assert "Paired difference to self-reminder, in points" in report
    saved = load_results(tmp_path / "run" / "report.json")
    assert saved.compared_to == "self-reminder"
    compared = {cell.defence for cell in saved.cells if cell.differences}
    assert compared == {"none"}


def test_failed_and_empty_answers_are_counted_apart(server: Scripted, tmp_path: Path) -> None:
    """A table says how many answers are missing or empty, and the exit code that some failed."""
    prompts = ["plain", "this is too long", "say nothing", "refuse this"]
    items = write_items(tmp_path / "items.jsonl", prompts)
    out = tmp_path / "run"
    result = call(f"custom:{items}", "-t", server.spec(), "-d", "none", "-o", out, "--json", *QUIET)
    assert result.exit_code == 1
    (cell,) = json.loads(result.stdout)["cells"]
    assert (cell["answers"], cell["failed"], cell["empty"], cell["unscored"]) == (4, 1, 1, 2)
    assert "answers missing: 1, e.g.: EngineRejected" in result.stderr


def test_a_recipe_says_the_same_as_the_options(
    server: Scripted, items: Path, tmp_path: Path
) -> None:
    """A YAML file holds the options under their names; options given beside it win."""
    recipe = tmp_path / "plan.yaml"
    recipe.write_text(
        f"benchmarks: ['custom:{items}']\ntargets: ['{server.spec()}']\ndefences: none\n"
        f"judges: [refusal]\nout: {tmp_path / 'run'}\nlimit: 5\n"
    )
    result = call(recipe, "--limit", 2, *QUIET)
    assert result.exit_code == 0, result.output
    assert len(server.asked) == 2


def test_dry_run_asks_nobody_and_a_probe_is_kept(
    server: Scripted, items: Path, tmp_path: Path
) -> None:
    """An estimate makes no call and no folder; a probe's answers are the run's first."""
    words = [f"custom:{items}", "-t", server.spec(), "-d", "none,ecso", "-o", tmp_path / "run"]
    result = call(*words, "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert [(part["defence"], part["to_do"]) for part in found["parts"]] == [
        ("none", 6),
        ("ecso", 6),
    ]
    assert (found["parts"][1]["added_low"], found["parts"][1]["added_high"]) == (6, 18)
    assert not server.asked
    assert not (tmp_path / "run").exists()
    result = call(*words, "--dry-run", "--probe", 2)
    assert result.exit_code == 0, result.output
    assert "8 answers in about" in result.stdout
    calls = len(server.asked)
    call(*words, *QUIET)
    assert len(server.asked) == calls + 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nosuchbench"], "unknown benchmark 'nosuchbench'"),
        (["xstest", "--target", "nosuch"], "unknown engine 'nosuch'"),
        (["xstest", "--defence", "nosuch"], "unknown defence 'nosuch'"),
        (["xstest", "--judge", "nosuch"], "unknown judge 'nosuch'"),
        (["xstest", "--data", "/nowhere"], "/nowhere"),
        (["nosuch.yaml"], "the recipe nosuch.yaml cannot be read"),
        (["xstest", "--probe", "2"], "--probe 2 is of use with --dry-run only"),
        (["judge", "/nowhere", "--judge", "refusal"], "no run was started here"),
    ],
)
def test_wrong_names_are_told_before_anything_runs(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown name or missing data is one sentence, and no folder is made."""
    monkeypatch.chdir(tmp_path)
    assert message in told(call(*words))
    assert not list(tmp_path.iterdir())


# --- Killed and stopped ----------------------------------------------------------------------


def start(items: Path, server: Scripted, out: Path) -> subprocess.Popen[bytes]:
    options = ["-t", server.spec(), "-d", "none,self-reminder", "-o", out, "-c", "4", *QUIET]
    return subprocess.Popen(
        [sys.executable, "-m", "vlmguard.cli.main", "eval", f"custom:{items}", *map(str, options)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(server: Scripted, calls: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while len(server.asked) < calls and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def stored(out: Path) -> int:
    return (out / "answers.jsonl").read_bytes().count(b"\n")


def test_a_killed_run_goes_on_where_it_was(server: Scripted, tmp_path: Path) -> None:
    """After SIGKILL only what was in flight is asked again, at most one call a worker."""
    items = write_items(tmp_path / "items.jsonl", [f"question {number}" for number in range(24)])
    server.delay_s, out = 0.02, tmp_path / "run"
    process = start(items, server, out)
    wait_for(server, 12, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.1)  # the server answers what it was still asked
    calls, kept = len(server.asked), stored(out)
    assert 0 < kept < 48
    assert calls - kept <= 4
    result = call(
        f"custom:{items}", "-t", server.spec(), "-d", "none,self-reminder", "-o", out, *QUIET
    )
    assert result.exit_code == 0, result.output
    assert len(server.asked) == calls + 48 - kept
    assert stored(out) == 48


@pytest.mark.slow
def test_ctrl_c_ends_in_order(server: Scripted, tmp_path: Path) -> None:
    """Ctrl-C keeps the answers on their way, exits with 130 and says how to go on."""
    items = write_items(tmp_path / "items.jsonl", [f"question {number}" for number in range(40)])
    server.delay_s, out = 0.05, tmp_path / "run"
    process = start(items, server, out)
    wait_for(server, 6, process)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert b"Run the same command again to go on" in said
    assert stored(out) == len(server.asked) < 80
