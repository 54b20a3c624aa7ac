r"""The report as LaTeX: one ``table`` a target, for ``\input`` in a paper (package booktabs)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vlmguard.evals.report.figures import Metric
from vlmguard.evals.report.layout import Group, TargetTable, repeats_note, tables
from vlmguard.evals.types import Cell, Results

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "−": r"$-$",
    "–": "--",
}


def latex(results: Results) -> str:
    """The tables, with interval in small print, the best of a group in bold."""
    return "\n".join(_lines(results)) + "\n"


def escape(text: str) -> str:
    """Text that TeX prints as it is, on one line."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _lines(results: Results) -> Iterator[str]:
    yield r"% \usepackage{booktabs}"
    if results.command:
        yield f"% {' '.join(results.command.split())}"
    note = repeats_note(results)
    for number, table in enumerate(tables(results), start=1):
        yield from _table(table, number, note)


def _table(table: TargetTable, number: int, note: str) -> Iterator[str]:
    heads = ["Benchmark", "Defence", "Judge", *(metric.head for metric in table.metrics)]
    heads += ["$n$", "Unscored", "Added ms", "Calls"]
    yield r"\begin{table}"
    yield r"\centering\small"
    yield f"\\begin{{tabular}}{{lll{'r' * (len(heads) - 3)}}}"
    yield r"\toprule"
    yield f"{' & '.join(h if h == '$n$' else escape(h) for h in heads)} \\\\"
    for group in table.groups:
        yield r"\midrule"
        for place, cell in enumerate(group.cells):
            yield f"{' & '.join(_row(group, cell, table.metrics, first=place == 0))} \\\\"
    yield r"\bottomrule"
    yield r"\end{tabular}"
    told = (
        "with 95\\,\\% intervals. Unscored answers (failed and empty ones included) "
        "enter no figure; added time is a median, calls are a mean per answer."
    )
    told += f" {escape(note)}" if note else ""
    yield f"\\caption{{{escape(table.target)}, {told}}}"
    yield f"\\label{{tab:vlmguard-{number}}}"
    yield r"\end{table}"


def _row(group: Group, cell: Cell, metrics: Sequence[Metric], *, first: bool) -> list[str]:
    return [
        escape(group.title) if first else "",
        escape(cell.defence),
        escape(cell.judge),
        *(_figure(group, cell, metric) for metric in metrics),
        str(cell.answers),
        str(cell.unscored),
        f"{cell.defence_ms:.0f}",
        f"{cell.calls:.2f}",
    ]


def _figure(group: Group, cell: Cell, metric: Metric) -> str:
    estimate = cell.metrics.get(metric.name)
    if estimate is None:
        return "--"
    value = escape(metric.number(estimate.value))
    if group.best(cell, metric):
        value = f"\\textbf{{{value}}}"
    return f"{value} {{\\scriptsize {escape(metric.interval(estimate))}}}"
