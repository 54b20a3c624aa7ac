"""Reports of results: HTML, Markdown, CSV, LaTeX and JSON files, and a view for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.report.csv_rows import csv_text
from vlmguard.evals.report.files import write_parts
from vlmguard.evals.report.html import html_parts
from vlmguard.evals.report.latex import latex
from vlmguard.evals.report.markdown import markdown
from vlmguard.evals.report.saved import json_parts, load_results, save_results
from vlmguard.evals.report.terminal import results_view
from vlmguard.evals.types import Results

__all__ = [
    "FORMATS",
    "load_results",
    "parse_formats",
    "results_view",
    "save_results",
    "write_report",
]

_WRITERS: Mapping[str, Callable[[Results], Iterable[str]]] = {
    "html": html_parts,
    "md": lambda results: [markdown(results)],
    "csv": lambda results: [csv_text(results)],
    "tex": lambda results: [latex(results)],
    "json": json_parts,
}
FORMATS = tuple(_WRITERS)
_OTHER_NAMES = {"markdown": "md", "latex": "tex"}


def write_report(results: Results, out_dir: Path, formats: Sequence[str]) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``report.csv``, ``report.tex``, ``report.json``.

    Args:
        results: what to report.
        out_dir: made where it is missing; files in it are replaced.
        formats: of `FORMATS`.

    Returns:
        The files, in the order of ``formats``.

    Raises:
        ConfigError: an unknown format.
        MissingExtra: a format needs a package that is not installed.
        DataError: a file cannot be written.
    """
    wanted = parse_formats(",".join(formats))
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot be made: {error.strerror}", path=out_dir) from error
    paths = []
    for name in wanted:
        path = out_dir / f"report.{name}"
        write_parts(path, _WRITERS[name](results))
        paths.append(path)
    return paths


def parse_formats(text: str) -> tuple[str, ...]:
    """``"html,md"`` as the formats' names; each once.

    Raises:
        ConfigError: one that there is not, or none at all.
    """
    given = [name.strip().lower() for name in text.split(",") if name.strip()]
    names = dict.fromkeys(_OTHER_NAMES.get(name, name) for name in given)
    for name in names:
        if name not in _WRITERS:
            raise ConfigError(f"format {name!r}: unknown; known: {', '.join(FORMATS)}")
    if not names:
        raise ConfigError(f"no format is named; known: {', '.join(FORMATS)}")
    return tuple(names)
