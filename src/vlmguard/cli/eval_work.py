"""What ``vlmguard eval`` does once its options are read: open, run, write, tell."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from vlmguard.cli.eval_views import EvalDisplay, estimate_view
from vlmguard.cli.show import err, out
from vlmguard.evals.answering import Entry
from vlmguard.evals.estimate import forecast
from vlmguard.evals.lineup import (
    Lineup,
    Suite,
    close_judges,
    open_judges,
    open_lineup,
    open_suites,
    survey,
)
from vlmguard.evals.plan import EvalPlan
from vlmguard.evals.run import Run, RunSettings
from vlmguard.evals.store import RunStore
from vlmguard.evals.types import Judge, Results

if TYPE_CHECKING:
    from vlmguard.evals.collect import RunFile


@dataclass(frozen=True, slots=True, kw_only=True)
class Outputs:
    """What is written beside the store and ``results.json``."""

    formats: tuple[str, ...]
    logs: bool

    @classmethod
    def of(cls, report: str, *, logs: bool) -> Outputs:
        """What the options say; a wrong format is told before anything runs."""
        from vlmguard.evals.report import parse_formats  # noqa: PLC0415

        return cls(formats=() if report == "none" else parse_formats(report), logs=logs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Everything that a plan names, open."""

    plan: EvalPlan
    suites: tuple[Suite, ...]
    lineup: Lineup
    judges: tuple[Judge, ...]

    @classmethod
    def of(cls, plan: EvalPlan) -> Opened:
        """Open it all, the cheapest first; nothing has run when a name is wrong."""
        lineup = open_lineup(plan)
        judges = open_judges(plan.judges)
        return cls(plan=plan, suites=open_suites(plan), lineup=lineup, judges=judges)


def execute(opened: Opened, outputs: Outputs, *, retry_failed: bool, as_json: bool) -> None:
    """Ask, judge, write and print; leaves with the exit code of `vlmguard eval`."""
    from vlmguard.evals.collect import describe_run, write_run_file  # noqa: PLC0415  # scipy

    plan = opened.plan
    names = [judge.name for judge in opened.judges]
    store = RunStore(plan.out)
    try:
        known = describe_run(plan, opened.suites, opened.lineup.entries, names)
        write_run_file(plan.out, known)
        going = _new_run(plan, opened.suites, store, retry_failed=retry_failed)
        finished = asyncio.run(_go(going, _answer_and_judge(going, opened)))
        results = _publish(known, opened.suites, store, outputs)
    finally:
        store.close()
    _tell(results, plan, finished=finished, as_json=as_json)


def judge_again(
    folder: Path,
    added: Sequence[str],
    outputs: Outputs,
    *,
    concurrency: int | None,
    as_json: bool,
) -> None:
    """Have more judges score a run's answers; opens neither targets nor defences."""
    from vlmguard.evals.collect import read_run_file, write_run_file  # noqa: PLC0415

    known = read_run_file(folder)
    plan = known.plan.model_copy(update={"out": folder})
    if concurrency is not None:
        plan = plan.model_copy(update={"concurrency": concurrency})
    judges = open_judges(added)
    plan = plan.model_copy(update={"judges": tuple(dict.fromkeys([*plan.judges, *added]))})
    suites = open_suites(plan)
    names = _named([*known.judges, *(each.name for each in judges)])
    known = replace(known, plan=plan, judges=names)
    store = RunStore(folder)
    try:
        going = _new_run(plan, suites, store)
        finished = asyncio.run(_go(going, _judge(going, known.entries, judges)))
        write_run_file(folder, known)
        results = _publish(known, suites, store, outputs)
    finally:
        store.close()
    _tell(results, plan, finished=finished, as_json=as_json)


def _named(judges: Sequence[str]) -> tuple[str, ...]:
    """Each once; one whose words, phrases or grades changed takes the place of its former self."""
    return tuple({name.rpartition("#")[0] or name: name for name in judges}.values())


async def _answer_and_judge(going: Run, opened: Opened) -> bool:
    lineup = opened.lineup
    try:
        await lineup.load()
        answered = await going.answer(lineup.contenders)
    finally:
        await lineup.aclose()
    return answered and await _judge(going, lineup.entries, opened.judges)


async def _judge(going: Run, entries: Sequence[Entry], judges: Sequence[Judge]) -> bool:
    try:
        return await going.judge(entries, judges)
    finally:
        await close_judges(judges)


