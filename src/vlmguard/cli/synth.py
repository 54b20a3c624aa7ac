"""``vlmguard synth``: preference pairs in, a training set for the rewriter out."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmguard.cli.options import AllowRemoteOption, DetectorsOption, JsonOption, open_perceiver
from vlmguard.cli.show import err, out
from vlmguard.cli.synth_views import SynthDisplay, dry_run_table, status_table, told
from vlmguard.errors import ConfigError
from vlmguard.perception import DEFAULT_DETECTORS
from vlmguard.synthesis import (
    Bar,
    Limits,
    LocalRunner,
    Player,
    Prices,
    Progress,
    RayCluster,
    RayModels,
    RayRunner,
    Recipe,
    RunSettings,
    Source,
    Store,
    card_facts,
    estimate,
    open_players,
    open_sources,
    parse_map,
    publish,
    recipe_key,
    store_path,
)

app = typer.Typer(
    help="Make a training set for the rewriter out of preference pairs.", no_args_is_help=True
)


class Runner(StrEnum):
    """Where the stages run."""

    LOCAL = "local"
    RAY = "ray"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ray:
    """What ``--runner ray`` needs beyond the rest."""

    models: RayModels
    cluster: RayCluster


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """Everything that the options of ``run`` say."""

    sources: list[Source]
    players: Mapping[str, Player]
    models: Mapping[str, str]
    recipe: Recipe
    settings: RunSettings
    ray: _Ray | None
    prices: Prices
    folder: Path
    benign_share: float | None
    licence: str


@app.command()
def run(
    source: Annotated[
        list[str],
        typer.Option(
            "--source",
            "-s",
            help="Seeds: a file or folder (format sniffed), KIND:PATH with spa-vl, vlguard, "
            "vlsbench, jsonl, json, csv or parquet, or hf:ORG/NAME?split=train. Repeatable.",
        ),
    ],
    folder: Annotated[Path, typer.Option("--out", "-o", help="Folder of the dataset.")],
    reasoner: Annotated[
        str,
        typer.Option("--reasoner", help="Model of hindsight, causal analysis and rewriting."),
    ],
    target: Annotated[
        str, typer.Option("--target", "-t", help="Model that rewrites are tried on.")
    ] = "smollm2",
    judge: Annotated[
        str | None, typer.Option("--judge", help="Model that grades answers. Default: reasoner.")
    ] = None,
    column_map: Annotated[
        str,
        typer.Option("--map", help="Columns of tables, e.g. prompt=question,images=img."),
    ] = "",
    licence: Annotated[
        str, typer.Option("--licence", help="Licence of seeds that state none.")
    ] = "",
    attempts: Annotated[int, typer.Option(min=1, help="Rewrites to try for a seed.")] = 3,
    samples: Annotated[
        int, typer.Option(min=0, help="Answers to draw where one is missing; 0 draws none.")
    ] = 4,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Try rewrites on the target.")
    ] = True,
    min_safety: Annotated[int, typer.Option(min=0, max=10, help="Of the new answer.")] = 7,
    min_helpfulness: Annotated[int, typer.Option(min=0, max=10, help="Of the new answer.")] = 5,
    answer_tokens: Annotated[int, typer.Option(min=1, help="Longest answer of the target.")] = 512,
    check_benign: Annotated[
        bool, typer.Option("--check-benign", help="Have benign labels confirmed by the reasoner.")
    ] = False,
    benign_share: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Highest share of harmless records; the paper has 0.099."),
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", "-c", min=1, max=4096, help="Seeds at once.")
    ] = 16,
    requests_per_minute: Annotated[
        float | None, typer.Option(min=0.01, help="Limit for each hosted model.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(min=1, help="Limit for each hosted model, both ways.")
    ] = None,
    max_failure_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Stop above this share of the last seeds.")
    ] = 0.5,
    failure_window: Annotated[int, typer.Option(min=1, help="How many last seeds.")] = 50,
    price_in: Annotated[
        float, typer.Option(min=0, help="Of hosted models, per million prompt tokens.")
    ] = 0.0,
    price_out: Annotated[
        float, typer.Option(min=0, help="Of hosted models, per million answer tokens.")
    ] = 0.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first seeds.")] = None,
    runner: Annotated[
        Runner, typer.Option("--runner", help="On this machine, or on a Ray cluster.")
    ] = Runner.LOCAL,
    ray_address: Annotated[
        str | None,
        typer.Option(help="auto, HOST:PORT or ray://HOST:PORT. Default: start Ray here."),
    ] = None,
    ray_workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that share --concurrency. Default: 2.")
    ] = None,
    ray_gpus: Annotated[
        float | None, typer.Option(min=0, help="GPUs of each worker, for models in it.")
    ] = None,
    detectors: DetectorsOption = None,
    allow_remote: AllowRemoteOption = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print counts and cost, ask no model.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn seeds into a training set; killed or stopped, the same command goes on where it was."""
    on_ray = _cluster(runner, ray_address, ray_workers, ray_gpus)
    models = {"reasoner": reasoner, "target": target, "judge": judge or reasoner}
    limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    perceiver = open_perceiver(detectors)
    plan = _Plan(
        sources=open_sources(source, chosen=parse_map(column_map), licence=licence),
        players=open_players(models, limits=limits, perceiver=perceiver),
        models=models,
        recipe=Recipe(
            attempts=attempts,
            draws=samples,
            verify=verify,
            trust_benign=not check_benign,
            bar=Bar(safety=min_safety, helpfulness=min_helpfulness, answer_tokens=answer_tokens),
        ),
        settings=RunSettings(
            concurrency=concurrency,
            limit=limit,
            allow_remote=allow_remote,
            max_failure_rate=max_failure_rate,
            failure_window=failure_window,
        ),
        ray=None
        if on_ray is None
        else _Ray(
            models=RayModels(specs=models, limits=limits, detectors=_detectors(detectors)),
            cluster=on_ray,
        ),
        prices=Prices(prompt=price_in, completion=price_out),
        folder=folder,
        benign_share=benign_share,
        licence=licence,
    )
    if dry_run:
        _dry_run(plan, as_json=as_json)
    else:
        _run(plan, as_json=as_json)


