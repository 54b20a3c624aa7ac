from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from vlmguard.errors import StoreError
from vlmguard.synthesis import Outcome, Store
from vlmguard.synthesis.rows import Call
from vlmguard.types import Completion, Usage

ANSWER = Completion(
    text="yes", finish_reason="stop", usage=Usage(prompt_tokens=3, completion_tokens=1), model="m"
)
ASIDE = Outcome(kind="aside", stage="read", reason="why")


def call(number: int) -> Call:
    return Call(key=number.to_bytes(16), stage="causal", model="m", prompt="p")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "synthesis" / "store.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    opened = Store(path)
    yield opened
    opened.close()


async def test_answers_come_back(store: Store, path: Path) -> None:
    """As they were, also for a store that is opened later."""
    await store.keep_answer(call(1), ANSWER)
    assert store.answer(call(1).key) == ANSWER
    assert store.answer(call(2).key) is None
    store.close()
    again = Store(path, read_only=True)
    assert again.answer(call(1).key) == ANSWER
    assert again.call_counts()[0].prompt_tokens == 3
    again.close()


async def test_outcomes_by_position(store: Store) -> None:
    """In order of position, whatever the order of completion; a later one replaces."""
    for position in (2, 0, 1):
        await store.keep_outcome(position, "key", f"seed {position}", ASIDE)
    await store.keep_outcome(1, "other", "seed 1", ASIDE)
    assert [(done.position, done.key) for done in store.done()] == [
        (0, "key"), (1, "other"), (2, "key"),
    ]  # fmt: skip
    assert [found.seed for found in store.outcomes(("aside",), total=2)] == ["seed 0", "seed 1"]
    assert store.positions_of("seed 1", before=2) == [1]
    store.forget_from(1)
    assert store.outcome_counts()[0].count == 1


async def test_many_at_once_are_committed_together(store: Store, path: Path) -> None:
    """Everybody who waits is woken, and the rows are on disk by then."""
    await asyncio.gather(*(store.keep_answer(call(number), ANSWER) for number in range(300)))
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT count(*) FROM calls").fetchone() == (300,)


async def test_a_full_disk(store: Store) -> None:
    """The error says what to do, what was stored stays, and the store works again later."""
    await store.keep_answer(call(0), ANSWER)
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    big = Completion(text="x" * 100_000, finish_reason="stop")
    with pytest.raises(StoreError, match="Free space on the disk"):
        await store.keep_answer(call(1), big)
    assert store.answer(call(0).key) == ANSWER
    store._db.execute("PRAGMA max_page_count = 100000")
    await store.keep_answer(call(1), big)
    assert store.answer(call(1).key) is not None


def test_one_writer(store: Store, path: Path) -> None:
    """A second writer is refused; a reader is not."""
    with pytest.raises(StoreError, match="another run is writing"):
        Store(path)
    Store(path, read_only=True).close()


@pytest.mark.parametrize(
    ("version", "told"), [(0, r"older version.*mv "), (99, r"newer version.*pip install -U")]
)
def test_other_versions(path: Path, version: int, told: str) -> None:
    """Refused with the command that helps."""
    Store(path).close()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(StoreError, match=told):
        Store(path)


@pytest.mark.parametrize("what", ["text", "database"])
def test_other_files(path: Path, what: str) -> None:
    """A file that is no store is left alone."""
    path.parent.mkdir()
    if what == "text":
        path.write_text("hello " * 1000)
    else:
        with closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="not a synthesis store"):
        Store(path)
    assert path.read_bytes() == before


def test_nowhere(tmp_path: Path) -> None:
    """A store to look at must be there; a folder that is a file cannot hold one."""
    with pytest.raises(StoreError, match="there is no synthesis store"):
        Store(tmp_path / "none.sqlite", read_only=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        Store(tmp_path / "file" / "store.sqlite")
