"""How a synthesis run looks in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vlmguard.cli.live import Display
from vlmguard.synthesis import (
    STAGES,
    CallCount,
    Estimate,
    Kind,
    Prices,
    Progress,
    is_hosted,
)

_LABELS: Mapping[Kind, str] = {
    "accepted": "accepted",
    "benign": "harmless",
    "rejected": "rejected",
    "aside": "set aside",
    "error": "failed",
}


def counted(count: int, name: str) -> str:
    """``1 seed``, ``1,200 seeds``."""
    return f"{count:,} {name}" if count == 1 else f"{count:,} {name}s"


class SynthDisplay(Display):
    """Of a run of `vlmguard synth`."""

    def __init__(self, progress: Progress, prices: Prices) -> None:
        self._progress = progress
        self._prices = prices

    def _line(self) -> str:
        return _summary(self._progress, self._prices)

    def _table(self) -> RenderableType:
        return Group(_stage_table(self._progress), Text(_summary(self._progress, self._prices)))


def _stage_table(progress: Progress) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "done", "ended here", "calls", "stored", "tokens in", "tokens out"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in STAGES:
        counts = progress.stages[stage]
        numbers = (
            counts.done,
            counts.ended,
            counts.calls,
            counts.stored,
            counts.prompt_tokens,
            counts.completion_tokens,
        )
        if any(numbers):
            table.add_row(stage, *(f"{number:,}" for number in numbers))
    return table


def _summary(progress: Progress, prices: Prices) -> str:
    total = "?" if progress.total is None else f"{progress.total:,}"
    parts = [
        f"{progress.finished:,}/{total} seeds",
        *(f"{count:,} {_LABELS[kind]}" for kind, count in progress.kinds.items()),
        _rate(progress.per_second()),
    ]
    if progress.resumed:
        parts.insert(1, f"{progress.resumed:,} from earlier runs")
    if prices != Prices():
        parts.append(f"cost {progress.cost(prices):.2f}")
    left = progress.seconds_left()
    if left:
        parts.append(f"{timedelta(seconds=round(left))} left")
    return " · ".join(parts)


def _rate(per_second: float) -> str:
    return f"{per_second:.0f}/s" if per_second >= 10 else f"{per_second:.2g}/s"


def status_table(
    progress: Progress, facts: Mapping[str, Any], calls: Sequence[CallCount]
) -> RenderableType:
    """What ``synth status`` prints."""
    head = Table(box=None, show_header=False, pad_edge=False)
    head.add_row("sources", ", ".join(facts.get("sources", ())))
    for role, model in facts.get("models", {}).items():
        head.add_row(role, str(model))
    total = progress.total
    share = f" ({progress.finished / total:.1%})" if total else ""
    head.add_row("seeds", f"{progress.finished:,} of {'?' if total is None else total}{share}")
    for kind, count in progress.kinds.items():
        head.add_row(_LABELS[kind], f"{count:,}")
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "model", "calls", "tokens in", "tokens out"):
        table.add_column(name, justify="left" if name in {"stage", "model"} else "right")
    for stage in sorted(calls, key=lambda item: STAGES.index(item.stage)):
        table.add_row(
            stage.stage,
            Text(stage.model),
            f"{stage.calls:,}",
            f"{stage.prompt_tokens:,}",
            f"{stage.completion_tokens:,}",
        )
    return Group(head, Text(), table)


def told(
    progress: Progress, facts: Mapping[str, Any], calls: Sequence[CallCount]
) -> dict[str, Any]:
    """The same as plain JSON values."""
    return {
        "sources": facts.get("sources", []),
        "models": facts.get("models", {}),
        "total": progress.total,
        "finished": progress.finished,
        "outcomes": dict(progress.kinds),
        "stages": {
            stage: {"done": counts.done, "ended": counts.ended}
            for stage, counts in progress.stages.items()
        },
        "calls": [
            {
                "stage": count.stage,
                "model": count.model,
                "calls": count.calls,
                "prompt_tokens": count.prompt_tokens,
                "completion_tokens": count.completion_tokens,
            }
            for count in calls
        ],
    }


def dry_run_table(
    found: Estimate, models: Mapping[str, str], prices: Prices
) -> tuple[RenderableType, dict[str, Any]]:
    """What ``--dry-run`` prints, as text and as plain JSON values."""
    hosted = [role for role, model in models.items() if is_hosted(model)]
    paid = found.totals(hosted)
    cost = prices.cost(paid.prompt_tokens, paid.completion_tokens)
    lines = Table(box=None, show_header=False, pad_edge=False)
    for name, count in (
        ("seeds", found.seeds),
        ("done by an earlier run", found.done),
        ("harmless, no call needed", found.benign),
        ("to be set aside", found.aside),
        ("to do", found.to_do),
        ("  with an answer to sample", found.sampled),
        ("pictures", found.pictures),
    ):
        lines.add_row(name, f"{count:,}")
    for reason, count in found.reasons.items():
        lines.add_row(f"  {reason}", f"{count:,}")
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "by", "calls", "tokens in", "tokens out"):
        table.add_column(name, justify="left" if name in {"stage", "by"} else "right")
    parts = []
    for (stage, role), part in found.parts.items():
        numbers = (round(part.calls), round(part.prompt_tokens), round(part.completion_tokens))
        table.add_row(stage, role, *(f"{number:,}" for number in numbers))
        keys = ("calls", "prompt_tokens", "completion_tokens")
        parts.append({"stage": stage, "role": role, **dict(zip(keys, numbers, strict=True))})
    ending = Text(
        f"Hosted models ({', '.join(hosted) or 'none'}): about {paid.prompt_tokens:,.0f} tokens in "
        f"and {paid.completion_tokens:,.0f} out"
        + (f", cost about {cost:,.2f}. " if prices != Prices() else "; name prices for the cost. ")
        + "These are estimates: no model was asked."
    )
    values = {
        "seeds": found.seeds,
        "done": found.done,
        "benign": found.benign,
        "aside": found.aside,
        "reasons": found.reasons,
        "to_do": found.to_do,
        "to_sample": found.sampled,
        "pictures": found.pictures,
        "calls": parts,
        "cost": round(cost, 4),
    }
    return Group(lines, Text(), table, Text(), ending), values
