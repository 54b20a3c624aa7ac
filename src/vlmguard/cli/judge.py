"""``vlmguard judge``: which judges there are, and how far to trust one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.errors import ConfigError
from vlmguard.evals.judges import RUBRICS, open_judge

if TYPE_CHECKING:
    from vlmguard.evals.calibration import Agreement
    from vlmguard.evals.types import Estimate

app = typer.Typer(
    help="List judges; check one against human labels; have people grade a run.",
    no_args_is_help=True,
)

_KINDS = {
    "refusal": "phrases that decline, seven languages; asks no model",
    "refusal?phrases=FILE": "a benchmark's own phrases, one a line or a JSON list",
    "MODEL": "e.g. openai:gpt-4o: the rubric of each sample's benchmark",
    "sheet:GRADES.csv": "grades given by hand in a sheet of `vlmguard judge sheet`",
    "majority:A+B+C": "several judges: the majority's scores, with kappa",
}


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """List the judges, and the rubrics that models are asked."""
    scores = {name: [question.prompt for question in asked] for name, asked in RUBRICS.items()}
    if as_json:
        typer.echo(json.dumps({"judges": _KINDS, "rubrics": scores}))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("judge", style="bold")
    table.add_column("what it is", overflow="fold")
    for name, told in _KINDS.items():
        table.add_row(Text(name), Text(told))
    for name in RUBRICS:
        table.add_row(Text(f"{name}:MODEL"), Text(f"the rubric {name} for every sample"))
    out.print(table)


@app.command()
def check(
    labelled: Annotated[
        Path, typer.Argument(metavar="LABELLED", help="JSON lines of answers with human labels.")
    ],
    judge: Annotated[str, typer.Option("--judge", "-j", help="Comma-separated judges.")],
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, help="Answers at once.")
    ] = 8,
    seed: Annotated[int, typer.Option(help="Of intervals.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Accuracy and kappa of judges against people, with 95 % intervals."""
    from vlmguard.evals.calibration import calibrate, read_labelled  # noqa: PLC0415  # needs scipy

    records = read_labelled(labelled)
    parts = [part.strip() for part in judge.split(",") if part.strip()]
    judges = [open_judge(part) for part in dict.fromkeys(parts)]

    async def run() -> list[Agreement]:
        found: list[Agreement] = []
        for each in judges:
            try:
                found += await calibrate(records, each, concurrency=concurrency, seed=seed)
            finally:
                await each.aclose()
        return found

    with err.status(f"judging {len(records)} answers"):
        found = asyncio.run(run())
    if as_json:
        typer.echo(json.dumps({"records": len(records), "agreement": [_json(e) for e in found]}))
        return
    _show(found)
    silent = [each.name for each in judges if all(row.judge != each.name for row in found)]
    for name in silent:
        err.print(Text(f"{name} gives none of the scores that the labels are about", "yellow"))


@app.command()
def sheet(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a `vlmguard eval`.")],
    to: Annotated[Path, typer.Option("--out", "-o", help="A .csv file, or one to go on with.")],
    benchmark: Annotated[
        str | None, typer.Option(help="Comma-separated: only these benchmarks.")
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(min=1, help="So many samples of each benchmark and kind, by chance."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of choice and order.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Write a run's answers for people to grade: shuffled, without saying who answered."""
    from vlmguard.evals.collect import collect_folder  # noqa: PLC0415  # needs scipy
    from vlmguard.evals.judges.sheet import GRADES, chosen, write_sheet  # noqa: PLC0415

    if to.suffix != ".csv":
        raise ConfigError(f"--out {to}: a sheet is a .csv file")
    views = collect_folder(run).views
    names = list(dict.fromkeys(view.sample.benchmark for view in views))
    wanted = [part.strip() for part in (benchmark or "").split(",") if part.strip()] or names
    if unknown := [name for name in wanted if name not in names]:
        raise ConfigError(f"{run} has no benchmark {unknown[0]!r}; it has: {', '.join(names)}")
    kept = [view for view in views if view.sample.benchmark in wanted]
    count = write_sheet(to, chosen(kept, count=sample, seed=seed), seed=seed)
    if as_json:
        typer.echo(json.dumps({"rows": count.rows, "graded": count.graded, "grades": GRADES}))
        return
    out.print(
        f"{to}: {count.rows:,} answers, {count.graded:,} graded. In the column grade write one of "
        f"{', '.join(GRADES)}; then: vlmguard eval judge {run} --judge sheet:{to}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _show(found: Sequence[Agreement]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("judge", "score"):
        table.add_column(name, overflow="fold")
    columns = ("accuracy", "kappa", "both yes", "only judge", "only person", "both no", "unscored")
    for name in columns:
        table.add_column(name, justify="right")
    for each in found:
        counts = (each.table[cell] for cell in ((1, 1), (0, 1), (1, 0), (0, 0)))
        table.add_row(
            Text(each.judge),
            each.score,
            _figure(each.accuracy),
            _figure(each.kappa),
            *map(str, counts),
            str(each.unscored),
        )
    out.print(table)
    for each in found:
        if each.wrong:
            shown = ", ".join(each.wrong[:10]) + (", …" if len(each.wrong) > 10 else "")
            err.print(Text(f"{each.score}: differs on {shown}", "dim"), soft_wrap=True)


def _figure(found: Estimate | None) -> str:
    return "–" if found is None else f"{found.value:.2f} [{found.low:.2f}–{found.high:.2f}]"


def _json(each: Agreement) -> dict[str, Any]:
    def interval(found: Estimate | None) -> dict[str, float] | None:
        if found is None:
            return None
        return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}

    return {
        "judge": each.judge,
        "score": each.score,
        "accuracy": interval(each.accuracy),
        "kappa": interval(each.kappa),
        "confusion": [
            {"person": person, "judge": other, "answers": count}
            for (person, other), count in each.table.items()
        ],
        "unscored": each.unscored,
        "wrong": list(each.wrong),
    }
