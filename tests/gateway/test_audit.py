"""The audit log in both forms: nothing acknowledged is lost, and nothing private is kept."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from vlmguard.errors import AuditError, ConfigError
from vlmguard.gateway import audit_sqlite
from vlmguard.gateway.audit import (
    AuditEntry,
    AuditQuery,
    AuditRecord,
    LateUsage,
    audit_place,
    open_audit,
    open_reader,
)
from vlmguard.gateway.audit_groups import GroupedLog
from vlmguard.gateway.audit_jsonl import JsonlSink
from vlmguard.gateway.audit_sqlite import SqliteSink
from vlmguard.types import RiskReport, Usage

NOON = datetime(2026, 11, 25, 12, 0, 0, 123456, tzinfo=UTC)
RISKY = AuditRecord(
    time=NOON,
    request_id="req-1",
    route="/v1/chat/completions",
    status=200,
    key_id="k_1",
    mode="shadow",
    policy="strict",
    rewriter="smollm2",
    target="llava",
    verdict="risky",
    risk=0.875,
    category="violence",
    action="rewrite",
    changed=True,
    failure="EngineTimeout: too slow",
    prompt_sha256="a" * 64,
    image_sha256s=("b" * 64, "c" * 64),
    rewrite_sha256="d" * 64,
    shadow_policy="permissive",
    shadow_verdict="safe",
    shadow_risk=0.25,
    shadow_action="allow",
    latency_ms={"guard": 1.5, "total": 20.25},
    streamed=True,
    usage=Usage(prompt_tokens=3, completion_tokens=4, cached_tokens=1),
    prompt="what they wrote",
    rewrite="what it became",
    report=RiskReport(textual="t", visual="v", multimodal="m"),
)
SAFE = AuditRecord(time=NOON, request_id="req-2", route="/r", status=200, verdict="safe")
PROCESS = Path(__file__).with_name("audit_process.py")


@pytest.fixture(params=["audit.db", "audit.jsonl"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / str(request.param))


async def written(place: str, *records: AuditRecord, keep_content: bool = False) -> None:
    log = open_audit(place, keep_content=keep_content)
    for record in records:
        await log.record(record)
    await log.aclose()


def read(place: str, query: AuditQuery | None = None, last: int | None = None) -> list[AuditRecord]:
    reader = open_reader(place)
    try:
        return list(reader.records(query or AuditQuery(), last=last))
    finally:
        reader.close()


# --- Records ---


async def test_a_record_comes_back_as_it_was_written(place: str) -> None:
    """Every field, in both forms; the file is its owner's only."""
    assert all(getattr(RISKY, field.name) for field in fields(AuditRecord))
    await written(place, RISKY, SAFE, keep_content=True)
    assert read(place) == [RISKY, SAFE]
    assert os.stat(place).st_mode & 0o777 == 0o600  # noqa: PTH116  # beside a loop


def test_the_table_has_a_column_for_every_field() -> None:
    """In the same order, under the same names."""
    assert sorted(audit_sqlite._COLUMNS) == sorted(field.name for field in fields(AuditRecord))


async def test_content_is_dropped_unless_it_is_kept_by_choice(place: str) -> None:
    """Not a word of it is in the file."""
    await written(place, RISKY)
    assert read(place) == [RISKY.without_content()]
    data = b"".join(path.read_bytes() for path in Path(place).parent.iterdir())
    for secret in (b"what they wrote", b"what it became", b"multimodal"):
        assert secret not in data


async def test_tokens_that_come_later_complete_their_record(place: str) -> None:
    """The only one of that request, whether it was written with them or long before."""
    log = open_audit(place)
    await log.record(RISKY)
    late = Usage(prompt_tokens=9, completion_tokens=8)
    other = LateUsage(request_id="req-2", usage=late)
    await asyncio.gather(log.record(SAFE), log.add_usage(other))
    await log.add_usage(LateUsage(request_id="of-nobody", usage=late))
    reader = open_reader(place)
    assert list(reader.records(AuditQuery())) == [
        RISKY.without_content(),
        replace(SAFE, usage=late),
    ]
    await log.add_usage(LateUsage(request_id="req-1", usage=late))
    assert list(reader.added(AuditQuery())) == []
    reader.close()
    assert read(place, AuditQuery(request_id="req-1"))[0].usage == late
    assert read(place, last=1) == [replace(SAFE, usage=late)]
    await log.aclose()
    with pytest.raises(AuditError, match="closed"):
        await log.add_usage(other)


