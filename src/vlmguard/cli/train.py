"""``vlmguard train``: fine-tune a rewriter by a recipe."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from vlmguard.cli.show import err
from vlmguard.cli.show import out as console
from vlmguard.errors import MissingExtra
from vlmguard.training.recipe import load_recipe

if TYPE_CHECKING:
    from vlmguard.training.plan import Plan

_NEEDED = ("torch", "transformers", "peft", "trl", "datasets", "sklearn", "matplotlib", "gguf")


def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file, e.g. recipes/smollm2-cpu.yaml.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the run, in place of the recipe's."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Change a setting, e.g. optimizer.epochs=1. May be repeated.",
            metavar="KEY=VALUE",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint of a killed run.")
    ] = False,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Train no more: measure, calibrate and export what a run kept as its best.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Load everything, show what would be trained and what it costs, stop."
        ),
    ] = False,
) -> None:
    """Fine-tune a rewriter; the folder of the adapter is the only line on standard output."""
    overrides = [*(settings or []), *([f"output={out}"] if out is not None else [])]
    loaded = load_recipe(recipe, overrides)
    if any(importlib.util.find_spec(name) is None for name in _NEEDED):
        raise MissingExtra("training", "train")
    # torch and TRL take seconds to import; the other commands must not wait for them.
    from accelerate import PartialState  # noqa: PLC0415

    from vlmguard.training import plan, run  # noqa: PLC0415

    prepared = run.prepare(loaded)
    if dry_run:
        _show(plan.plan(prepared))
        return
    if measure:
        typer.echo(run.measure(prepared))
        return
    try:
        folder = run.train(prepared, resume=resume)
    except KeyboardInterrupt:
        err.print(Text("\nto go on, give the same command with --resume"), soft_wrap=True)
        raise
    if PartialState().is_main_process:
        typer.echo(folder)


def _show(plan: Plan) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    share = plan.trainable / plan.parameters
    records = ", ".join(f"{count:,} {split}" for split, count in plan.records.items())
    left_out = ", ".join(f"{count:,} {reason}" for reason, count in plan.left_out.items())
    for name, value in (
        ("records", records),
        ("left out", left_out or "none"),
        ("parameters", f"{plan.parameters:,}, {plan.trainable:,} trainable ({share:.1%})"),
        ("tokens an epoch", f"{plan.tokens:,}; the longest example has {plan.longest:,}"),
        ("steps", f"{plan.steps:,}"),
        ("memory", f"about {plan.memory_gb:.1f} GB"),
    ):
        table.add_row(Text(name, "bold"), Text(value))
    console.print(table)
    console.print(Text("\nprompt", "bold"))
    console.print(Text(plan.prompt), soft_wrap=True)
    console.print(Text("\ncompletion (underlined: the verdict)", "bold"))
    most = max(weight for _, weight in plan.completion)
    shown = Text()
    for token, weight in plan.completion:
        shown.append(token, "dim" if weight == 0 else "bold underline" if weight == most else "")
    console.print(shown, soft_wrap=True)
