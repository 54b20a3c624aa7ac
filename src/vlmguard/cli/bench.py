"""``vlmguard bench``: which benchmarks there are, what of their data is here, how samples look."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vlmguard.cli import bench_views as views
from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.errors import ConfigError, VLMGuardError
from vlmguard.evals.benchmarks import BENCHMARKS, Check, data_dir, open_benchmark
from vlmguard.evals.types import Sample

app = typer.Typer(help="List benchmarks, check their data, show samples.", no_args_is_help=True)

DataOption = Annotated[
    Path | None,
    typer.Option(
        "--data",
        envvar="VLMGUARD_BENCHMARKS",
        metavar="FOLDER",
        help="Folder that holds the benchmarks' folders. Default: benchmarks in the user's cache.",
    ),
]


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the benchmarks, with size, kinds of samples, score, source and licence."""
    if as_json:
        typer.echo(json.dumps([views.facts_json(facts) for facts in BENCHMARKS.values()]))
        return
    out.print(views.list_view(list(BENCHMARKS.values())))
    err.print(
        "Own items: custom:PATH, a folder or a file. Options: figstep?tiny, xstest?sample=50&seed=1"
        " …, see docs/benchmarks.md.",
        style="dim",
    )


@app.command()
def check(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Benchmarks; all of them when left out."),
    ] = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count what is here against the published numbers; tell what is missing and how to get it.

    Exit code 1 when a benchmark that was named cannot be run.
    """
    folder = _existing(data)
    opened = [open_benchmark(name, data=folder) for name in names or BENCHMARKS]
    checks: list[Check] = []
    with err.status("") as status:
        for benchmark in opened:
            status.update(f"checking {benchmark.spec}")
            checks.append(benchmark.check())
    if as_json:
        found = [report.to_json() for report in checks]
        typer.echo(json.dumps({"data": str(folder), "benchmarks": found}, ensure_ascii=False))
    else:
        out.print(views.check_view(checks))
        for report in checks:
            for remark in views.remarks_view(report):
                out.print(remark, soft_wrap=True)
        err.print(Text(f"data: {folder}", "dim"), soft_wrap=True)
    if names and not all(report.ready for report in checks):
        raise typer.Exit(1)


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A benchmark, e.g. figstep?tiny.")],
    data: DataOption = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Samples at most.")] = 5,
    save: Annotated[
        Path | None,
        typer.Option(help="Write the samples' pictures into this folder.", metavar="FOLDER"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show samples as they are run: prompt, pictures, kind, goal and reference."""
    if save is not None:
        _make_folder(save)
    shown = 0
    for sample in open_benchmark(name, data=_existing(data)).samples():
        if shown == limit:
            break
        shown += 1
        saved = [] if save is None else _save(sample, save)
        if as_json:
            typer.echo(json.dumps(views.sample_json(sample, saved), ensure_ascii=False))
        else:
            out.print(views.sample_view(sample, saved))
    if not shown:
        raise ConfigError(f"{name}: there are no samples like that")


def _existing(data: Path | None) -> Path:
    """The data directory.

    Raises:
        ConfigError: one was named, and it is none.
    """
    if data is not None and not data.is_dir():
        raise ConfigError(f"--data {data} is not a folder")
    return data_dir(data)


def _make_folder(folder: Path) -> None:
    """Make it where it is not there.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--save {folder}: {error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise ConfigError(f"--save {folder} may not be written to")


def _save(sample: Sample, folder: Path) -> list[Path | VLMGuardError]:
    """The sample's pictures as files, or why one is none."""
    told: list[Path | VLMGuardError] = []
    stem = "".join(letter if letter.isalnum() else "_" for letter in sample.id)
    for number, picture in enumerate(sample.pictures, 1):
        try:
            image = picture.load()
        except VLMGuardError as error:
            told.append(error)
            continue
        kind = "txt" if sample.description is not None else image.media_type.rpartition("/")[2]
        path = folder / f"{sample.benchmark}-{stem}-{number}.{kind}"
        path.write_bytes(image.data)
        told.append(path)
    return told
