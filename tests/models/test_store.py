"""What is in the store, whether it is good, and what the public functions say."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.models.small import CONTENT, SMALL
from vlmguard import models
from vlmguard.errors import ConfigError, ModelStoreError, UnknownName
from vlmguard.models import inventory, notices, store
from vlmguard.models.inventory import ListedModel
from vlmguard.models.pulling import pull_known


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty store that knows the small model only, without a network."""
    monkeypatch.setenv("VLMGUARD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VLMGUARD_OFFLINE", "1")
    for module in (models, inventory):
        monkeypatch.setattr(module, "KNOWN", {SMALL.name: SMALL})
    monkeypatch.setattr("vlmguard.models.hub.cached_snapshots", tuple)
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The small model in the store."""
    given = tmp_path / "model.gguf"
    given.write_bytes(CONTENT)
    return pull_known(SMALL, from_file=given)


def listed(*, verify: bool = False) -> ListedModel:
    """The line of the small model."""
    (row,) = models.listing(verify=verify)
    return row


def test_where_the_store_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In VLMGUARD_HOME, or else in the user's cache; always an absolute path."""
    assert models.store_dir() == home / "models"
    monkeypatch.setenv("VLMGUARD_HOME", "~/guard")
    assert models.store_dir() == Path.home() / "guard" / "models"
    monkeypatch.setenv("VLMGUARD_HOME", "relative")
    assert models.store_dir() == Path.cwd() / "relative" / "models"
    monkeypatch.delenv("VLMGUARD_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    assert models.store_dir().name == "models"
    assert models.store_dir().parent.name == "vlmguard"


def test_ensure_gives_what_is_here(file: Path) -> None:
    """Without a network, once it is here."""
    assert models.ensure("small") == file
    assert models.pull("small") == file


def test_ensure_says_what_to_do_offline(capsys: pytest.CaptureFixture[str]) -> None:
    """It does not announce a pull that it may not do."""
    with pytest.raises(ModelStoreError, match="vlmguard pull small"):
        models.ensure("small")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["large", "", "SMALL", "../small"])
def test_unknown_names(name: str) -> None:
    """The message lists the known ones."""
    with pytest.raises(UnknownName, match="known: small, or hf:org/model"):
        models.ensure(name)
    with pytest.raises(UnknownName):
        models.pull(name)


def test_options_that_do_not_go_with_the_name(tmp_path: Path) -> None:
    """Known models are pinned; Hub models do not come from files."""
    with pytest.raises(ConfigError, match="pinned"):
        models.pull("small", revision="main")
    with pytest.raises(ConfigError, match="--from-file"):
        models.pull("hf:org/model", from_file=tmp_path)


def test_the_listing_follows_a_models_life(file: Path) -> None:
    """Here; then absent; then begun."""
    row = listed()
    assert (row.state, row.size, row.licence, row.path) == ("here", 300_000, "Apache-2.0", file)
    file.unlink()
    assert (listed().state, listed().path) == ("absent", None)
    store.part_of(SMALL).write_bytes(b"some")
    assert listed().state == "partial"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (CONTENT[:-1], "299,999 bytes in place of 300,000"),
        (b"", "0 bytes"),
        (CONTENT[:-1] + b"?", "SHA-256"),
    ],
)
def test_a_damaged_file_is_never_used(file: Path, content: bytes, why: str) -> None:
    """Each use tells the damage and the fix; only --force replaces the file."""
    file.write_bytes(content)
    os.utime(file, ns=(1, 1))
    for use in (models.ensure, models.pull):
        with pytest.raises(ModelStoreError, match=rf"{why}.*vlmguard pull small --force"):
            use("small")
    row = listed()
    assert row.state == "damaged"
    assert why in (row.problem or "")
    good = file.with_name("good")
    good.write_bytes(CONTENT)
    assert models.pull("small", force=True, from_file=good) == file
    assert listed().state == "here"


def test_only_a_full_check_sees_damage_that_keeps_the_time(file: Path) -> None:
    """What a daily check trades for speed, and what --verify is for."""
    before = file.stat()
    file.write_bytes(CONTENT[:-1] + b"?")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert listed().state == "here"
    assert listed(verify=True).state == "damaged"


def test_the_hash_is_computed_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A use costs two looks at the disk; a file that was copied anew is hashed anew."""
    hashed: list[Path] = []
    real = store.sha256_of

    def counted(path: Path) -> str:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(store, "sha256_of", counted)
    models.ensure("small")
    assert hashed == []
    os.utime(file)
    models.ensure("small")
    models.ensure("small")
    assert hashed == [file]


@pytest.mark.parametrize("stamp", [b"", b"\xff\xfe", b"anything else"])
def test_a_bad_stamp_costs_a_hash_and_nothing_else(file: Path, stamp: bytes) -> None:
    """The stamp is never believed without a match."""
    file.with_name("model.gguf.stamp").write_bytes(stamp)
    assert models.ensure("small") == file


def test_a_folder_in_place_of_the_file(file: Path) -> None:
    """Something that cannot be read is damage like any other."""
    file.unlink()
    file.mkdir()
    with pytest.raises(ModelStoreError, match="damaged"):
        models.ensure("small")


@pytest.mark.parametrize("width", [20, 40, 71, 72, 100, 200])
def test_progress_fits_the_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No line is longer than the terminal, and the bar goes away at the end."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(width))
    with notices.transfer("small", total=98_000_000) as at:
        at(50_000_000)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "small" in shown.err
    lines = re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.err))
    assert max(len(line) for line in lines) <= width


def test_no_progress_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    """Logs are not filled with bars."""
    with notices.transfer("small", total=10) as at:
        at(5)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 kB"), (300_000, "300 kB"), (98_362_432, "98 MB"), (16_000_000_000, "16 GB")],
)
def test_sizes_for_people(size: int, shown: str) -> None:
    """As download pages count."""
    assert notices.megabytes(size) == shown
