"""``vlmguard audit``: look at what the gateway decided."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from vlmguard.cli import audit_views as views
from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.errors import ConfigError
from vlmguard.gateway.audit import AuditQuery, AuditRecord, audit_place, open_reader
from vlmguard.gateway.audit_export import AuditFormat, export_records, format_of
from vlmguard.gateway.audit_stats import AuditStats

app = typer.Typer(help="Look at what the gateway decided.", no_args_is_help=True)

_POLL_S = 0.5
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

LogArgument = Annotated[
    str,
    typer.Argument(
        metavar="LOG",
        envvar="VLMGUARD_AUDIT",
        help="The gateway's audit log: a .db or .jsonl file.",
    ),
]
VerdictOption = Annotated[str | None, typer.Option("--verdict", help="safe or risky.")]
CategoryOption = Annotated[str | None, typer.Option("--category", help="A kind of risk.")]
ActionOption = Annotated[
    str | None, typer.Option("--action", help="allow, monitor, rewrite or refuse.")
]
PolicyOption = Annotated[str | None, typer.Option("--policy", help="By that policy.")]
KeyOption = Annotated[str | None, typer.Option("--key", help="Of the key with that id.")]
RequestOption = Annotated[
    str | None, typer.Option("--request", help="The one request with that id.")
]
FailedOption = Annotated[bool, typer.Option("--failed", help="Only those where the guard failed.")]
SinceOption = Annotated[
    str | None,
    typer.Option("--since", help="From then on: 30m, 12h, 7d, or 2026-01-31T08:00 (UTC)."),
]
UntilOption = Annotated[str | None, typer.Option("--until", help="Before then.")]


@app.command()
def tail(
    log: LogArgument,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Newest records.")] = 20,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is added.")
    ] = False,
    verdict: VerdictOption = None,
    category: CategoryOption = None,
    action: ActionOption = None,
    policy: PolicyOption = None,
    key: KeyOption = None,
    failed: FailedOption = False,
    as_json: JsonOption = False,
) -> None:
    """Print the newest records, and with -f every new one as it comes."""
    query = _query(
        verdict=verdict, category=category, action=action, policy=policy, key=key, failed=failed
    )
    if follow and not audit_place(log)[1].exists():
        err.print(f"waiting for {log}", style="dim", markup=False)
        while not audit_place(log)[1].exists():
            time.sleep(_POLL_S)
    with closing(open_reader(log)) as reader:
        for record in reader.records(query, last=lines):
            _print(record, as_json=as_json)
        while follow:
            time.sleep(_POLL_S)
            for record in reader.added(query):
                _print(record, as_json=as_json)


@app.command()
def query(
    log: LogArgument,
    verdict: VerdictOption = None,
    category: CategoryOption = None,
    action: ActionOption = None,
    policy: PolicyOption = None,
    key: KeyOption = None,
    request: RequestOption = None,
    failed: FailedOption = False,
    since: SinceOption = None,
    until: UntilOption = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="The newest so many only.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the records that match all options, oldest first."""
    wanted = _query(
        verdict=verdict,
        category=category,
        action=action,
        policy=policy,
        key=key,
        request=request,
        failed=failed,
        since=since,
        until=until,
    )
    count = 0
    with closing(open_reader(log)) as reader:
        for record in reader.records(wanted, last=limit):
            _print(record, as_json=as_json)
            count += 1
    _tell_count(count)


@app.command()
def export(
    log: LogArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Where to; - is standard output.")
    ] = Path("-"),
    kind: Annotated[
        AuditFormat | None,
        typer.Option("--format", help="Default: what FILE ends in, else jsonl."),
    ] = None,
    verdict: VerdictOption = None,
    category: CategoryOption = None,
    action: ActionOption = None,
    policy: PolicyOption = None,
    key: KeyOption = None,
    failed: FailedOption = False,
    since: SinceOption = None,
    until: UntilOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite FILE.")] = False,
) -> None:
    """Write records for other programs: JSON Lines, CSV or Parquet."""
    wanted = _query(
        verdict=verdict,
        category=category,
        action=action,
        policy=policy,
        key=key,
        failed=failed,
        since=since,
        until=until,
    )
    kind = kind or format_of(file) or AuditFormat.JSONL
    with closing(open_reader(log)) as reader, _sink(file, kind, force=force) as sink:
        count = export_records(reader.records(wanted), sink, kind)
    _tell_count(count)


@app.command()
def stats(
    log: LogArgument,
    verdict: VerdictOption = None,
    category: CategoryOption = None,
    action: ActionOption = None,
    policy: PolicyOption = None,
    key: KeyOption = None,
    failed: FailedOption = False,
    since: SinceOption = None,
    until: UntilOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count by verdict, action, category, policy and hour; tell percentiles of the latencies."""
    wanted = _query(
        verdict=verdict,
        category=category,
        action=action,
        policy=policy,
        key=key,
        failed=failed,
        since=since,
        until=until,
    )
    summary = AuditStats()
    with closing(open_reader(log)) as reader:
        for record in reader.records(wanted):
            summary.add(record)
    if as_json:
        typer.echo(json.dumps(summary.to_json(), ensure_ascii=False))
    else:
        for view in views.stats_views(summary):
            out.print(view)


def _tell_count(count: int) -> None:
    err.print(f"{count:,} record{'' if count == 1 else 's'}", style="dim")


def _query(
    *,
    verdict: str | None,
    category: str | None,
    action: str | None,
    policy: str | None,
    key: str | None,
    failed: bool,
    request: str | None = None,
    since: str | None = None,
    until: str | None = None,
) -> AuditQuery:
    for name, value, known in (
        ("--verdict", verdict, ("safe", "risky")),
        ("--action", action, ("allow", "monitor", "rewrite", "refuse")),
    ):
        if value is not None and value not in known:
            raise ConfigError(f"{name} is one of {', '.join(known)}, not {value!r}")
    return AuditQuery(
        verdict=verdict,
        category=category,
        action=action,
        policy=policy,
        key_id=key,
        request_id=request,
        failed=failed,
        since=None if since is None else _moment("--since", since),
        until=None if until is None else _moment("--until", until),
    )


def _moment(option: str, text: str) -> datetime:
    """A time in UTC: so long ago, or a date with or without a time."""
    if match := re.fullmatch(r"(\d{1,9})([smhdw])", text.strip()):
        number, unit = match.groups()
        try:
            return datetime.now(UTC) - timedelta(**{_UNITS[unit]: int(number)})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{option} {text!r} is no time: write 30m, 12h, 7d, 2026-01-31 or 2026-01-31T08:00"
        ) from None
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _print(record: AuditRecord, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record.to_json(), ensure_ascii=False).encode("utf-8", "replace"))
    else:
        out.print(views.record_line(record), soft_wrap=True)


@contextmanager
def _sink(file: Path, kind: AuditFormat, *, force: bool) -> Iterator[BinaryIO]:
    """The file, or standard output."""
    if str(file) == "-":
        if kind is AuditFormat.PARQUET and sys.stdout.isatty():
            raise ConfigError("Parquet is not for a terminal; name a FILE")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    try:
        with file.open("wb" if force else "xb") as sink:
            yield sink
    except FileExistsError:
        raise ConfigError(f"{file} exists; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from error
