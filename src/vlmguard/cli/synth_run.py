"""What ``vlmguard synth run`` does once its options are read."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from vlmguard.cli.show import err, out
from vlmguard.cli.synth_views import SynthDisplay, counted, dry_run_table, told
from vlmguard.synthesis import (
    LocalRunner,
    Player,
    Prices,
    Progress,
    Published,
    RayCluster,
    RayModels,
    RayRunner,
    Recipe,
    RunSettings,
    Source,
    Store,
    card_facts,
    estimate,
    publish,
    recipe_key,
    store_path,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RayPlan:
    """What ``--runner ray`` needs beyond the rest."""

    models: RayModels
    cluster: RayCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that the options of ``run`` say."""

    sources: list[Source]
    players: Mapping[str, Player]
    models: Mapping[str, str]
    recipe: Recipe
    settings: RunSettings
    ray: RayPlan | None
    prices: Prices
    folder: Path
    benign_share: float | None
    licence: str


def print_estimate(plan: Plan, *, as_json: bool) -> None:
    """``--dry-run``: what there is to do and to pay; asks no model, and writes nothing."""
    path = store_path(plan.folder)
    store = Store(path, read_only=True) if path.is_file() else None
    try:
        found = asyncio.run(
            estimate(
                plan.sources,
                plan.recipe,
                recipe_key(plan.players, plan.recipe),
                store,
                can_sample=True,
                limit=plan.settings.limit,
            )
        )
    finally:
        if store is not None:
            store.close()
    table, values = dry_run_table(found, plan.models, plan.prices)
    if as_json:
        typer.echo(json.dumps(values))
    else:
        out.print(table)


def carry_out(plan: Plan, *, as_json: bool) -> None:
    """Run, publish, and tell what came of it.

    Raises:
        typer.Exit: 130 when it was stopped, 1 when seeds failed.
        VLMGuardError: whatever ended it.
    """
    for item in plan.sources:
        next(item.seeds(), None)  # wrong columns are told before anything is written
    store = Store(store_path(plan.folder))
    try:
        runner = _runner(plan, store)
        progress = runner.progress
        progress.total = _count(plan)
        facts: dict[str, Any] = {
            "sources": [item.name for item in plan.sources],
            "models": dict(plan.models),
            "total": progress.total,
        }
        store.keep_facts(facts)
        total = asyncio.run(_go(runner, SynthDisplay(progress, plan.prices)))
        if total is None:
            err.print(_stopped(progress), markup=False, soft_wrap=True)
            raise typer.Exit(130)
        store.keep_facts({**facts, "total": total})
        card = card_facts(plan.sources, plan.models, plan.recipe, progress, licence=plan.licence)
        published = publish(
            store, plan.folder, total=total, card=card, benign_share=plan.benign_share
        )
    finally:
        store.close()
    if as_json:
        values = told(progress, facts, ())
        values |= {"records": {"risky": published.risky, "benign": published.benign}}
        typer.echo(json.dumps(values))
    else:
        err.print(_finished(plan, progress, published), markup=False, soft_wrap=True)
    if plan.benign_share and published.benign_left_out == 0 and published.risky:
        share = published.benign / (published.risky + published.benign)
        if share < plan.benign_share - 0.005:
            err.print(
                f"note: there are fewer harmless seeds than asked for: {share:.1%} of the records"
            )
    failed = progress.kinds["error"]
    if failed:
        err.print(
            f"{counted(failed, 'seed')} failed, since a model did not answer"
            f"{'' if failed == 1 else '; the last one'}: {progress.failure}. Run the same command "
            "again to try once more.",
            markup=False,
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _finished(plan: Plan, progress: Progress, published: Published) -> str:
    spare = published.benign_left_out
    beside = f" ({spare:,} more left out by --benign-share)" if spare else ""
    return (
        f"{plan.folder}: {published.risky:,} risky and {published.benign:,} harmless "
        f"records{beside}; {progress.kinds['rejected']:,} rejected, "
        f"{progress.kinds['aside']:,} set aside: {store_path(plan.folder).parent} says why"
    )


def _stopped(progress: Progress) -> str:
    said = f"stopped: {counted(progress.finished, 'seed')} done and stored"
    if progress.abandoned:
        said += f"; {counted(progress.abandoned, 'call')} not waited for, to be made again"
    return f"{said}. Run the same command again to go on."


def _runner(plan: Plan, store: Store) -> LocalRunner:
    if plan.ray is None:
        return LocalRunner(
            plan.sources,
            players=plan.players,
            recipe=plan.recipe,
            store=store,
            folder=plan.folder,
            settings=plan.settings,
        )
    return RayRunner(
        plan.sources,
        models=plan.ray.models,
        recipe=plan.recipe,
        store=store,
        folder=plan.folder,
        settings=plan.settings,
        cluster=plan.ray.cluster,
    )


def _count(plan: Plan) -> int | None:
    counts = [item.count() for item in plan.sources]
    known = [count for count in counts if count is not None]
    if len(known) < len(counts):
        return plan.settings.limit
    return min(sum(known), plan.settings.limit or sum(known))


async def _go(runner: LocalRunner, display: SynthDisplay) -> int | None:
    """Run with a display; the first Ctrl-C ends it in order, the second at once."""
    loop = asyncio.get_running_loop()
    handled: list[signal.Signals] = []
    for name in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(name, lambda: _stop(runner))
            handled.append(name)
        except (NotImplementedError, RuntimeError):  # Windows, or not in the main thread
            break
    shown = asyncio.create_task(display.follow())
    try:
        return await runner.run()
    finally:
        shown.cancel()
        await asyncio.gather(shown, return_exceptions=True)
        for name in handled:
            loop.remove_signal_handler(name)


def _stop(runner: LocalRunner) -> None:
    progress = runner.progress
    if not progress.stopping and progress.asking:
        err.print(
            f"stopping: waiting up to {runner.settings.grace_s:.0f} s for "
            f"{counted(progress.asking, 'answer')} on the way (Ctrl-C again: do not wait)",
            markup=False,
            soft_wrap=True,
        )
    runner.stop()
