"""Tables for papers and spreadsheets: their structure, and text that tries to leave its place."""

from __future__ import annotations

import csv
import io
import re
from dataclasses import replace

import pytest
from markdown_it import MarkdownIt
from rich.console import Console

from tests.evals.report.material import DEFENCES, EVIL, TARGET, cell, evil_results, results
from vlmguard.evals.metrics import FIGURES
from vlmguard.evals.report import results_view
from vlmguard.evals.report.csv_rows import COLUMNS, csv_text
from vlmguard.evals.report.figures import KNOWN, metric_named, metrics_of
from vlmguard.evals.report.latex import escape as tex
from vlmguard.evals.report.latex import latex
from vlmguard.evals.report.layout import tables
from vlmguard.evals.report.markdown import markdown
from vlmguard.evals.report.published import comparisons, published
from vlmguard.evals.report.tradeoff import trade_off
from vlmguard.evals.types import Estimate, Results


def test_markdown_has_the_table_differences_and_published_figures() -> None:
    """A row reads as it is meant to: best in bold, interval, counts, times."""
    text = markdown(results())
    assert f"## {TARGET}".replace("_", r"\_") in text
    assert (
        "|  | guard | rubric:openai:judge-model | **8.0** [0.0, 16.0] |  | 50 | 0 | 0 | 0 "
        "| 1,900 ms | 1,000 ms | 1.60 | 480 |"
    ) in text
    assert "| figstep | guard | ASR % ↓ | −44.0 [−49.0, −39.0], p < 0.001 |" in text
    assert "| figstep | LLaVA-1.5-7B | none | ASR % ↓ | 84.0 | 84.0 (rubric:openai:judge-mo" in text
    rows = [line for line in text.splitlines() if line.startswith("| figstep | none")]
    assert rows
    assert len({line.count("|") for line in text.split("\n\n")[3].splitlines()}) == 1


def test_markdown_takes_names_for_text() -> None:
    """No name writes a tag, an emphasis or a column, as a Markdown reader sees it."""
    page = MarkdownIt("commonmark", {"html": True}).enable("table").render(markdown(evil_results()))
    assert "<script" not in page
    assert "<img" not in page
    broken = replace(results(), command="a ``` b\n# not a heading")
    assert "\n# not" not in markdown(broken)


def test_latex_compiles_in_principle() -> None:
    """Every row of a table has the columns that its head names, and specials are escaped."""
    text = latex(results())
    [columns] = re.findall(r"\\begin\{tabular\}\{(\w+)\}", text)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(rows) == 1 + 2 * len(DEFENCES)
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns)}
    assert r"\textbf{8.0} {\scriptsize [0.0, 16.0]}" in text
    assert tex("50% & a_b {x} #1 ~ ^ \\") == (
        r"50\% \& a\_b \{x\} \#1 \textasciitilde{} \textasciicircum{} \textbackslash{}"
    )
    body = [line for line in latex(evil_results()).splitlines() if not line.startswith("%")]
    assert not re.search(r"(?<!\\)[#_]", "".join(body).replace("tab:vlmguard-1", ""))


