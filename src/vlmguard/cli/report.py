"""``vlmguard report``: what an evaluation found, as files to read and to hand on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from vlmguard.cli.show import err, out
from vlmguard.errors import ConfigError

if TYPE_CHECKING:
    from vlmguard.evals.types import Results


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="The --out of a `vlmguard eval`, or a JSON file that a report or a run wrote.",
        ),
    ],
    formats: Annotated[
        str,
        typer.Option("--format", "-f", help="Comma-separated: html, md, csv, tex, json."),
    ] = "html",
    folder: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for the files. Default: that of the results."),
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Print the table as well.")] = False,
    open_page: Annotated[
        bool, typer.Option("--open", help="Open the page in the browser.")
    ] = False,
) -> None:
    """Write a report of an evaluation: a page with plots and samples, and tables for papers."""
    from vlmguard.evals.report import parse_formats, results_view, write_report  # noqa: PLC0415

    wanted = parse_formats(formats)
    if open_page and "html" not in wanted:
        raise ConfigError(f"--open needs the page, and --format {formats} has no html")
    results = read_results(source)
    if show:
        out.print(results_view(results))
    paths = write_report(results, folder or (source if source.is_dir() else source.parent), wanted)
    for path in paths:
        out.print(Text(str(path)), soft_wrap=True)
    if not results.views:
        err.print(
            Text(f"{source} has no samples, so the report has none; name the run's folder for them")
        )
    if open_page:
        _open(next(path for path in paths if path.suffix == ".html"))


def read_results(source: Path) -> Results:
    """The results of a run's folder, or of a file.

    Raises:
        DataError: there is no such file or folder, or it holds no results.
        ConfigError: the folder is no run's, or its benchmarks' data are not here.
    """
    from vlmguard.evals.collect import RESULTS_FILE, RUN_FILE, collect_folder  # noqa: PLC0415
    from vlmguard.evals.report import load_results  # noqa: PLC0415

    if not source.is_dir():
        return load_results(source)
    if not (source / RUN_FILE).exists() and (source / RESULTS_FILE).exists():
        return load_results(source / RESULTS_FILE)
    return collect_folder(source)


def _open(page: Path) -> None:
    import webbrowser  # noqa: PLC0415

    if not webbrowser.open(page.resolve().as_uri()):
        err.print(f"no browser was found; the page is {page.resolve()}", soft_wrap=True)
