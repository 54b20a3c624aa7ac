"""Everything a run has paid for, in one SQLite file: models' answers, and what became of seeds.

Answers are found by a key made of stage, prompt, model, pictures, parameters and the whole input,
so a changed prompt asks anew exactly what it touches. Outcomes are found by the seed's position in
the sources, so a resumed run walks through both side by side and never holds all of them.

Write-ahead logging with ``synchronous=NORMAL``: what was committed survives a killed process; a
power cut may take the last seconds, never the file.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmguard.errors import StoreError
from vlmguard.models.lock import exclusive
from vlmguard.synthesis.outcomes import STAGES, Kind, Outcome, Stage
from vlmguard.synthesis.rows import Call, CallCount, Done, Ended, OutcomeCount
from vlmguard.types import Completion, Usage

STORE_VERSION = 1
_APPLICATION = 0x564C4D47  # "VLMG" in the file's header
_ENDLESS = 2**62
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PAGE = 2000  # outcomes without bodies that are read at once
_PAGE_OF_BODIES = 500

_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE calls (
  key BLOB PRIMARY KEY, stage TEXT NOT NULL, model TEXT NOT NULL, prompt TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL,
  finish_reason TEXT NOT NULL, served_by TEXT NOT NULL, text TEXT NOT NULL
);
CREATE INDEX calls_by_stage ON calls (stage, model, prompt_tokens, completion_tokens);
CREATE TABLE outcomes (
  position INTEGER PRIMARY KEY, key TEXT NOT NULL, seed TEXT NOT NULL, kind TEXT NOT NULL,
  stage TEXT NOT NULL, passed TEXT NOT NULL, draw INTEGER NOT NULL
);
CREATE INDEX outcomes_by_seed ON outcomes (seed);
CREATE TABLE bodies (position INTEGER PRIMARY KEY, outcome TEXT NOT NULL);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {STORE_VERSION};
"""


@dataclass(slots=True)
class _Batch:
    """Rows that are written together, and who waits for them."""

    calls: dict[bytes, tuple[Any, ...]] = field(default_factory=dict)
    outcomes: list[tuple[Any, ...]] = field(default_factory=list)
    bodies: list[tuple[int, str]] = field(default_factory=list)
    written: asyncio.Future[None] | None = None


