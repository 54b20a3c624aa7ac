"""How records and findings about them look in a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE
from rich.columns import Columns
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlmguard.data import Evidence, Tally, TrainingRecord
from vlmguard.data.coverage import FACETS, Coverage
from vlmguard.data.decontaminate import Overlap
from vlmguard.data.dedupe import Duplicate
from vlmguard.data.worddiff import word_diff

_COLOURS = {"safe": "green", "risky": "yellow"}
_DIFF_STYLES = {"same": "", "removed": "red strike", "added": "green"}


def stats_view(tally: Tally) -> RenderableType:
    """Counts side by side, lengths below."""
    tables: list[RenderableType] = []
    for facet in tally.counts:
        table = Table(title=facet, title_justify="left", show_header=False, box=SIMPLE)
        table.add_column()
        table.add_column(justify="right")
        table.add_column(justify="right", style="dim")
        for value, count in tally.ranked(facet):
            table.add_row(Text(value), f"{count:,}", f"{count / tally.records:.1%}")
        tables.append(table)
    lengths = Table(title="lengths in characters", title_justify="left", box=SIMPLE)
    lengths.add_column("field")
    for head in ("records", "mean", "median", "95 %", "longest"):
        lengths.add_column(head, justify="right")
    for name, measured in tally.lengths().items():
        cells = (
            measured.count,
            round(measured.mean),
            measured.median,
            measured.p95,
            measured.longest,
        )
        lengths.add_row(name, *(f"{cell:,}" for cell in cells))
    total = Text(f"{tally.records:,} records, {tally.pictures:,} pictures", "bold")
    return Group(total, Columns(tables, padding=(0, 2)), lengths)


def record_view(record: TrainingRecord) -> RenderableType:
    """Everything that a record says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for turn in record.earlier:
        table.add_row(turn.role, Text(turn.text, "dim"))
    for number, ref in enumerate(record.images, 1):
        table.add_row(f"Picture {number}", Text(ref.path))
    for number, seen in enumerate(record.evidence, 1):
        table.add_row(f"Evidence {number}", Text(evidence_line(seen)))
    table.add_row("Prompt", Text(record.prompt or "(none)"))
    for feature in record.features:
        table.add_row("Feature", Text(f"{feature.feature} → {feature.harm}  “{feature.span}”"))
    if record.rewrite is not None:
        table.add_row("Text", Text(record.textual or ""))
        table.add_row("Picture", Text(record.visual or ""))
        table.add_row("Together", Text(record.multimodal or ""))
        table.add_row("Rewrite", Text(record.rewrite))
        diff = Text()
        for piece in word_diff(record.prompt, record.rewrite):
            diff.append(piece.text, style=_DIFF_STYLES[piece.kind])
        table.add_row("Change", diff)
    facts = [record.verdict, record.category, record.split, record.source]
    facts += [str(record.meta[facet]) for facet in FACETS if facet in record.meta]
    return Panel(
        table,
        title=Text(record.id),
        title_align="left",
        subtitle=Text(" · ".join(fact for fact in facts if fact)),
        subtitle_align="right",
        border_style=_COLOURS[record.verdict],
    )


def evidence_line(seen: Evidence) -> str:
    """What was found in a picture, on one line."""
    parts = []
    if seen.text:
        parts.append(f"text “{' / '.join(seen.text)}”")
    parts += [f"{label} {probability:.2f}" for label, probability in seen.objects]
    if seen.nudity is not None:
        parts.append(f"nudity {seen.nudity:.2f}")
    return "; ".join(parts) or "nothing found"


def coverage_views(coverage: Coverage) -> Iterator[RenderableType]:
    """Tables of categories by carrier, style and language: risky/harmless."""
    for facet in FACETS:
        found = coverage.table(facet)
        table = Table(
            title=f"category by {facet}: risky/harmless", title_justify="left", box=SIMPLE
        )
        table.add_column("")
        for column in found.columns:
            table.add_column(column, justify="right")
        for category, cells in found.rows.items():
            shown = [
                Text(f"{cell.risky}/{cell.harmless}", "" if cell.risky else "dim") for cell in cells
            ]
            table.add_row(category, *shown)
        yield table


def verdict_line(problems: int, records: int) -> Text:
    """How a check ended."""
    if problems:
        return Text(f"{problems:,} problems in {records:,} records", "bold red")
    return Text(f"{records:,} records, no problems", "green")


def duplicate_view(found: Duplicate) -> RenderableType:
    """Both texts of a pair."""
    head = Text(f"{found.kind} {found.similarity:.2f}  {found.later} repeats {found.first}", "bold")
    if found.contradiction:
        head.append("  (their verdicts differ)", "red")
    return _pair(head, ("first", found.first_text), ("later", found.later_text))


def overlap_view(found: Overlap) -> RenderableType:
    """Both texts of an overlap."""
    head = Text(f"{found.kind} {found.score:.2f}  {found.id}, {found.part}", "bold")
    return _pair(head, ("here", found.text), (found.benchmark, found.benchmark_text))


def _pair(head: Text, *texts: tuple[str, str]) -> RenderableType:
    return Group(head, *(Text.assemble((f"  {name}: ", "dim"), text) for name, text in texts))
