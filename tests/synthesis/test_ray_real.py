"""The Ray runner on a real Ray, beside the local runner. Slow: Ray takes its time to start."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.synthesis.test_kill import Server, contents, stored_answers, write_pairs
from vlmguard.synthesis import Store, store_path
from vlmguard.synthesis.outcomes import KINDS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs ray"),
]


_begun: list[subprocess.Popen[bytes]] = []


def end_all() -> None:
    """Whatever a failed test left behind."""
    while _begun:
        process = _begun.pop()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the tests share.

    Attributes:
        server, pairs: the models and the seeds.
        local: output of the local runner.
        calls: how many that run made.
    """

    server: Server
    pairs: Path
    local: Path
    calls: int

    def begin(
        self, out: Path, *options: str, spec: str = "", **environment: str
    ) -> subprocess.Popen[bytes]:
        """``vlmguard synth run``, in a session so that `end_all` finds what it starts."""
        model = spec or self.server.spec
        given = ["-s", self.pairs, "--reasoner", model, "--target", model, "-o", out, "-c", "8"]
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmguard.cli.main", "synth", "run", *map(str, given), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=os.environ
            | ({"RAY_AUTH_MODE": "token"} if "--ray-address" in options else {})
            | environment,
        )
        _begun.append(process)
        return process

    def wait_for_calls(self, count: int, process: subprocess.Popen[bytes]) -> None:
        """As long as it takes: the test has a time limit, and Ray is slow to start."""
        while self.server.count() < count:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.005)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("ray")
    server = Server(folder, 0.03)
    try:
        made = Stage(server=server, pairs=write_pairs(folder), local=folder / "local", calls=0)
        end(made.begin(made.local))
        yield Stage(server=server, pairs=made.pairs, local=made.local, calls=server.count())
    finally:
        server.process.kill()
        server.process.wait()
        end_all()


def end(process: subprocess.Popen[bytes], code: int = 0) -> str:
    """What the run said, which ends with that exit code."""
    said, told = process.communicate(timeout=400)
    assert process.returncode == code, told.decode()
    return (said + told).decode()


def outcomes(out: Path) -> list[str]:
    """Every outcome, in order, as JSON."""
    store = Store(store_path(out), read_only=True)
    try:
        return [
            f"{one.seed} {one.outcome.model_dump_json()}"
            for one in store.outcomes(KINDS, total=1000)
        ]
    finally:
        store.close()


def stopped_in_order(stage: Stage, begun: int, process: subprocess.Popen[bytes], out: Path) -> None:
    """Every answer is stored, and the local runner asks for the rest, and for nothing twice."""
    stage.server.allow(None)
    said = end(process, 130)
    assert "Run the same command again" in said
    assert "not waited for" not in said
    answered = stage.server.answers()[begun:]
    assert len(answered) < stage.calls
    assert set(answered) == stored_answers(out)
    end(stage.begin(out))
    assert contents(out) == contents(stage.local)
    assert stage.server.count() == begun + stage.calls


def kinds(out: Path) -> list[tuple[str, str]]:
    """Kind and last stage of every outcome, in order."""
    store = Store(store_path(out), read_only=True)
    try:
        ended = store.outcomes(KINDS, total=1000)
        return [(one.outcome.kind, one.outcome.stage) for one in ended]
    finally:
        store.close()