class Store:
    """The store of one output folder. One writer at a time; readers may look on.

    Rows that come up in the same turn of the event loop are committed together, and nobody goes on
    before their row is committed.

    Args:
        path: created where needed.
        read_only: only look; the store must exist.

    Raises:
        StoreError: locked by another run, another version's, not a store, or not writable.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._path = path
        self._batch = _Batch()
        if read_only and not path.is_file():
            raise StoreError(f"{path}: there is no synthesis store")
        with ExitStack() as held, translated(path):
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(exclusive(path.with_name("lock"), on_wait=lambda: _refuse(path)))
            uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None)
            held.callback(self._db.close)
            self._open(read_only=read_only)
            self._held = held.pop_all()

    def _open(self, *, read_only: bool) -> None:
        db = self._db
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not tables and not read_only:
            db.execute("PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {_SCHEMA} COMMIT;")
        elif application != _APPLICATION:
            raise StoreError(f"{self._path}: not a synthesis store; name another --out")
        elif version > STORE_VERSION:
            raise StoreError(
                f"{self._path}: written by a newer version (store version {version}, this one "
                f"reads {STORE_VERSION}). Upgrade: pip install -U vlmguard-r1"
            )
        elif version < STORE_VERSION:
            raise StoreError(
                f"{self._path}: written by an older version (store version {version}, this one "
                f"needs {STORE_VERSION}). Put it aside and run again: "
                f"mv {self._path} {self._path}.v{version}"
            )
        db.execute("PRAGMA synchronous = NORMAL")
        db.execute("PRAGMA wal_autocheckpoint = 4000")
        db.execute("PRAGMA cache_size = -16000")  # 16 MB

    def close(self) -> None:
        """Write what waits and let go of the file. Idempotent."""
        self._flush()
        self._held.close()

    # --- Answers -----------------------------------------------------------------------------

    def answer(self, key: bytes) -> Completion | None:
        """The stored answer of a call."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT text, finish_reason, prompt_tokens, completion_tokens, cached_tokens, "
                "served_by FROM calls WHERE key = ?",
                (key,),
            ).fetchone()
        if row is None:
            return None
        text, finish_reason, prompt_tokens, completion_tokens, cached_tokens, served_by = row
        usage = Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=cached_tokens,
        )
        return Completion(text=text, finish_reason=finish_reason, usage=usage, model=served_by)

    async def find(self, call: Call) -> Completion | None:
        """The same, as stages ask for it (`vlmguard.synthesis.calls.Answers`)."""
        return self.answer(call.key)

    async def keep_answer(self, call: Call, completion: Completion) -> None:
        """Store an answer; returns once it is committed.

        Raises:
            StoreError: it could not be, e.g. since the disk is full.
        """
        used = completion.usage
        self._batch.calls[call.key] = (
            call.key,
            call.stage,
            call.model,
            call.prompt,
            used.prompt_tokens,
            used.completion_tokens,
            used.cached_tokens,
            completion.finish_reason,
            completion.model,
            completion.text.encode("utf-8", "replace").decode(),
        )
        await self._committed()

    def call_counts(self) -> list[CallCount]:
        """Calls and tokens by stage and model."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT stage, model, count(*), sum(prompt_tokens), sum(completion_tokens) "
                "FROM calls GROUP BY stage, model"
            ).fetchall()
        return [
            CallCount(stage=stage, model=model, calls=calls, prompt_tokens=prompt_tokens,
                      completion_tokens=completion_tokens)
            for stage, model, calls, prompt_tokens, completion_tokens in rows
        ]  # fmt: skip

    # --- Outcomes ----------------------------------------------------------------------------

    async def keep_outcome(self, position: int, key: str, seed: str, outcome: Outcome) -> None:
        """Store what became of a seed, in place of what was at that position.

        Raises:
            StoreError: it could not be committed.
        """
        passed = ",".join(outcome.passed)
        self._batch.outcomes.append(
            (position, key, seed, outcome.kind, outcome.stage, passed, draw_of(seed))
        )
        self._batch.bodies.append((position, outcome.model_dump_json(exclude_defaults=True)))
        await self._committed()

    def done(self) -> Iterator[Done]:
        """All outcomes by position. Those not reached yet may be written meanwhile."""
        start = 0
        while True:
            with translated(self._path):
                rows = self._db.execute(
                    "SELECT position, key, kind, stage, passed FROM outcomes "
                    "WHERE position >= ? ORDER BY position LIMIT ?",
                    (start, _PAGE),
                ).fetchall()
            for position, key, kind, stage, passed in rows:
                yield Done(
                    position=position, key=key, kind=kind, stage=stage, passed=_stages(passed)
                )
            if len(rows) < _PAGE:
                return
            start = rows[-1][0] + 1

    def positions_of(self, seed: str, *, before: int) -> list[int]:
        """Where a seed of that id stands before a position."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT position FROM outcomes WHERE seed = ? AND position < ?", (seed, before)
            ).fetchall()
        return [position for (position,) in rows]

    def outcomes(self, kinds: tuple[Kind, ...], *, total: int) -> Iterator[Ended]:
        """Outcomes of these kinds among the first ``total`` seeds, in order of position."""
        start = 0
        while True:
            with translated(self._path):
                rows = self._db.execute(
                    "SELECT position, draw, seed, outcome FROM outcomes JOIN bodies "
                    "USING (position) WHERE kind IN (SELECT value FROM json_each(?)) "
                    "AND position BETWEEN ? AND ? ORDER BY position LIMIT ?",
                    (json.dumps(kinds), start, total - 1, _PAGE_OF_BODIES),
                ).fetchall()
            for _, draw, seed, body in rows:
                outcome = Outcome.model_validate_json(body)
                yield Ended(seed=seed, draw=draw, outcome=outcome)
            if len(rows) < _PAGE_OF_BODIES:
                return
            start = rows[-1][0] + 1

    def outcome_counts(self, *, total: int | None = None) -> list[OutcomeCount]:
        """Outcomes by kind, last stage and stages passed; of the first ``total`` seeds."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT kind, stage, passed, count(*) FROM outcomes WHERE position < ? "
                "GROUP BY kind, stage, passed",
                (_ENDLESS if total is None else total,),
            ).fetchall()
        return [
            OutcomeCount(kind=kind, stage=stage, passed=_stages(passed), count=count)
            for kind, stage, passed, count in rows
        ]  # fmt: skip

    def draw_threshold(self, kind: Kind, keep: int, *, total: int) -> int | None:
        """The draw up to which outcomes of a kind are kept so that ``keep`` are; ``None``: all."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT draw FROM outcomes WHERE kind = ? AND position < ? "
                "ORDER BY draw LIMIT 1 OFFSET ?",
                (kind, total, keep),
            ).fetchone()
        return None if row is None else int(row[0]) - 1

    def forget_from(self, position: int) -> None:
        """Forget outcomes of seeds that the sources do not have any more; answers stay."""
        with translated(self._path):
            self._db.execute("DELETE FROM outcomes WHERE position >= ?", (position,))
            self._db.execute("DELETE FROM bodies WHERE position >= ?", (position,))

    # --- Facts about the run -----------------------------------------------------------------

    def facts(self) -> dict[str, Any]:
        """What the last run said about itself; empty before the first."""
        with translated(self._path):
            row = self._db.execute("SELECT value FROM meta WHERE name = 'run'").fetchone()
        return {} if row is None else dict(json.loads(row[0]))

    def keep_facts(self, facts: dict[str, Any]) -> None:
        """Remember what a run says about itself, for ``status``."""
        with translated(self._path):
            self._db.execute("INSERT OR REPLACE INTO meta VALUES ('run', ?)", (json.dumps(facts),))

    # --- Writing -----------------------------------------------------------------------------

    async def _committed(self) -> None:
        batch = self._batch
        if batch.written is None:
            loop = asyncio.get_running_loop()
            batch.written = loop.create_future()
            loop.call_soon(self._flush)
        # Shielded: one waiter's cancellation must not take the future from the others.
        await asyncio.shield(batch.written)

    def _flush(self) -> None:
        """Commit what waits and wake those who wait for it."""
        batch, self._batch = self._batch, _Batch()
        if not batch.calls and not batch.outcomes:
            return
        failure: StoreError | None = None
        try:
            with translated(self._path):
                self._write(batch)
        except StoreError as error:
            failure = error
        if batch.written is not None and not batch.written.done():
            if failure is None:
                batch.written.set_result(None)
            else:
                batch.written.set_exception(failure)
                batch.written.exception()  # retrieved, should nobody wait any more

    def _write(self, batch: _Batch) -> None:
        db = self._db
        db.execute("BEGIN")
        try:
            db.executemany(
                "INSERT OR IGNORE INTO calls (key, stage, model, prompt, prompt_tokens, "
                "completion_tokens, cached_tokens, finish_reason, served_by, text) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                list(batch.calls.values()),
            )
            db.executemany(
                "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?)", batch.outcomes
            )
            db.executemany("INSERT OR REPLACE INTO bodies VALUES (?, ?)", batch.bodies)
            db.execute("COMMIT")
        except sqlite3.Error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def _refuse(path: Path) -> None:
    raise StoreError(
        f"{path}: another run is writing to it; wait for its end, or name another --out"
    )


def _stages(joined: str) -> tuple[Stage, ...]:
    return tuple(stage for stage in STAGES if stage in joined.split(","))


def draw_of(seed: str) -> int:
    """A number that decides, evenly and the same on every run, which benign seeds are kept."""
    return int.from_bytes(hashlib.sha256(f"draw {seed}".encode()).digest()[:7], "big")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as `StoreError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        if "FULL" in code or "IOERR" in code or getattr(error, "errno", 0) in _NO_ROOM:
            raise StoreError(
                f"{path}: cannot be written ({error}). Free space on the disk and run the same "
                "command again; what was stored is kept"
            ) from error
        if isinstance(error, sqlite3.DatabaseError) and "NOTADB" in code:
            raise StoreError(f"{path}: not a synthesis store; name another --out") from error
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise StoreError(f"{path}: cannot be used: {why}; name another --out") from error
