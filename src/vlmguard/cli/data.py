"""``vlmguard data``: look at datasets, check them, clean them, export them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from vlmguard.cli import data_views as views
from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.data import Found, Tally, scan
from vlmguard.data.check import check as check_data
from vlmguard.data.decontaminate import find_overlaps
from vlmguard.data.dedupe import PICTURE_BITS, SIMILARITY, find_duplicates, without_duplicates
from vlmguard.data.export import ExportFormat, ExportSummary
from vlmguard.data.export import export as export_data
from vlmguard.data.page import write_page
from vlmguard.data.reader import is_dataset, read_index
from vlmguard.errors import ConfigError, DataError
from vlmguard.rewriting import Layout

app = typer.Typer(help="Look at datasets, check, clean and export them.", no_args_is_help=True)

DataArgument = Annotated[
    Path,
    typer.Argument(
        metavar="DATA",
        help="A dataset folder, a .parquet or .jsonl file, or a folder of .jsonl files.",
    ),
]
_SHOWN = 50
"""Findings printed in the terminal; --json has all."""


@app.command()
def stats(data: DataArgument, as_json: JsonOption = False) -> None:
    """Count records by split, verdict, category, source …, and tell how long texts are."""
    tally = Tally()
    with _progress("counting", data) as step:
        for found in scan(data):
            tally.add(_record(found).outcome)  # type: ignore[arg-type]
            step()
    if as_json:
        typer.echo(json.dumps(tally.to_json(), ensure_ascii=False))
    else:
        out.print(views.stats_view(tally))


@app.command()
def show(
    data: DataArgument,
    id_: Annotated[
        list[str], typer.Option("--id", help="Records by id, or all of a family by its name.")
    ] = [],  # noqa: B006  # typer copies it
    category: Annotated[str | None, typer.Option(help="Only of this category.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only safe, or only risky.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Records at most.")] = 20,
    html: Annotated[
        Path | None, typer.Option(help="Write one self-contained page.", metavar="FILE")
    ] = None,
) -> None:
    """Show records: pictures, what was found [F], the report [A], and how the prompt changed."""
    if verdict not in (None, "safe", "risky"):
        raise ConfigError(f"--verdict is safe or risky, not {verdict!r}")

    def wanted(found: Found) -> bool:
        record = _record(found).outcome
        assert not isinstance(record, DataError)
        return (
            (not id_ or record.id in id_ or record.family in id_)
            and category in (None, record.category)
            and verdict in (None, record.verdict)
        )

    chosen = islice(filter(wanted, scan(data)), limit)
    if html is not None:
        shown = write_page(chosen, html, title=str(data))
        err.print(f"{html}: {shown} records", markup=False)
    else:
        shown = 0
        for shown, found in enumerate(chosen, 1):  # noqa: B007
            out.print(views.record_view(_record(found).outcome))  # type: ignore[arg-type]
    if not shown:
        raise ConfigError("no record is like that; `vlmguard data stats` tells what there is")


@app.command()
def check(
    data: DataArgument,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Hash and decode every picture.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Find what is wrong: schema, pictures, ids, splits, lengths, labels, balance, coverage.

    Exit code 1 when anything is.
    """
    with _progress("checking", data) as step:
        report = check_data(data, pictures=pictures, on_record=step)
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        if report.coverage:
            for view in views.coverage_views(report.coverage):
                out.print(view)
        _print_findings([str(problem) for problem in report.problems])
        out.print(views.verdict_line(len(report.problems), report.tally.records))
    if report.problems:
        raise typer.Exit(1)


