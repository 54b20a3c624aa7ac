"""The audit log as an SQLite file.

Write-ahead logging with ``synchronous=NORMAL``: what was committed survives a killed process; a
power cut may take the last seconds, never the file. Several processes write in turn.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from vlmguard.errors import AuditError
from vlmguard.gateway.audit import (
    AUDIT_VERSION,
    AuditEntry,
    AuditQuery,
    AuditRecord,
    LateUsage,
    stamp,
    usage_json,
)
from vlmguard.models.lock import exclusive

_APPLICATION = 0x564C4D41  # "VLMA" in the file's header
_BUSY_S = 10.0
"""How long one process waits for the others' commits."""
_CHUNK = 500
"""Rows deleted in one transaction, so that writers get their turn."""
_PAGE = 1000

_COLUMNS: dict[str, str] = {
    "time": "TEXT NOT NULL",
    "request_id": "TEXT NOT NULL",
    "route": "TEXT NOT NULL",
    "status": "INTEGER NOT NULL",
    "key_id": "TEXT",
    "mode": "TEXT NOT NULL",
    "policy": "TEXT NOT NULL",
    "rewriter": "TEXT NOT NULL",
    "target": "TEXT NOT NULL",
    "verdict": "TEXT",
    "risk": "REAL",
    "category": "TEXT",
    "action": "TEXT",
    "changed": "INTEGER NOT NULL",
    "failure": "TEXT",
    "prompt_sha256": "TEXT",
    "image_sha256s": "TEXT NOT NULL",
    "rewrite_sha256": "TEXT",
    "shadow_policy": "TEXT",
    "shadow_verdict": "TEXT",
    "shadow_risk": "REAL",
    "shadow_action": "TEXT",
    "latency_ms": "TEXT NOT NULL",
    "streamed": "INTEGER NOT NULL",
    "usage": "TEXT NOT NULL",
    "prompt": "TEXT",
    "rewrite": "TEXT",
    "report": "TEXT",
}
"""The fields of `AuditRecord`, under their names; a test holds the two together."""
_AS_JSON = ("image_sha256s", "latency_ms", "usage", "report")
_AS_BOOL = ("changed", "streamed")
_NAMES = ", ".join(f'"{name}"' for name in _COLUMNS)
_INSERT = f"INSERT INTO decisions ({_NAMES}) VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608
_COMPLETE = "UPDATE decisions SET usage = ? WHERE request_id = ?"
_SCHEMA = f"""
BEGIN;
CREATE TABLE decisions (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  {", ".join(f'"{name}" {kind}' for name, kind in _COLUMNS.items())}
);
CREATE INDEX decisions_by_time ON decisions (time);
CREATE INDEX decisions_by_request ON decisions (request_id);
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {AUDIT_VERSION};
COMMIT;
"""