async def test_times_are_kept_in_utc(place: str) -> None:
    """Whatever zone they came in."""
    await written(place, replace(SAFE, time=NOON.astimezone(timezone(timedelta(hours=5)))))
    (found,) = read(place)
    assert found.time == NOON
    assert found.time.utcoffset() == timedelta(0)


async def test_text_that_is_not_unicode_is_still_recorded(place: str) -> None:
    """A lone surrogate becomes a question mark; others of the group are kept with it."""
    log = open_audit(place, keep_content=True)
    odd = replace(SAFE, prompt="a\ud800b\x00c")
    await asyncio.gather(log.record(odd), log.record(SAFE))
    await log.aclose()
    assert [record.prompt for record in read(place)] == ["a?b\x00c", None]


# --- Reading ---


async def test_queries_find_what_they_name(place: str) -> None:
    """By every field, by time, and of the newest some only."""
    later = replace(SAFE, request_id="req-3", time=NOON + timedelta(hours=1), key_id="k_2")
    await written(place, RISKY, SAFE, later)

    def ids(last: int | None = None, **wanted: object) -> list[str]:
        return [record.request_id for record in read(place, AuditQuery(**wanted), last)]  # type: ignore[arg-type]

    assert ids() == ["req-1", "req-2", "req-3"]
    assert ids(verdict="safe") == ["req-2", "req-3"]
    assert ids(category="violence") == ["req-1"]
    assert ids(action="rewrite") == ["req-1"]
    assert ids(policy="strict", key_id="k_1") == ["req-1"]
    assert ids(key_id="k_2") == ["req-3"]
    assert ids(request_id="req-2") == ["req-2"]
    assert ids(failed=True) == ["req-1"]
    assert ids(since=NOON + timedelta(hours=1)) == ["req-3"]
    assert ids(until=NOON + timedelta(hours=1)) == ["req-1", "req-2"]
    assert ids(last=2) == ["req-2", "req-3"]
    assert ids(last=1, verdict="risky") == ["req-1"]
    assert ids(last=9) == ["req-1", "req-2", "req-3"]
    assert ids(verdict="' OR 1=1 --") == []


async def test_a_reader_follows_what_is_added(place: str) -> None:
    """Each record once."""
    await written(place, RISKY)
    reader = open_reader(place)
    assert len(list(reader.records(AuditQuery()))) == 1
    assert list(reader.added(AuditQuery())) == []
    await written(place, SAFE, RISKY)
    assert [record.request_id for record in reader.added(AuditQuery(verdict="safe"))] == ["req-2"]
    assert list(reader.added(AuditQuery())) == []
    reader.close()


async def test_a_long_log_is_read_in_pages(place: str) -> None:
    """In order, none twice."""
    log = open_audit(place)
    await asyncio.gather(*(log.record(replace(SAFE, request_id=str(n))) for n in range(1100)))
    await log.aclose()
    assert [record.request_id for record in read(place)] == [str(n) for n in range(1100)]


# --- What is no audit log ---


def test_the_form_is_told_by_suffix_or_scheme() -> None:
    """And a name that tells neither is an error that says how."""
    assert audit_place("a/b.sqlite3") == ("sqlite", Path("a/b.sqlite3"))
    assert audit_place("jsonl:/var/log/audit.log") == ("jsonl", Path("/var/log/audit.log"))
    assert audit_place("sqlite:///var/audit") == ("sqlite", Path("/var/audit"))
    with pytest.raises(ConfigError, match=r"names no form: end it in \.db"):
        audit_place("audit.log")


def test_a_missing_log_is_told(place: str) -> None:
    """With the command that writes one."""
    with pytest.raises(AuditError, match=r"there is no audit log .* `vlmguard serve --audit"):
        open_reader(place)


def test_another_file_is_not_taken_for_a_log(tmp_path: Path) -> None:
    """Neither for reading nor, in SQLite's case, for writing."""
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    text = tmp_path / "text.db"
    text.write_text("hello " * 1000)
    for path in (other, text):
        with pytest.raises(AuditError, match="not an audit log"):
            open_reader(path)
        with pytest.raises(AuditError, match="not an audit log"):
            open_audit(path)
    lines = tmp_path / "other.jsonl"
    lines.write_text('{"prompt": "hello"}\n')
    with pytest.raises(AuditError, match=r"other.jsonl:1: not a record of an audit log"):
        read(str(lines))


