"""The audit log as JSON Lines, for those who ship logs elsewhere.

A group of records is one append, flushed to the disk (``fsync``), under a lock that processes
share, so lines never mix and half a line of a killed process spoils none after it. The file may be
moved away (logrotate): the next group starts a new one.

The tokens of a streamed answer come after its record, as a line of their own: ``stream_usage``,
with the record's ``request_id``. `JsonlReader` puts the two together.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from vlmguard.errors import AuditError
from vlmguard.gateway.audit import (
    AUDIT_VERSION,
    AuditEntry,
    AuditQuery,
    AuditRecord,
    LateUsage,
    usage_json,
)
from vlmguard.models.lock import exclusive
from vlmguard.types import Usage

_STREAM_USAGE = "stream_usage"


class JsonlSink:
    """Appends records to one file.

    Args:
        path: made when there is none, with its folder, readable by its owner only.

    Raises:
        AuditError: it cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1
        with _translated(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._open()

    def write(self, entries: Sequence[AuditEntry]) -> None:
        """See `Sink.write`."""
        data = b"".join(_line(entry) for entry in entries)
        with _translated(self._path), self._locked():
            if not self._is_current():
                os.close(self._descriptor)
                self._open()
            size = os.fstat(self._descriptor).st_size
            if size and os.pread(self._descriptor, 1, size - 1) != b"\n":
                data = b"\n" + data  # half a line of a process that was killed
            try:
                written = os.write(self._descriptor, data)
                if written < len(data):  # the disk is full; the rest tells the reason
                    os.write(self._descriptor, data[written:])
                os.fsync(self._descriptor)
            except OSError:
                if size:
                    os.ftruncate(self._descriptor, size)  # all of the group, or none
                raise

    def expire(self, before: datetime) -> int:
        """See `Sink.expire`. Copies what stays; writers wait only for the end of it.

        Lines are in order of time but for seconds, so what precedes the first recent one goes.
        """
        with _translated(self._path):
            if not self._path.is_file():
                return 0
            with self._path.open("rb") as old:
                count, start = _recent(old, before, self._path)
                if not count:
                    return 0
                old.seek(start)
                folder = self._path.parent
                with tempfile.NamedTemporaryFile(dir=folder, delete=False) as new:
                    try:
                        shutil.copyfileobj(old, new, 1 << 20)
                        with self._locked():
                            if not _same(old.fileno(), self._path):
                                Path(new.name).unlink()  # moved away meanwhile
                                return 0
                            shutil.copyfileobj(old, new, 1 << 20)
                            new.flush()
                            os.fsync(new.fileno())
                            Path(new.name).replace(self._path)
                    except BaseException:
                        Path(new.name).unlink(missing_ok=True)
                        raise
                return count

    def close(self) -> None:
        """See `Sink.close`."""
        os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT
        self._descriptor = os.open(self._path, flags, 0o600)

    def _is_current(self) -> bool:
        return _same(self._descriptor, self._path)

    def _locked(self) -> AbstractContextManager[None]:
        lock = self._path.with_name(f"{self._path.name}.lock")
        return exclusive(lock, on_wait=_wait, poll_s=0.001)


class JsonlReader:
    """Reads records from one file, beside those who write to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = _Place()
        with _translated(path):
            self._file: BinaryIO = path.open("rb")

    def records(self, query: AuditQuery, *, last: int | None = None) -> Iterator[AuditRecord]:
        """See `AuditReader.records`."""
        self._file.seek(0)
        late = self._late_usages()
        self._file.seek(0)
        self._place = _Place()
        found: Iterable[AuditRecord] = filter(query.matches, self._read())
        if last is not None:
            found = deque(found, maxlen=last)
        for record in found:
            usage = late.get(record.request_id)
            yield record if usage is None else replace(record, usage=usage)

    def added(self, query: AuditQuery) -> Iterator[AuditRecord]:
        """See `AuditReader.added`. Follows a file that was moved away to its successor."""
        yield from filter(query.matches, self._read())
        with _translated(self._path):
            if self._path.exists() and not _same(self._file.fileno(), self._path):
                yield from filter(query.matches, self._read())  # what came before it was moved
                successor = self._path.open("rb")
                self._file.close()
                self._file, self._place = successor, _Place(since=self._place.newest)
                yield from filter(query.matches, self._read())

    def close(self) -> None:
        """See `AuditReader.close`."""
        self._file.close()

    def _late_usages(self) -> dict[str, Usage]:
        """Request → the tokens that were told after its record, from here to the end."""
        found: dict[str, Usage] = {}
        marked = f'"{_STREAM_USAGE}"'.encode()
        for number, line in enumerate(self._file, start=1):
            if marked not in line:
                continue
            with suppress(_Torn):
                entry = _entry(line, self._path, number)
                if isinstance(entry, LateUsage):
                    found[entry.request_id] = entry.usage
        return found

    def _read(self) -> Iterator[AuditRecord]:
        """Whole lines from where the last reading ended."""
        place = self._place
        while True:
            start = self._file.tell()
            line = self._file.readline()
            if not line.endswith(b"\n"):
                self._file.seek(start)  # nothing, or a line that is being written
                return
            place.line += 1
            try:
                record = _entry(line, self._path, place.line)
            except _Torn:
                continue
            if isinstance(record, LateUsage):
                continue
            if place.since is not None and record.time <= place.since:
                continue
            place.newest = record.time if place.newest is None else max(place.newest, record.time)
            yield record


@dataclass(slots=True)
class _Place:
    """How far a reader has come.

    Attributes:
        line: lines read.
        newest: time of the newest record read.
        since: records up to this time were read from the predecessor of this file.
    """

    line: int = 0
    newest: datetime | None = None
    since: datetime | None = None


class _Torn(Exception):
    """Half a line, left by a process that was killed before it was acknowledged."""


def _line(entry: AuditEntry) -> bytes:
    values: dict[str, Any] = {"v": AUDIT_VERSION}
    if isinstance(entry, LateUsage):
        values |= {"request_id": entry.request_id, _STREAM_USAGE: usage_json(entry.usage)}
    else:
        values |= entry.to_json()
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace") + b"\n"


def _entry(line: bytes, path: Path, number: int) -> AuditEntry:
    try:
        values: Any = json.loads(line)
    except ValueError:
        raise _Torn from None
    version = values.pop("v", None) if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise AuditError(f"{path}:{number}: not a record of an audit log; name another file")
    if version != AUDIT_VERSION:
        age = "a newer" if version > AUDIT_VERSION else "an older"
        raise AuditError(
            f"{path}:{number}: written by {age} version (audit version {version}, this one reads "
            f"{AUDIT_VERSION}); read it with that version"
        )
    try:
        if _STREAM_USAGE in values:
            usage = Usage(**values[_STREAM_USAGE])
            return LateUsage(request_id=str(values["request_id"]), usage=usage)
        return AuditRecord.from_json(values)
    except (ValueError, KeyError, TypeError) as error:
        raise AuditError(f"{path}:{number}: the record is damaged: {error}") from error


def _recent(file: BinaryIO, before: datetime, path: Path) -> tuple[int, int]:
    """Records that come before the first recent one, and where that one begins."""
    count = 0
    while True:
        start = file.tell()
        line = file.readline()
        if not line.endswith(b"\n"):
            return count, start
        try:
            entry = _entry(line, path, count + 1)
        except _Torn:
            continue
        if isinstance(entry, LateUsage):
            continue
        if entry.time >= before:
            return count, start
        count += 1


def _same(descriptor: int, path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _wait() -> None:
    """Another process writes its group: a moment."""


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    """The system's errors as `AuditError`."""
    try:
        yield
    except OSError as error:
        raise AuditError(f"{path}: cannot be used: {error.strerror}") from error
