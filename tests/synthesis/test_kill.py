"""Runs that are killed at random moments, against a server in a process of its own.

The runs are processes forked from one that has imported everything (`forkserver`): half a dozen
starts of the interpreter would take longer than all else.
"""

from __future__ import annotations

import json
import multiprocessing
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

from tests.synthesis import whole

_AT_ONCE = 8
_TAGS = ("", "[benign]", "[retry]", "[stubborn]", "[prose]", "[repair]")


class Server:
    """The server, its address, and what it was asked."""

    def __init__(self, folder: Path, delay_s: float) -> None:
        port, self._log, self._most = folder / "port", folder / "log.jsonl", folder / "most"
        self._log.touch()
        self.allow(None)
        arguments = map(str, (port, self._log, delay_s, self._most))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.synthesis.server", *arguments],
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

    def allow(self, count: int | None) -> None:
        """Give so many answers, then none until more are allowed; ``None`` is no limit.

        However late a test comes to a run, it finds it in the middle.
        """
        part = self._most.with_suffix(".part")
        part.write_text(str(sys.maxsize if count is None else count))
        part.replace(self._most)


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
    server = Server(folder, 0.01)
    try:
        pairs = write_pairs(folder)
        Run(pairs, server.spec, folder / "undisturbed").end()
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
    """Twenty-four pairs, every second one with a picture."""
    path = folder / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(24):
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


_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["tests.synthesis.whole"])


class Run:
    """``vlmguard synth run`` in a process of its own."""

    def __init__(self, pairs: Path, spec: str, out: Path) -> None:
        out.parent.mkdir(parents=True, exist_ok=True)
        self._said = out.with_name(f"{out.name}.said")
        options = ["-s", pairs, "--reasoner", spec, "--target", spec, "-o", out, "-c", _AT_ONCE]
        arguments = ["synth", "run", *map(str, options)]
        self._process = _FORKS.Process(target=whole.run, args=(arguments, self._said))
        self._process.start()

    def alive(self) -> bool:
        return self._process.is_alive()

    def signal(self, number: signal.Signals) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def end(self, code: int = 0) -> str:
        """What the run said, which ends with that exit code."""
        self._process.join(100)
        said = self._said.read_text()
        assert self._process.exitcode == code, said
        return said


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
        # Moments are spread over the calls of the run, not over its start.
        goal = begun + int(moment * (stage.calls - _AT_ONCE))
        server.allow(goal + _AT_ONCE)
        process = Run(stage.pairs, server.spec, out)
        while server.count() < goal and process.alive():
            time.sleep(0.002)
        time.sleep(chance.random() * 0.01)
        killed += process.alive()
        process.kill()
        checks.append((server.count(), stored_answers(out)))
    server.allow(None)
    Run(stage.pairs, server.spec, out).end()
    assert killed == moments
    assert contents(out) == contents(stage.undisturbed)
    answers = server.answers()
    for asked, stored in checks:
        assert not stored & set(answers[asked:]), "a call whose answer was stored is repeated"
    assert len(answers[begun:]) <= stage.calls + moments * _AT_ONCE  # what was in flight, at most


def test_five_kills(stage: Stage, tmp_path: Path) -> None:
    """Five kills: same bytes in the end, and no stored answer is asked for again."""
    kill_and_resume(stage, tmp_path / "out", 5)


@pytest.mark.slow
def test_twenty_kills(stage: Stage, tmp_path: Path) -> None:
    """Twenty kills: same bytes in the end, and no stored answer is asked for again."""
    kill_and_resume(stage, tmp_path / "out", 20)


def test_a_finished_run_asks_nothing(stage: Stage) -> None:
    """Run once more, it writes the same and makes no call."""
    before, begun = contents(stage.undisturbed), stage.server.count()
    Run(stage.pairs, stage.server.spec, stage.undisturbed).end()
    assert contents(stage.undisturbed) == before
    assert stage.server.count() == begun


def test_ctrl_c_ends_in_order(stage: Stage, tmp_path: Path) -> None:
    """Ctrl-C keeps the answers on their way, exits with 130 and says how to go on."""
    begun, out = stage.server.count(), tmp_path / "stopped"
    third = begun + stage.calls // 3
    stage.server.allow(third)
    process = Run(stage.pairs, stage.server.spec, out)
    while stage.server.count() < third:
        assert process.alive()
        time.sleep(0.005)
    process.signal(signal.SIGINT)
    stage.server.allow(None)
    assert "Run the same command again" in process.end(130)
    assert set(stage.server.answers()[begun:]) == stored_answers(out)  # nothing paid for is lost
    Run(stage.pairs, stage.server.spec, out).end()
    assert contents(out) == contents(stage.undisturbed)
    assert stage.server.count() == begun + stage.calls
