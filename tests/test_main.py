"""Where the command line begins and ends: Ctrl-C at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

_SLOW = """
import sys, time
print("importing", flush=True)
try:
    time.sleep(100)
except BaseException as error:  # as libraries do that look what they have
    raise ImportError("the import failed") from error
"""


def _interrupted(args: list[str], path: Path, moment: bytes) -> tuple[int, bytes, bytes]:
    """Exit code, output and errors of a command that gets SIGINT once it has printed a line."""
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmguard", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == moment
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


def test_ctrl_c_while_the_commands_are_imported_is_quiet(tmp_path: Path) -> None:
    """No traceback, also where a module would turn the interruption into something else."""
    (tmp_path / "typer.py").write_text(_SLOW)
    assert _interrupted(["--version"], tmp_path, b"importing") == (130, b"", b"")


def test_ctrl_c_while_a_command_imports_is_quiet(tmp_path: Path) -> None:
    """What only one command needs is imported by it, when the others are there already."""
    slow = 'import time\nprint("importing", flush=True)\ntime.sleep(100)\n'
    (tmp_path / "gradio.py").write_text(slow)
    assert _interrupted(["ui"], tmp_path, b"importing") == (130, b"", b"")


def test_ctrl_c_while_the_process_ends_is_quiet(tmp_path: Path) -> None:
    """Closing models can take a moment; a Ctrl-C then leaves at once."""
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, time\n"
        'atexit.register(lambda: (print("closing", flush=True), time.sleep(100)))\n'
    )
    (tmp_path / "policy.yaml").write_text("default_action: nonsense\n")
    code, out, err = _interrupted(
        ["policy", "check", str(tmp_path / "policy.yaml")], tmp_path, b"closing"
    )
    assert (code, out) == (130, b"")
    assert b"Traceback" not in err
    assert b"error" in err  # what was told before


@pytest.mark.slow
def test_ctrl_c_while_workers_start_is_quiet(tmp_path: Path) -> None:
    """It reaches every process of a terminal; none of them tells where it was."""
    pytest.importorskip("aiohttp")
    script = tmp_path / "script.json"
    script.write_text('{"*": "{}"}')
    spec = f"scripted:{script}"
    command = [sys.executable, "-m", "vlmguard", "serve", "--port", "0", "--workers", "2"]
    with subprocess.Popen(
        [*command, "--target", spec, "--rewriter", spec],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if "Try it" in line:
                    break
            os.killpg(process.pid, signal.SIGINT)
            told = process.stderr.read()
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
    assert "Traceback" not in told


def test_an_ignored_interrupt_stays_ignored(tmp_path: Path) -> None:
    """As with `nohup` or in a script's background."""
    (tmp_path / "typer.py").write_text(
        'import sys\nprint("importing", flush=True)\nsys.stdin.readline()\nprint("alive")\n'
        "sys.exit(7)\n"
    )
    process = subprocess.Popen(
        ["sh", "-c", 'trap "" INT; exec "$0" -m vlmguard --version', sys.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b"importing"
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(b"\n", timeout=60)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out.strip()) == (7, b"alive")


def test_the_installed_command_begins_here() -> None:
    """The console script and `python -m vlmguard` are the same."""
    (script,) = entry_points(group="console_scripts", name="vlmguard")
    assert script.value == "vlmguard.__main__:main"


@pytest.mark.parametrize("module", ["vlmguard", "vlmguard.__main__"])
def test_what_comes_before_is_light(module: str) -> None:
    """Before SIGINT is taken nothing is imported that takes time."""
    told = subprocess.run(
        [sys.executable, "-c", f"import {module}, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert {name for name in told if name.startswith("vlmguard")} <= {"vlmguard", module}
    assert not {"asyncio", "pydantic", "PIL"} & set(told)
