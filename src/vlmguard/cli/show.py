"""How results look in a terminal."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from vlmguard.types import ImageEvidence, Rewrite

out = Console(highlight=False)
"""Results."""
err = Console(stderr=True, highlight=False)
"""Notices, progress, errors."""

_COLOURS = {"safe": "green", "risky": "yellow"}
_ACTIONS = {
    "allow": "passes unchanged",
    "monitor": "passes unchanged, marked",
    "rewrite": "prompt rewritten",
    "refuse": "refused",
}


def rewrite_panel(rewrite: Rewrite, *, title: str = "VLMGuard-R1") -> Panel:
    """A decision: verdict, evidence, reasoning, prompt."""
    parts: list[RenderableType] = [_verdict_line(rewrite)]
    if rewrite.failure:
        parts.append(Text(f"The guard failed, and the policy is open: {rewrite.failure}", "red"))
    if rewrite.evidence:
        parts += [Text(), *(_evidence(n, seen) for n, seen in enumerate(rewrite.evidence, 1))]
    if rewrite.report:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="bold")
        table.add_column(overflow="fold")
        table.add_row("Text", Text(rewrite.report.textual))
        table.add_row("Picture", Text(rewrite.report.visual))
        table.add_row("Together", Text(rewrite.report.multimodal))
        parts += [Text(), table]
    if rewrite.changed:
        parts += [Text(), Text("Rewritten prompt", "bold"), Text(rewrite.prompt)]
    return Panel(
        Group(*parts),
        title=title,
        title_align="left",
        subtitle=_timings(rewrite),
        subtitle_align="right",
        border_style=_COLOURS[rewrite.verdict],
    )


def text_panel(title: str, text: str, *, style: str = "none") -> Panel:
    """Plain text in a frame; never read as markup."""
    return Panel(Text(text or "(empty)"), title=title, title_align="left", border_style=style)


def _verdict_line(rewrite: Rewrite) -> Text:
    line = Text()
    line.append(rewrite.verdict, style=f"bold {_COLOURS[rewrite.verdict]}")
    line.append(f"  risk {rewrite.risk:.2f}")
    if rewrite.category:
        line.append(f"  {rewrite.category}")
    line.append(f"  → {_ACTIONS[rewrite.action]}", style="dim")
    return line


def _evidence(number: int, seen: ImageEvidence) -> Text:
    line = Text(f"Picture {number}: ", "bold")
    parts = []
    if seen.text:
        hidden = sum(box.hidden for box in seen.text)
        note = f" ({hidden} lines hidden from the eye)" if hidden else ""
        parts.append(f"text “{' / '.join(box.text for box in seen.text)}”{note}")
    if seen.objects:
        labels = ", ".join(f"{item.label} {item.probability:.2f}" for item in seen.objects)
        parts.append(f"perhaps {labels}")
    if seen.nudity is not None and seen.nudity >= 0.3:
        parts.append(f"nudity {seen.nudity:.2f}")
    if seen.frames_skipped:
        parts.append(f"{seen.frames_skipped} frames not inspected")
    parts += [f"{name} failed: {why}" for name, why in seen.failed.items()]
    line.append("; ".join(parts) or "nothing found", style="not bold")
    return line


def _timings(rewrite: Rewrite) -> str:
    steps = " · ".join(f"{step} {ms:.0f} ms" for step, ms in rewrite.timings_ms.items())
    return f"[dim]{steps}[/dim]" if steps else ""