def test_csv_has_every_figure_once() -> None:
    """One line a figure and category; a cell without any figure keeps its counts."""
    bare = replace(cell("figstep", "ecso", "asr", 0.5), metrics={}, by_category={})
    found = replace(results(), cells=(*results().cells, bare))
    rows = list(csv.DictReader(io.StringIO(csv_text(found))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 10 * (1 + 3) + 1
    [guard] = [
        row
        for row in rows
        if (row["defence"], row["metric"], row["category"]) == ("guard", "asr", "")
    ]
    assert float(guard["value"]) == pytest.approx(0.08)
    assert float(guard["difference"]) == pytest.approx(-0.44)
    assert guard["pairs"] == "48"
    assert (rows[-1]["metric"], rows[-1]["unscored"]) == ("", "2")


def test_csv_is_no_formula() -> None:
    """A category that a spreadsheet would compute is text there; others are untouched."""
    figure = Estimate(value=0.5, low=0.4, high=0.6, n=2)
    odd = replace(
        cell("figstep", "none", "asr", 0.5),
        by_category={'=HYPERLINK("x")': {"asr": figure}, EVIL: {"asr": figure}},
    )
    rows = list(csv.DictReader(io.StringIO(csv_text(Results(cells=(odd,))))))
    assert [row["category"] for row in rows[1:]] == ['\'=HYPERLINK("x")', EVIL]


def test_terminal_shows_names_as_they_are() -> None:
    """Names with brackets are no markup, and all figures are there."""
    named = replace(cell("figstep", "none", "asr", 0.5), subset="[red]x[/red]", differences={})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(results_view(Results(cells=(named, *results().cells))))
    text = console.export_text()
    assert "[red]x[/red]" in text
    for figure in ("8.0", "[0.0, 16.0]", "−44.0", "[−49.0, −39.0]", "1 empty", "1 unscored"):
        assert figure in text


def test_terminal_cuts_nothing_off() -> None:
    """Eighty characters hold four figures with their intervals."""
    wide = Estimate(value=1.0, low=0.907, high=1.0, n=8)
    names = ("asr", "dsr", "over_refusal", "flagged_harmful")
    full = replace(cell("figstep", "guard", "asr", 0.5), metrics=dict.fromkeys(names, wide))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(results_view(Results(cells=(full,))))
    text = console.export_text()
    assert text.count("[90.7,") == text.count("100.0]") == 4, text
    assert "…" not in text
    assert "+1,000 ms" in text
    assert "+1.60 calls" in text


def test_metrics_are_shares_or_scores() -> None:
    """A share is shown in per cent; what leaves 0..1 is a score, whatever its name."""
    assert metric_named("safe_rate", share=True).number(0.853) == "85.3"
    assert metric_named("helpfulness", share=False).number(59.3) == "59.30"
    assert metric_named("my_own", share=True).head == "my own %"
    wide = Estimate(value=0.5, low=-1, high=3, n=2)
    [score] = metrics_of([replace(cell("figstep", "none", "asr", 0.5), metrics={"x": wide})])
    assert not score.share
    assert metric_named("asr", share=True).signed(-0.0001) == "0.0"


def test_every_figure_has_a_name_and_a_direction() -> None:
    """All figures of `FIGURES` are known to the report; agreement of judges is no percentage."""
    assert set(FIGURES) == set(KNOWN)
    assert KNOWN["kappa"].number(0.61) == "0.61"
    assert KNOWN["advice_safe_rate"].head == "advice with care % ↑"
    assert KNOWN["passed_harmless"].head == "guard: harmless passed % ↑"


def test_best_needs_something_to_compare() -> None:
    """Alone or all equal, nobody is best; lower is better where the metric says so."""
    [table] = tables(results())
    group = table.groups[0]
    best = [each.defence for each in group.cells if group.best(each, group.metrics[0])]
    assert best == ["guard"]
    [alone] = tables(Results(cells=(cell("figstep", "none", "asr", 0.5),)))
    assert not alone.groups[0].best(alone.cells[0], alone.metrics[0])


def test_trade_off_names_the_front() -> None:
    """Defences that another beats in both are not on the front; one axis alone is no plot."""
    [table] = tables(results())
    found = trade_off(table)
    assert found is not None
    assert [point.defence for point in found.points if point.on_front] == ["none", "guard"]
    guard = found.points[-1]
    assert [guard.safety, guard.use] == pytest.approx([0.92, 0.93])
    assert found.safety_from == ("figstep: ASR (rubric:openai:judge-model)",)
    [one] = tables(Results(cells=results().cells[:5]))
    assert trade_off(one) is None


def test_published_figures_name_paper_and_judge() -> None:
    """Every row says where it is from; ours stand beside only where target and defence agree."""
    assert all(row.paper and row.judge and row.metrics for row in published())
    found = comparisons(results())
    assert {each.published.benchmark for each in found} == {"figstep"}
    beside = {
        (each.published.target, each.published.defence): [own.defence for own in each.ours]
        for each in found
        if each.metric.name == "asr"
    }
    assert beside["LLaVA-1.5-7B", "ecso"] == ["ecso"]
    assert beside["LLaVA-1.5-7B", "eta"] == []
    assert beside["LLaVA-1.5-13B", "none"] == []