class TestOnRay:
    """One process a test: Ray is started by the command, as a user has it."""

    def test_the_same_as_local(self, stage: Stage, tmp_path: Path) -> None:
        """Every outcome equal, every file the same bytes, as many calls, and none the next time."""
        begun = stage.server.count()
        end(stage.begin(tmp_path, "--runner", "ray"))
        assert stage.server.count() == begun + stage.calls
        for ours, theirs in zip(outcomes(tmp_path), outcomes(stage.local), strict=True):
            assert ours == theirs
        assert contents(tmp_path) == contents(stage.local)
        end(stage.begin(tmp_path))
        assert stage.server.count() == begun + stage.calls
        assert contents(tmp_path) == contents(stage.local)

    @pytest.mark.parametrize("runners", [("ray", "local"), ("local", "ray")])
    def test_killed_and_resumed_by_the_other(
        self, stage: Stage, tmp_path: Path, runners: tuple[str, str]
    ) -> None:
        """A run that is killed under one runner ends under the other; no stored answer is lost."""
        first, second = runners
        half = stage.server.count() + stage.calls // 2
        stage.server.allow(half)
        process = stage.begin(tmp_path, "--runner", first)
        stage.wait_for_calls(half, process)
        process.kill()
        process.communicate()
        stage.server.allow(None)
        time.sleep(1.0)  # calls on their way are answered, to nobody
        asked, stored = stage.server.count(), stored_answers(tmp_path)
        assert stored
        end(stage.begin(tmp_path, "--runner", second))
        assert not stored & set(stage.server.answers()[asked:])
        assert contents(tmp_path) == contents(stage.local)

    def test_ctrl_c(self, stage: Stage, tmp_path: Path) -> None:
        """A terminal's Ctrl-C, which goes to all processes of the command: the same."""
        begun = stage.server.count()
        stage.server.allow(begun + stage.calls // 3)
        process = stage.begin(tmp_path, "--runner", "ray")
        stage.wait_for_calls(begun + stage.calls // 3, process)
        os.killpg(process.pid, signal.SIGINT)
        stopped_in_order(stage, begun, process, tmp_path)

    def test_a_model_in_each_worker(self, stage: Stage, tmp_path: Path) -> None:
        """``vllm:`` (its stand-in) is loaded by the two workers, and by nobody else."""
        log = tmp_path / "loaded"
        root = Path(__file__).parents[2]
        process = stage.begin(
            tmp_path / "out",
            *("--runner", "ray", "--ray-gpus", "0"),
            spec="vllm:org/model?dtype=bfloat16",
            PYTHONPATH=f"{root / 'tests' / 'engines' / 'vllm_fake'}{os.pathsep}{root}",
            VLLM_FAKE_LOG=str(log),
        )
        end(process)
        loaded = [json.loads(line) for line in log.read_text().splitlines()]
        assert len({pid for pid, *_ in loaded} - {process.pid}) == len(loaded) == 2
        assert {(model, given["dtype"]) for _, model, given in loaded} == {
            ("org/model", "bfloat16")
        }
        assert kinds(tmp_path / "out") == kinds(stage.local)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a Ray cluster that is there already, with four CPUs and no GPU."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    start = [
        Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=4",
        "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats",
        "--node-ip-address=127.0.0.1", f"--port={address.partition(':')[2]}",
    ]  # fmt: skip
    process = subprocess.Popen(
        [*map(str, start)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    said = ""
    try:
        for line in process.stdout:
            said += line
            if "Ray runtime started" in line:
                break
        assert process.poll() is None, said
        yield address
    finally:
        process.terminate()  # and, with it, everything that it started
        process.communicate(timeout=60)


class TestOnACluster:
    """A Ray that is there before the command is, and after it."""

    def test_the_same_as_local(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """Every file the same bytes, as many calls; and the cluster is left running."""
        for number in (1, 2):
            begun, out = stage.server.count(), tmp_path / str(number)
            end(stage.begin(out, "--runner", "ray", "--ray-address", cluster))
            assert stage.server.count() == begun + stage.calls
            assert contents(out) == contents(stage.local)

    def test_ctrl_c(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """It exits with 130, every answer is stored; the local runner asks for the rest."""
        begun = stage.server.count()
        stage.server.allow(begun + stage.calls // 3)
        process = stage.begin(tmp_path, "--runner", "ray", "--ray-address", cluster)
        stage.wait_for_calls(begun + stage.calls // 3, process)
        os.kill(process.pid, signal.SIGINT)
        stopped_in_order(stage, begun, process, tmp_path)

    def test_too_few(self, stage: Stage, cluster: str, tmp_path: Path) -> None:
        """CPUs or GPUs: told at once, and not waited for."""
        joined = ("--runner", "ray", "--ray-address", cluster)
        told = end(stage.begin(tmp_path, *joined, "--ray-gpus", "0.5"), 2)
        assert "the Ray cluster has 0 GPUs, and 2 workers need 1" in told
        told = end(stage.begin(tmp_path, *joined, "--ray-workers", "7"), 2)
        assert "the Ray cluster has 4 CPUs, and 7 workers need 7" in told