async def test_another_versions_log_is_told(tmp_path: Path) -> None:
    """Older and newer, in both forms."""
    path = tmp_path / "a.db"
    await written(str(path), SAFE)
    for version, age in ((0, "older"), (99, "newer")):
        db = sqlite3.connect(path)
        db.execute(f"PRAGMA user_version = {version}")
        db.close()
        for opening in (open_reader, open_audit):
            with pytest.raises(AuditError, match=f"{age} version"):
                opening(path)
    lines = tmp_path / "a.jsonl"
    await written(str(lines), SAFE)
    for version, age in ((0, "older"), (99, "newer")):
        lines.write_text(lines.read_text().replace('"v":1', f'"v":{version}'))
        with pytest.raises(AuditError, match=f"{age} version"):
            read(str(lines))
        lines.write_text(lines.read_text().replace(f'"v":{version}', '"v":1'))


def test_a_place_that_cannot_be_written_is_told_when_it_is_opened(place: str) -> None:
    """Not at the first request."""
    Path(place).mkdir()
    with pytest.raises(AuditError):
        open_audit(place)


def test_a_senseless_retention_is_refused(place: str) -> None:
    """Zero days would delete what was just written."""
    with pytest.raises(ConfigError, match="over 0 days"):
        open_audit(place, retention_days=0)


# --- Faults ---


FORMS = ("audit.db", "audit.jsonl")


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROCESS), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(output: str, word: str, name: str) -> list[str]:
    """What the process said about one log."""
    head = f"{word} {name} "
    whole = [line for line in output.splitlines(keepends=True) if line.endswith("\n")]
    return [line.removeprefix(head).split()[0] for line in whole if line.startswith(head)]


def test_a_killed_process_loses_no_acknowledged_record(tmp_path: Path) -> None:
    """SIGKILL in the middle of writing to both forms; they open again and have all of it."""
    jobs = [f"{tmp_path / name}:fail" for name in FORMS]
    process = started("1000000", "0", *jobs)
    assert process.stdout is not None
    output = "".join(process.stdout.readline() for _ in range(300))
    process.send_signal(signal.SIGKILL)
    output += process.communicate()[0]
    for name in FORMS:
        place = str(tmp_path / name)
        kept, ids = told(output, "kept", name), [record.request_id for record in read(place)]
        assert kept
        assert set(kept) <= set(ids)
        assert len(ids) == len(set(ids))
        asyncio.run(written(place, RISKY))
        assert read(place)[-1].request_id == "req-1"


def test_several_processes_write_to_one_log(tmp_path: Path) -> None:
    """All records are there, each whole."""
    jobs = [f"{tmp_path / name}:fail" for name in FORMS]
    processes = [started("20", "0", *jobs) for _ in range(2)]
    output = "".join(process.communicate(timeout=60)[0] for process in processes)
    for name in FORMS:
        kept = told(output, "kept", name)
        assert len(kept) == 2 * 4 * 20
        ids = [record.request_id for record in read(str(tmp_path / name))]
        assert sorted(ids) == sorted(kept)


def test_a_full_disk_does_what_the_operator_chose(tmp_path: Path) -> None:
    """Requests fail, or records are lost, told once and counted; nothing is half there."""
    jobs = [f"{tmp_path / f'{mode}-{name}'}:{mode}" for name in FORMS for mode in ("fail", "go")]
    process = started("400", "100000", *jobs)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    for name in FORMS:
        kept, refused = (told(output, word, f"fail-{name}") for word in ("kept", "refused"))
        assert refused
        assert len(kept) + len(refused) == 1600
        ids = [record.request_id for record in read(str(tmp_path / f"fail-{name}"))]
        assert sorted(kept) == sorted(ids)

        assert not told(output, "refused", f"go-{name}")
        (lost,) = map(int, told(output, "lost", f"go-{name}"))
        assert lost > 0
        assert len(read(str(tmp_path / f"go-{name}"))) == 1600 - lost
        said = [line for line in errors.splitlines() if f"go-{name}" in line]
        assert len(said) == 1
        assert said[0].startswith("records are lost until the audit log can be written again")


async def test_it_is_told_when_the_log_can_be_written_again(
    place: str, caplog: pytest.LogCaptureFixture
) -> None:
    """After the disk was full for a while."""

    class Shaky(SqliteSink):
        full = True

        def write(self, entries: Sequence[AuditEntry]) -> None:
            if self.full:
                raise AuditError("the disk is full")
            super().write(entries)

    sink = Shaky(Path(place).with_suffix(".db"))
    lost: list[int] = []
    log = GroupedLog(sink, on_full="continue", on_lost=lost.append)
    with caplog.at_level(logging.WARNING, "vlmguard"):
        for _ in range(3):
            await log.record(SAFE)
        await log.add_usage(LateUsage(request_id="req-2", usage=Usage()))  # no record of its own
        sink.full = False
        await log.record(RISKY)
    await log.aclose()
    assert sum(lost) == 3
    lines = [record.getMessage() for record in caplog.records]
    assert lines == [
        "records are lost until the audit log can be written again: the disk is full",
        "the audit log can be written again",
    ]


