"""API keys: hashed at rest, in force within a second, and never half a file."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from tests.gateway.clock import Clock
from vlmguard.errors import ConfigError, InputError
from vlmguard.gateway.keys import KeyStore, add_key, read_keys, revoke_key


@pytest.fixture(params=["keys.yaml", "keys.json"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def test_a_token_is_told_once_and_kept_as_a_hash(path: Path) -> None:
    """The file is its owner's only, and the token is nowhere in it."""
    token, key = add_key(path, "team a", policy="strict", requests_per_minute=60, mode="shadow")
    assert token.startswith("vg-")
    assert len(token) == 46  # 256 bits
    assert token not in path.read_text()
    assert key.sha256 == hashlib.sha256(token.encode()).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_keys(path) == (key,)


def test_check_finds_whose_token_it_is(path: Path) -> None:
    """And nobody's for anything else."""
    tokens = {name: add_key(path, name, max_body_bytes=1000)[0] for name in ("a", "b", "c")}
    store = KeyStore(path)
    assert len(store) == 3
    for name, token in tokens.items():
        found = store.check(token)
        assert found is not None
        assert (found.name, found.max_body_bytes, found.policy) == (name, 1000, None)
    for wrong in ("", "vg-", tokens["a"] + "x", tokens["a"][:-1], "vg-\ud800", "x" * 100_000):
        assert store.check(wrong) is None


def test_a_revoked_key_is_out_of_force_and_stays_listed(path: Path) -> None:
    """By name or by id; its name is free again."""
    token, key = add_key(path, "a")
    other, _ = add_key(path, "b")
    revoke_key(path, "a")
    store = KeyStore(path)
    assert store.check(token) is None
    assert store.check(other) is not None
    assert [entry.revoked is None for entry in read_keys(path)] == [False, True]
    again, _ = add_key(path, "a")
    assert KeyStore(path).check(again) is not None
    with pytest.raises(InputError, match=f"no key in force is named '{key.id}'; in force: b, a"):
        revoke_key(path, key.id)


def test_a_change_counts_within_a_second_and_does_not_block(path: Path) -> None:
    """The file is read in a thread; until then the old keys hold."""
    clock = Clock()
    first, _ = add_key(path, "first")
    store = KeyStore(path, clock=clock)
    second, _ = add_key(path, "second")
    revoke_key(path, "first")
    assert store.check(second) is None  # looked at a moment ago
    clock.now += 1
    store.check(second)
    assert store._reading is not None
    store._reading.join()
    assert store.check(second) is not None
    assert store.check(first) is None


def test_a_file_that_becomes_unreadable_changes_nothing_but_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told once, and when it is whole again it counts."""
    token, _ = add_key(path, "a")
    store = KeyStore(path)
    whole = path.read_text()
    with caplog.at_level(logging.ERROR, "vlmguard"):
        path.write_text("{[")
        store.refresh()
        store.refresh()
        assert store.check(token) is not None
        path.unlink()
        store.refresh()
    assert len(caplog.records) == 2
    assert "the keys stay as they were" in caplog.records[0].getMessage()
    path.write_text(whole)
    other, _ = add_key(path, "b")
    store.refresh()
    assert store.check(other) is not None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[1]", "the file: Input should be"),
        ("{version: 2}", "version"),
        ("{keys: [{id: a}]}", "keys.0.name"),
        ("{keys: [], more: 1}", "more"),
        ("a: b: c", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_a_wrong_file_is_told_by_its_first_wrong_field(
    tmp_path: Path, text: str, told: str
) -> None:
    """And never run."""
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=told):
        KeyStore(path)


def test_keys_that_are_alike_are_refused(path: Path) -> None:
    """Two of one name in force could not be told apart."""
    add_key(path, "a")
    with pytest.raises(InputError, match="a key named 'a' already"):
        add_key(path, "a")
    keys = [key.model_dump(mode="json", exclude_none=True) for key in read_keys(path)]
    path.write_text(json.dumps({"keys": keys * 2}))
    with pytest.raises(ConfigError, match="two keys have the id"):
        read_keys(path)


def test_wrong_values_are_told(path: Path) -> None:
    """With the field and what was given."""
    for name, rate, body, field in (
        ("", None, None, "name"),
        ("a\nb", None, None, "name"),
        ("a", 0, None, "requests_per_minute"),
        ("a", float("inf"), None, "requests_per_minute"),
        ("a", None, -1, "max_body_bytes"),
    ):
        with pytest.raises(InputError, match=f"the key's {field} is not valid"):
            add_key(path, name, requests_per_minute=rate, max_body_bytes=body)
    assert not path.exists()


def test_a_missing_file_is_told_with_the_command_that_makes_one(path: Path) -> None:
    """For whoever starts the gateway first."""
    for call in (lambda: KeyStore(path), lambda: revoke_key(path, "a")):
        with pytest.raises(ConfigError, match="vlmguard keys add NAME --file"):
            call()
    assert not list(path.parent.iterdir())


def test_two_processes_add_keys_at_the_same_time(tmp_path: Path) -> None:
    """None is lost."""
    path = tmp_path / "keys.yaml"
    program = (
        "import os, sys; from pathlib import Path; from vlmguard.gateway.keys import add_key\n"
        "child = os.fork()\n"
        "for n in range(10): add_key(Path(sys.argv[1]), f'{child}-{n}')\n"
        "if child: sys.exit(os.waitpid(child, 0)[1])\n"
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 0
    assert len(read_keys(path)) == 20