@app.command()
def dedupe(
    data: DataArgument,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write the data without duplicates to this new folder.", metavar="FOLDER"
        ),
    ] = None,
    similarity: Annotated[
        float, typer.Option(min=0.1, max=1, help="Least Jaccard similarity of word 3-grams.")
    ] = SIMILARITY,
    picture_bits: Annotated[
        int, typer.Option(min=0, max=16, help="Bits of 64 by which picture hashes may differ.")
    ] = PICTURE_BITS,
    as_json: JsonOption = False,
) -> None:
    """Find records that repeat earlier ones; --write leaves them out.

    Near records of one family are contrasts, and stay.
    """
    with _progress("comparing", data) as step:
        report = find_duplicates(
            scan(data), similarity=similarity, picture_bits=picture_bits, on_record=step
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        for found in report.duplicates[:_SHOWN]:
            out.print(views.duplicate_view(found))
        _tell_rest(len(report.duplicates))
        out.print(
            f"{report.records:,} records: {len(report.duplicates):,} duplicates, "
            f"{report.contrasts:,} near pairs within families (kept), "
            f"{report.pictures:,} pairs of near pictures"
        )
    if write is not None:
        summary = export_data(without_duplicates(scan(data), report), write, ExportFormat.JSONL)
        _tell_written(write, summary)


@app.command()
def decontaminate(
    data: DataArgument,
    against: Annotated[
        list[Path],
        typer.Option(
            "--against",
            help="Benchmark files (.json, .jsonl, .csv, .parquet), or folders of them.",
            metavar="PATH",
        ),
    ],
    containment: Annotated[
        float, typer.Option(min=0.01, max=1, help="Least share of 8-word runs in common.")
    ] = 0.5,
    similarity: Annotated[
        float, typer.Option(min=0.1, max=1, help="Least Jaccard similarity of word 3-grams.")
    ] = 0.6,
    as_json: JsonOption = False,
) -> None:
    """Find texts that stand in benchmarks, too. Exit code 1 when there are any."""
    with _progress("comparing", data) as step:
        report = find_overlaps(
            scan(data), against, containment=containment, similarity=similarity, on_record=step
        )
    if as_json:
        typer.echo(json.dumps(report.to_json(), ensure_ascii=False))
    else:
        for found in report.overlaps[:_SHOWN]:
            out.print(views.overlap_view(found))
        _tell_rest(len(report.overlaps))
        out.print(
            f"{report.records:,} records against {report.strings:,} texts of {report.files} files: "
            f"{len(report.overlaps):,} overlaps"
        )
    if report.overlaps:
        raise typer.Exit(1)


@app.command()
def export(
    data: DataArgument,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A new or empty folder.")],
    kind: Annotated[ExportFormat, typer.Option("--format", "-f", help="Who is to read it.")],
    blind: Annotated[
        bool, typer.Option("--blind", help="Evidence as text, for models that cannot see.")
    ] = False,
    layout: Annotated[
        Layout, typer.Option(help="The order in which the rewriter is to answer.")
    ] = Layout.VERDICT_FIRST,
    as_json: JsonOption = False,
) -> None:
    """Write training files, one a split, with the pictures they name."""
    with _progress("exporting", data) as step:

        def counted() -> Iterator[Found]:
            for found in scan(data):
                yield found
                step()

        summary = export_data(counted(), folder, kind, blind=blind, layout=layout)
    if as_json:
        told = {"written": dict(summary.written), "left_out": dict(summary.left_out)}
        typer.echo(json.dumps({"folder": str(folder), **told}))
    else:
        _tell_written(folder, summary)


def _record(found: Found) -> Found:
    """The same, when it is a record.

    Raises:
        DataError: it is none.
    """
    if isinstance(found.outcome, DataError):
        raise found.outcome
    return found


def _tell_written(folder: Path, summary: ExportSummary) -> None:
    counts = ", ".join(f"{n:,} {split}" for split, n in summary.written.items())
    err.print(Text(f"{folder}: {counts}"), soft_wrap=True)
    for reason, n in summary.left_out.items():
        err.print(Text(f"left out {n:,} {reason}", "yellow"), soft_wrap=True)


def _print_findings(lines: list[str]) -> None:
    for line in lines[:_SHOWN]:
        out.print(Text(line), soft_wrap=True)
    _tell_rest(len(lines))


def _tell_rest(count: int) -> None:
    if count > _SHOWN:
        out.print(Text(f"… and {count - _SHOWN:,} more; --json has all", "dim"))


@contextmanager
def _progress(what: str, data: Path) -> Iterator[Callable[[], None]]:
    """A bar on standard error while records are read; gives what counts one."""
    total = read_index(data).records if is_dataset(data) else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task(what, total=total)
        count = 0

        def step() -> None:
            nonlocal count
            count += 1
            if count % 100 == 0:
                bar.update(task, completed=count)

        yield step
