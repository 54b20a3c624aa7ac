"""How benchmarks look in a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE
from rich.console import RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlmguard.errors import VLMGuardError
from vlmguard.evals.benchmarks import Check, DrawnPicture, Facts, FilePicture, Part
from vlmguard.evals.types import Picture, Sample

_KIND_STYLES = {"harmful": "yellow", "harmless": "green", "advice": "cyan"}
_MISSING_SHOWN = 3


def facts_json(facts: Facts) -> dict[str, Any]:
    """What is published about a benchmark."""
    return {
        "name": facts.name,
        "title": facts.title,
        "kinds": facts.kinds.split(", "),
        "scored": facts.scored,
        "counts": dict(facts.counts),
        "options": sorted(facts.options),
        "source": facts.source,
        "licence": facts.licence,
        "hub": facts.hub,
        "get": facts.get,
    }


def list_view(all_facts: Sequence[Facts]) -> RenderableType:
    """One row a benchmark."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("samples", justify="right")
    table.add_column("what, and how it is scored")
    for facts in all_facts:
        counts = list(facts.counts.values())
        known = [count for count in counts if count is not None]
        total = f"{sum(known):,}" if known and len(known) == len(counts) else "?"
        what = Text.assemble(facts.title, "\n", (facts.scored, "dim"))
        table.add_row(Text(facts.name, "bold"), total, what)
    return table


def check_view(checks: Sequence[Check]) -> RenderableType:
    """One row a benchmark, and one a subset where there are several."""
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("benchmark")
    table.add_column("samples here", justify="right", no_wrap=True)
    table.add_column("pictures", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for check in checks:
        spec, pictures, state = Text(check.spec, "bold"), _pictures(check), _state(check)
        if check.problem or len(check.parts) == 1:
            here = "–" if check.problem else _count(check.parts[0])
            table.add_row(spec, here, pictures, state)
            continue
        table.add_row(spec, "", pictures, state)
        for part in check.parts:
            table.add_row(Text(f"  {part.subset or '(no subset)'}"), _count(part))
    return table


def remarks_view(check: Check) -> list[Text]:
    """Notes about a benchmark; what keeps it from being run, and the fix."""
    told = [f"{note}." for note in check.notes]
    if check.problem is not None:
        told.append(check.problem)
    elif check.missing:
        named = ", ".join(check.missing[:_MISSING_SHOWN])
        more = ", …" if len(check.missing) > _MISSING_SHOWN else ""
        told.append(f"{len(check.missing):,} pictures are missing ({named}{more}). {check.get}")
    elif not check.ready:
        told.append("there are no samples like that.")
    return [Text.assemble((check.spec, "bold"), f": {text}") for text in told]


def sample_view(sample: Sample, saved: Sequence[Path | VLMGuardError]) -> RenderableType:
    """Everything that a sample says."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("Prompt", Text(sample.prompt))
    for number, picture in enumerate(sample.pictures, 1):
        table.add_row(f"Picture {number}", Text(_picture(picture, sample)))
    for told in saved:
        table.add_row("Saved", Text(str(told), "" if isinstance(told, Path) else "red"))
    if sample.goal:
        table.add_row("Goal", Text(sample.goal))
    for name, value in sample.reference.items():
        table.add_row(name, Text(value, "dim"))
    where = " · ".join(filter(None, (sample.subset, sample.category)))
    return Panel(
        table,
        title=Text.assemble(
            (f"{sample.benchmark} {sample.id}  ", "bold"),
            (sample.kind, _KIND_STYLES[sample.kind]),
        ),
        title_align="left",
        subtitle=Text(where, "dim"),
        subtitle_align="right",
    )


def sample_json(sample: Sample, saved: Sequence[Path | VLMGuardError]) -> dict[str, Any]:
    """Everything that a sample says, as plain JSON values."""
    return {
        "benchmark": sample.benchmark,
        "id": sample.id,
        "kind": sample.kind,
        "subset": sample.subset,
        "category": sample.category,
        "prompt": sample.prompt,
        "pictures": [_picture(picture, sample) for picture in sample.pictures],
        "description": sample.description,
        "goal": sample.goal,
        "reference": dict(sample.reference),
        "saved": [str(told) for told in saved],
    }


def _picture(picture: Picture, sample: Sample) -> str:
    if isinstance(picture, FilePicture):
        return f"{picture.path or f'MISSING {picture.name}'}"
    if isinstance(picture, DrawnPicture):
        return f"drawn: {picture.text}"
    if sample.description is not None:
        return f"described: {sample.description}"
    return "in the table"


def _count(part: Part) -> str:
    return f"{part.found:,}" + ("" if part.published is None else f" of {part.published:,}")


def _pictures(check: Check) -> str:
    if check.problem:
        return ""
    told = [f"{check.pictures:,}"] if check.pictures else []
    told += [f"{check.drawn:,} drawn"] if check.drawn else []
    told += [f"{len(check.missing):,} missing"] if check.missing else []
    return ", ".join(told)


def _state(check: Check) -> Text:
    if check.problem:
        return Text("cannot be read", "red")
    if not check.ready:
        return Text("pictures missing" if check.missing else "no samples", "red")
    if not check.complete:
        return Text("a part", "yellow")
    known = all(part.published is not None for part in check.parts)
    return Text("complete" if known else "ready", "green")
