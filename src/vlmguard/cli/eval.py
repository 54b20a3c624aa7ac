"""``vlmguard eval``: benchmarks × targets × defences, judged, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vlmguard.cli.eval_work import Opened, Outputs, estimate, execute, judge_again
from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import out
from vlmguard.errors import ConfigError
from vlmguard.evals.plan import load_plan


class _RunByDefault(TyperGroup):
    """``vlmguard eval figstep`` is short for ``vlmguard eval run figstep``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, "--help"}:
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_RunByDefault,
    help="Measure how safe targets are behind defences. The word 'run' may be left out: "
    "vlmguard eval figstep,xstest --target smollm2 --defence none,guard --data DIR",
    no_args_is_help=True,
)

OutOption = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Folder of the run, or its new name. Default: runs/eval."),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a run.")]
FormatOption = Annotated[
    str,
    typer.Option("--report", "-f", help="Comma-separated: html, md, csv, tex, json; or none."),
]
LogsOption = Annotated[
    bool, typer.Option("--logs/--no-logs", help="Write logs for `inspect view`.")
]


@app.command()
def run(
    what: Annotated[
        str,
        typer.Argument(
            metavar="BENCHMARKS",
            help="Comma-separated benchmarks (see `vlmguard bench list`), or a YAML recipe.",
        ),
    ],
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="Comma-separated models that answer. [smollm2]"),
    ] = None,
    defence: Annotated[
        str | None,
        typer.Option("--defence", "-d", help="Comma-separated defences. [none,guard]"),
    ] = None,
    compare_to: Annotated[
        str | None, typer.Option(help="The defence that differences are to. [none]")
    ] = None,
    judge: Annotated[
        str | None, typer.Option("--judge", "-j", help="Comma-separated judges. [refusal]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder that holds the benchmarks' folders.")
    ] = None,
    folder: OutOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first samples of each benchmark.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Samples at once. [8]")
    ] = None,
    repeats: Annotated[
        int | None,
        typer.Option(min=1, help="Answers to each sample; the majority counts (SIUO: 3). [1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of samplers and intervals. [0]")] = None,
    policy: Annotated[
        str | None, typer.Option("--policy", "-p", help="The guard's policy. [balanced]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer of a target. [512]")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Of the targets' answers. [0]")
    ] = None,
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Ask again where an earlier run got no answer at all."),
    ] = False,
    report: FormatOption = "html",
    logs: LogsOption = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts, calls, tokens and time; ask no model.")
    ] = False,
    probe: Annotated[
        int | None,
        typer.Option(min=1, help="With --dry-run: answer so many samples of each, to measure."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Ask and judge; killed or stopped, the same command goes on where it was."""
    recipe = Path(what) if what.endswith((".yaml", ".yml")) else None
    plan = load_plan(
        recipe,
        {
            "benchmarks": None if recipe else what,
            "targets": target,
            "defences": defence,
            "compare_to": compare_to,
            "judges": judge,
            "data": data,
            "out": folder,
            "limit": limit,
            "concurrency": concurrency,
            "repeats": repeats,
            "seed": seed,
            "policy": policy,
            "max_tokens": max_tokens,
            "temperature": temperature,
        },
    )
    if probe is not None and not dry_run:
        raise ConfigError(f"--probe {probe} is of use with --dry-run only")
    outputs = Outputs.of(report, logs=logs)
    if dry_run:
        estimate(plan, probe, as_json=as_json)
        return
    execute(Opened.of(plan), outputs, retry_failed=retry_failed, as_json=as_json)


@app.command()
def judge(
    folder: RunArgument,
    judge: Annotated[str, typer.Option("--judge", "-j", help="Comma-separated judges.")],
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", min=1, help="Answers at once.")
    ] = None,
    report: FormatOption = "html",
    logs: LogsOption = True,
    as_json: JsonOption = False,
) -> None:
    """Judge a run's answers by more judges; nothing is generated again."""
    added = [name.strip() for name in judge.split(",") if name.strip()]
    outputs = Outputs.of(report, logs=logs)
    judge_again(folder, added, outputs, concurrency=concurrency, as_json=as_json)


@app.command()
def logs(folder: RunArgument) -> None:
    """Write a run's logs for `inspect view` (again), e.g. after a crash."""
    from vlmguard.evals.collect import collect_folder  # noqa: PLC0415
    from vlmguard.evals.inspect_logs import write_logs  # noqa: PLC0415  # slow to import

    paths = write_logs(folder / "logs", collect_folder(folder))
    out.print(f"{len(paths)} logs; look at them with: inspect view --log-dir {folder / 'logs'}")