def test_half_a_line_of_a_killed_process_spoils_none_after_it(tmp_path: Path) -> None:
    """It is passed over: nobody was told that it was kept."""
    path = tmp_path / "audit.jsonl"
    asyncio.run(written(str(path), SAFE))
    with path.open("a") as file:
        file.write('{"v":1,"time":"2026')
    assert len(read(str(path))) == 1
    asyncio.run(written(str(path), RISKY))
    assert [record.request_id for record in read(str(path))] == ["req-2", "req-1"]


async def test_a_log_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    """As logrotate does; a reader follows to the new file and misses nothing."""
    path = tmp_path / "audit.jsonl"
    log = open_audit(path)
    await log.record(RISKY)
    reader = open_reader(path)
    assert len(list(reader.records(AuditQuery()))) == 1
    path.rename(tmp_path / "audit.jsonl.1")
    await log.record(replace(SAFE, time=NOON + timedelta(seconds=1)))
    assert [record.request_id for record in reader.added(AuditQuery())] == ["req-2"]
    reader.close()
    await log.aclose()
    assert len(path.read_text().splitlines()) == 1


async def test_a_cancelled_request_is_recorded_all_the_same(place: str) -> None:
    """Its client went away while the record was being written."""
    log = open_audit(place)
    task = asyncio.ensure_future(log.record(SAFE))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await log.aclose()
    assert read(place) == [SAFE]


async def test_a_closed_log_takes_nothing_more(place: str) -> None:
    """Closing twice is no error."""
    log = open_audit(place)
    await log.aclose()
    await log.aclose()
    with pytest.raises(AuditError, match="closed"):
        await log.record(SAFE)


# --- Retention ---


async def test_old_records_are_deleted_in_the_background(place: str) -> None:
    """While others are written; recent ones stay, and a reader goes on."""
    now = datetime.now(UTC)
    old = [
        replace(SAFE, request_id=f"old-{n}", time=now - timedelta(days=8, minutes=-n))
        for n in range(1200)
    ]
    recent = replace(SAFE, request_id="recent", time=now)
    log = open_audit(place)
    await asyncio.gather(*(log.record(record) for record in old))
    await log.add_usage(LateUsage(request_id="old-7", usage=Usage(prompt_tokens=1)))
    await log.record(recent)
    reader = open_reader(place)
    assert len(list(reader.records(AuditQuery()))) == 1201
    sink = SqliteSink(Path(place)) if place.endswith(".db") else JsonlSink(Path(place))
    keeper = GroupedLog(sink, retention=timedelta(days=7), expire_every_s=0.01)
    await log.record(replace(recent, request_id="meanwhile", time=now + timedelta(seconds=1)))
    async with asyncio.timeout(20):
        while len(read(place)) != 2:  # noqa: ASYNC110  # a thread is waited for
            await asyncio.sleep(0.02)
    await log.record(replace(recent, request_id="after", time=now + timedelta(seconds=2)))
    await keeper.aclose()
    await log.aclose()
    assert [record.request_id for record in read(place)] == ["recent", "meanwhile", "after"]
    assert [record.request_id for record in reader.added(AuditQuery())] == ["meanwhile", "after"]
    reader.close()


async def test_a_json_lines_log_is_lines_of_json(tmp_path: Path) -> None:
    """For whoever ships it elsewhere: the fields' names and the version."""
    path = tmp_path / "audit.jsonl"
    await written(str(path), RISKY)
    (line,) = path.read_text().splitlines()
    values = json.loads(line)
    assert values["v"] == 1
    assert values["time"] == "2026-11-25T12:00:00.123456Z"
    assert values["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "cached_tokens": 1}
    assert os.linesep not in line


def test_a_new_log_is_whole_when_it_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a reader that waits for the file never opens one without tables."""
    place = tmp_path / "audit.db"
    there_before: list[bool] = []
    prepare = audit_sqlite._prepare

    def watched(db: sqlite3.Connection, path: Path) -> None:
        there_before.append(place.exists())
        prepare(db, path)

    monkeypatch.setattr(audit_sqlite, "_prepare", watched)
    (tmp_path / "audit.db.part").write_text("of a process that was killed while it made the log")
    SqliteSink(place).close()
    assert there_before == [False, True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.db", "audit.db.lock"]
    assert place.stat().st_mode & 0o777 == 0o600
