"""Runs that are killed at random moments, against a server in a process of its own."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from PIL import Image

_TAGS = ("", "[benign]", "[retry]", "[stubborn]", "[prose]", "[repair]")


class Server:
    """The server, its address, and what it was asked."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        port, self._log = folder / "port", folder / "log.jsonl"
        self._log.touch()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.synthesis.server", port, self._log, str(delay_s)],
            cwd=Path(__file__).parents[2],
        )
        while not port.exists() or not port.read_text():
            time.sleep(0.02)
        self.spec = f"openai:brain@http://127.0.0.1:{port.read_text()}/v1"

    def answers(self) -> list[str]:
        """All answers so far, in order."""
        return [json.loads(line)[1] for line in self._log.read_text().splitlines()]

    def count(self) -> int:
        return self._log.read_bytes().count(b"\n")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the tests of this module share.

    Attributes:
        server, pairs: the models and the seeds.
        undisturbed: output of a run that nobody killed.
        calls: how many that run made.
    """

    server: Server
    pairs: Path
    undisturbed: Path
    calls: int


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("kill")
    server = Server(folder, 0.03)
    try:
        pairs = write_pairs(folder)
        finish(start(pairs, server.spec, folder / "undisturbed"))
        yield Stage(
            server=server,
            pairs=pairs,
            undisturbed=folder / "undisturbed",
            calls=server.count(),
        )
    finally:
        server.process.kill()
        server.process.wait()


def write_pairs(folder: Path) -> Path:
    """Thirty-six pairs, every second one with a picture."""
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(36):
            row = {
                "prompt": f"Encourage me, {number} {_TAGS[number % len(_TAGS)]}",
                "chosen": f"A safe answer, {number}.",
                "rejected": f"Yes, go ahead and do it, {number}.",
            }
            if number % 2:
                row["image"] = f"{number}.png"
                Image.new("RGB", (32, 32), (number, 90, 200)).save(folder / row["image"])
            file.write(json.dumps(row) + "\n")
    return path


def start(pairs: Path, spec: str, out: Path) -> subprocess.Popen[bytes]:
    options = ["-s", pairs, "--reasoner", spec, "--target", spec, "-o", out, "-c", "8"]
    return subprocess.Popen(
        [sys.executable, "-m", "vlmguard.cli.main", "synth", "run", *map(str, options)],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes]) -> str:
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    return told.decode()


def contents(out: Path) -> dict[str, bytes]:
    """Every file of the output but the store."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and not path.name.startswith("store.sqlite") and path.name != "lock"
    }


def stored_answers(out: Path) -> set[str]:
    path = out / "synthesis" / "store.sqlite"
    if not path.exists():
        return set()
    with closing(sqlite3.connect(path)) as db:
        if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            return set()
        return {text for (text,) in db.execute("SELECT text FROM calls")}


def kill_and_resume(stage: Stage, out: Path, moments: int) -> None:
    """Kill a run at that many moments, resume it, and compare with one that was not disturbed."""
    server, chance = stage.server, random.Random(7)
    begun = server.count()
    checks: list[tuple[int, set[str]]] = []
    killed = 0
    for moment in sorted(chance.random() for _ in range(moments)):
        process = start(stage.pairs, server.spec, out)
        # Moments are spread over the calls of the run, not over the start of the interpreter.
        goal, deadline = begun + int(moment * stage.calls), time.monotonic() + 30
        while server.count() < goal and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(chance.random() * 0.03)
        killed += process.poll() is None
        process.kill()
        process.communicate()
        checks.append((server.count(), stored_answers(out)))
    finish(start(stage.pairs, server.spec, out))
    assert killed >= moments - 1
    assert contents(out) == contents(stage.undisturbed)
    answers = server.answers()
    for asked, stored in checks:
        assert not stored & set(answers[asked:]), "a call whose answer was stored is repeated"
    assert len(answers[begun:]) <= stage.calls + moments * 8  # what was in flight, at most


def test_a_killed_run_goes_on_where_it_was(stage: Stage, tmp_path: Path) -> None:
    """One kill: same bytes in the end, and no stored answer is asked for again."""
    kill_and_resume(stage, tmp_path / "out", 1)


@pytest.mark.slow
def test_twenty_kills(stage: Stage, tmp_path: Path) -> None:
    """Twenty kills: same bytes in the end, and no stored answer is asked for again."""
    kill_and_resume(stage, tmp_path / "out", 20)


@pytest.mark.slow
def test_a_finished_run_asks_nothing(stage: Stage) -> None:
    """Run once more, it writes the same and makes no call."""
    before, begun = contents(stage.undisturbed), stage.server.count()
    finish(start(stage.pairs, stage.server.spec, stage.undisturbed))
    assert contents(stage.undisturbed) == before
    assert stage.server.count() == begun


@pytest.mark.slow
def test_ctrl_c_ends_in_order(stage: Stage, tmp_path: Path) -> None:
    """Ctrl-C keeps the answers on their way, exits with 130 and says how to go on."""
    begun, out = stage.server.count(), tmp_path / "stopped"
    process = start(stage.pairs, stage.server.spec, out)
    while stage.server.count() < begun + stage.calls // 3:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Run the same command again" in told
    assert set(stage.server.answers()[begun:]) == stored_answers(out)  # nothing paid for is lost
    finish(start(stage.pairs, stage.server.spec, out))
    assert contents(out) == contents(stage.undisturbed)
    assert stage.server.count() == begun + stage.calls