def _new_run(
    plan: EvalPlan, suites: Sequence[Suite], store: RunStore, *, retry_failed: bool = False
) -> Run:
    return Run(
        [sample for suite in suites for sample in suite.samples],
        store=store,
        settings=RunSettings(
            sampling=plan.sampling,
            concurrency=plan.concurrency,
            repeats=plan.repeats,
            retry_failed=retry_failed,
        ),
    )


async def _go(run: Run, work: Coroutine[Any, Any, bool]) -> bool:
    """Run with a display; the first Ctrl-C ends it in order, the second at once."""
    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(name, lambda: _stop(run))
            handled.append(name)
        except (NotImplementedError, RuntimeError):  # Windows, or not in the main thread
            break
    shown = asyncio.create_task(EvalDisplay(run.progress).follow())
    try:
        return await work
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)
        for name in handled:
            loop.remove_signal_handler(name)


def _stop(run: Run) -> None:
    if not run.progress.stopping:
        err.print("stopping: waiting for the answers that are on their way (Ctrl-C again: do not)")
    run.stop()


def _publish(known: RunFile, suites: Sequence[Suite], store: RunStore, outputs: Outputs) -> Results:
    """Write ``results.json``, the reports and Inspect's logs."""
    from vlmguard.evals.collect import collect, write_results  # noqa: PLC0415
    from vlmguard.evals.report import write_report  # noqa: PLC0415

    results = collect(known, suites, store)
    write_results(store.folder, results)
    if outputs.formats:
        write_report(results, store.folder, outputs.formats)
    if outputs.logs:
        from vlmguard.evals.inspect_logs import write_logs  # noqa: PLC0415  # slow to import

        write_logs(store.folder / "logs", results)
    return results


def _tell(results: Results, plan: EvalPlan, *, finished: bool, as_json: bool) -> None:
    """Print the table and how to go on; leave with 130 when stopped, 1 when answers are missing."""
    if as_json:
        from vlmguard.evals.collect import results_json  # noqa: PLC0415

        typer.echo(json.dumps(results_json(results), ensure_ascii=False))
    elif results.cells:
        from vlmguard.evals.report import results_view  # noqa: PLC0415

        out.print(results_view(results))
    if not finished:
        err.print("stopped; what is done is stored. Run the same command again to go on.")
        raise typer.Exit(130)
    written = sorted(path.name for path in plan.out.iterdir() if path.name != "lock")
    err.print(f"{plan.out}: {', '.join(written)}", soft_wrap=True)
    failed = [
        answer.error
        for view in results.views
        for answer, _ in view.answers
        if answer.error is not None
    ]
    if failed:
        err.print(
            f"answers missing: {len(failed):,}, e.g.: {failed[0]}. "
            "The same command tries again those whose failure may pass, all with --retry-failed.",
            soft_wrap=True,
            markup=False,
        )
        raise typer.Exit(1)


def estimate(plan: EvalPlan, probe: int | None, *, as_json: bool) -> None:
    """Print what is left to ask, measured by a probe where one is wanted."""
    lineup, judges = open_lineup(plan), open_judges(plan.judges)
    if probe is not None:
        _probe(plan.model_copy(update={"limit": min(probe, plan.limit or probe)}))
    suites = survey(plan)
    store = RunStore(plan.out, read_only=True) if plan.out.is_dir() else None
    try:
        found = forecast(
            [sample for suite in suites for sample in suite.samples],
            lineup.entries,
            [judge.name for judge in judges],
            store=store,
            sampling=plan.sampling,
            concurrency=plan.concurrency,
            repeats=plan.repeats,
        )
    finally:
        if store is not None:
            store.close()
    problems = {suite.name: suite.problem for suite in suites if suite.problem is not None}
    view, values = estimate_view(found, problems)
    if as_json:
        typer.echo(json.dumps(values))
    else:
        out.print(view)


def _probe(plan: EvalPlan) -> None:
    """Answer the first samples; the run will find them in its store."""
    opened = Opened.of(plan)
    store = RunStore(plan.out)
    try:
        going = _new_run(plan, opened.suites, store)

        async def work() -> bool:
            try:
                return await going.answer(opened.lineup.contenders)
            finally:
                await opened.lineup.aclose()

        if not asyncio.run(_go(going, work())):
            raise typer.Exit(130)
    finally:
        store.close()