class SqliteSink:
    """Writes records to one file.

    Args:
        path: made when there is none, with its folder.

    Raises:
        AuditError: it cannot be opened, or is no audit log of this version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Making the tables and changing to WAL are not for two processes at once.
            with exclusive(path.with_name(f"{path.name}.lock"), on_wait=_wait, poll_s=0.01):
                if not path.exists():
                    _make(path)
                self._db = _connect(path)
                try:
                    _prepare(self._db, path)
                except BaseException:
                    self._db.close()
                    raise

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """See `Sink.write`."""
        rows = [_row(entry) for entry in entries if isinstance(entry, AuditRecord)]
        late = [
            (json.dumps(usage_json(entry.usage)), entry.request_id)
            for entry in entries
            if isinstance(entry, LateUsage)
        ]
        with _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany(_INSERT, rows)
                self._db.executemany(_COMPLETE, late)
                self._db.execute("COMMIT")
            except sqlite3.Error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def expire(self, before: datetime) -> int:
        """See `Sink.expire`. Over a connection of its own; freed pages are used again."""
        deleted = 0
        with _translated(self._path), closing(_connect(self._path)) as db:
            while True:
                count = db.execute(
                    "DELETE FROM decisions WHERE id IN "
                    "(SELECT id FROM decisions WHERE time < ? LIMIT ?)",
                    (stamp(before), _CHUNK),
                ).rowcount
                deleted += count
                if count < _CHUNK:
                    return deleted
                time.sleep(0.01)

    def close(self) -> None:
        """See `Sink.close`."""
        self._db.close()


class SqliteReader:
    """Reads records from one file, beside those who write to it.

    Raises:
        AuditError: it is no audit log of this version.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = 0
        with _translated(path):
            self._db = _connect(path, read_only=True)
            try:
                _check(self._db, path)
            except BaseException:
                self._db.close()
                raise

    def records(self, query: AuditQuery, *, last: int | None = None) -> Iterator[AuditRecord]:
        """See `AuditReader.records`."""
        start = self._start_of(query, last)
        yield from self._after(start, query)

    def added(self, query: AuditQuery) -> Iterator[AuditRecord]:
        """See `AuditReader.added`."""
        yield from self._after(self._seen, query)

    def close(self) -> None:
        """See `AuditReader.close`."""
        self._db.close()

    def _start_of(self, query: AuditQuery, last: int | None) -> int:
        """The id after which the newest ``last`` records of the query come."""
        if last is None:
            return 0
        where, values = _where(query)
        with _translated(self._path):
            row = self._db.execute(
                f"SELECT id FROM decisions WHERE {where} ORDER BY id DESC LIMIT 1 OFFSET ?",  # noqa: S608
                (*values, last),
            ).fetchone()
        return 0 if row is None else int(row[0])

    def _after(self, start: int, query: AuditQuery) -> Iterator[AuditRecord]:
        """Records after an id, in pages, so that no long read holds back the writers' file."""
        with _translated(self._path):
            (end,) = self._db.execute("SELECT coalesce(max(id), 0) FROM decisions").fetchone()
        self._seen = max(self._seen, end)
        where, values = _where(query)
        while True:
            with _translated(self._path):
                rows = self._db.execute(
                    f"SELECT id, {_NAMES} FROM decisions WHERE id > ? AND id <= ? AND {where} "  # noqa: S608
                    "ORDER BY id LIMIT ?",
                    (start, end, *values, _PAGE),
                ).fetchall()
            for row in rows:
                yield self._record(row)
            if len(rows) < _PAGE:
                return
            start = rows[-1][0]

    def _record(self, row: tuple[Any, ...]) -> AuditRecord:
        values = dict(zip(_COLUMNS, row[1:], strict=True))
        try:
            for name in _AS_JSON:
                values[name] = None if values[name] is None else json.loads(values[name])
            for name in _AS_BOOL:
                values[name] = bool(values[name])
            return AuditRecord.from_json(values)
        except (ValueError, KeyError, TypeError) as error:
            raise AuditError(f"{self._path}: record {row[0]} is damaged: {error}") from error


def _row(record: AuditRecord) -> tuple[Any, ...]:
    values = record.to_json()
    for name in _AS_JSON:
        values[name] = None if values[name] is None else json.dumps(values[name])
    return tuple(_storable(values[name]) for name in _COLUMNS)


def _storable(value: Any) -> Any:
    # SQLite takes no lone surrogates, and a record is not to be lost for one.
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _where(query: AuditQuery) -> tuple[str, tuple[str, ...]]:
    """The query as SQL; names are ours, values are bound."""
    clauses = [f'"{name}" = ?' for name in query.equals()]
    values = list(query.equals().values())
    for limit, operator in ((query.since, ">="), (query.until, "<")):
        if limit is not None:
            clauses.append(f"time {operator} ?")
            values.append(stamp(limit))
    if query.failed:
        clauses.append("failure IS NOT NULL")
    return " AND ".join(clauses) or "1", tuple(values)


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    uri = f"{path.resolve().as_uri()}?mode={'ro' if read_only else 'rwc'}"
    db = sqlite3.connect(
        uri, uri=True, isolation_level=None, timeout=_BUSY_S, check_same_thread=False
    )
    db.execute("PRAGMA synchronous = NORMAL")
    return db


def _make(path: Path) -> None:
    """An empty log, which appears under its name when it is whole: readers may wait for it."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)  # of a process that was killed here
    part.touch(mode=0o600)  # SQLite would make it readable for everybody
    with closing(_connect(part)) as db:
        _prepare(db, part)
    part.replace(path)


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if not tables:
        db.execute("PRAGMA journal_mode = WAL")
        db.executescript(_SCHEMA)
    _check(db, path)


def _check(db: sqlite3.Connection, path: Path) -> None:
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if application != _APPLICATION:
        raise AuditError(f"{path}: not an audit log; name another file")
    if version > AUDIT_VERSION:
        raise AuditError(
            f"{path}: written by a newer version (audit version {version}, this one knows "
            f"{AUDIT_VERSION}). Upgrade: pip install -U vlmguard-r1"
        )
    if version < AUDIT_VERSION:
        raise AuditError(
            f"{path}: written by an older version (audit version {version}, this one needs "
            f"{AUDIT_VERSION}). Put it aside and start a new one: mv {path} {path}.v{version}"
        )


def _wait() -> None:
    """Another process opens the log: a moment."""


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """SQLite's and the system's errors as `AuditError`."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        code = getattr(error, "sqlite_errorname", "") or ""
        if "NOTADB" in code:
            raise AuditError(f"{path}: not an audit log; name another file") from error
        if "FULL" in code or "IOERR" in code:
            raise AuditError(f"{path}: cannot be written ({error}); is the disk full?") from error
        raise AuditError(f"{path}: {error}") from error