@app.command()
def status(
    folder: Annotated[Path, typer.Argument(help="The --out of a run.")],
    as_json: JsonOption = False,
) -> None:
    """Show where a run is, while it runs or after it."""
    path = store_path(folder)
    if not path.is_file():
        raise ConfigError(f"{folder}: no run was started here (there is no {path.name})")
    store = Store(path, read_only=True)
    try:
        facts = store.facts()
        progress = Progress(total=facts.get("total"))
        progress.add(store.outcome_counts())
        calls = store.call_counts()
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(told(progress, facts, calls)))
    else:
        out.print(status_table(progress, facts, calls))


def _dry_run(plan: _Plan, *, as_json: bool) -> None:
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


def _run(plan: _Plan, *, as_json: bool) -> None:
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
            err.print(
                f"stopped: {progress.finished:,} seeds are done and stored. "
                "Run the same command again to go on."
            )
            raise typer.Exit(130)
        store.keep_facts({**facts, "total": total})
        card = card_facts(plan.sources, plan.models, plan.recipe, progress, licence=plan.licence)
        published = publish(
            store, plan.folder, total=total, card=card, benign_share=plan.benign_share
        )
    finally:
        store.close()
    failed = progress.kinds["error"]
    if as_json:
        values = told(progress, facts, ())
        values |= {"records": {"risky": published.risky, "benign": published.benign}}
        typer.echo(json.dumps(values))
    else:
        spare = published.benign_left_out
        beside = f" ({spare:,} more left out by --benign-share)" if spare else ""
        err.print(
            f"{plan.folder}: {published.risky:,} risky and {published.benign:,} harmless "
            f"records{beside}; {progress.kinds['rejected']:,} rejected, "
            f"{progress.kinds['aside']:,} set aside: {store_path(plan.folder).parent} says why",
            soft_wrap=True,
        )
    if plan.benign_share and published.benign_left_out == 0 and published.risky:
        share = published.benign / (published.risky + published.benign)
        if share < plan.benign_share - 0.005:
            err.print(
                f"note: there are fewer harmless seeds than asked for: {share:.1%} of the records"
            )
    if failed:
        err.print(
            f"{failed:,} seeds failed, since a model did not answer; the last one: "
            f"{progress.failure}. Run the same command again to try them once more.",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _detectors(wanted: str | None) -> tuple[str, ...]:
    """Their names, for workers that make the perceiver of `open_perceiver` again."""
    if wanted is None:
        return tuple(DEFAULT_DETECTORS)
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    return () if names == ("none",) else names


def _cluster(
    runner: Runner, address: str | None, workers: int | None, gpus: float | None
) -> RayCluster | None:
    """The cluster that the options name; ``None`` for the local runner."""
    if runner is Runner.RAY:
        return RayCluster(address=address, workers=workers or 2, gpus=gpus or 0.0)
    given = {"--ray-address": address, "--ray-workers": workers, "--ray-gpus": gpus}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} {value} is of use with --runner ray only")
    return None


def _runner(plan: _Plan, store: Store) -> LocalRunner:
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


def _count(plan: _Plan) -> int | None:
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
    if not runner.progress.stopping:
        err.print("stopping: waiting for the answers that are on their way (Ctrl-C again: do not)")
    runner.stop()
