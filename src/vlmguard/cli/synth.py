"""``vlmguard synth``: preference pairs in, a training set for the rewriter out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vlmguard.cli.options import AllowRemoteOption, DetectorsOption, JsonOption, open_perceiver
from vlmguard.cli.show import out
from vlmguard.cli.synth_run import Plan, RayPlan, carry_out, print_estimate
from vlmguard.cli.synth_views import status_table, told
from vlmguard.errors import ConfigError
from vlmguard.perception import DEFAULT_DETECTORS
from vlmguard.synthesis import (
    Bar,
    Limits,
    Prices,
    Progress,
    RayCluster,
    RayModels,
    Recipe,
    RunSettings,
    Store,
    open_players,
    open_sources,
    parse_map,
    store_path,
)

app = typer.Typer(
    help="Make a training set for the rewriter out of preference pairs.", no_args_is_help=True
)


class Runner(StrEnum):
    """Where the stages run."""

    LOCAL = "local"
    RAY = "ray"


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
    models = {"reasoner": reasoner, "target": target, "judge": judge or reasoner}
    on_ray = _cluster(runner, ray_address, ray_workers, ray_gpus, models)
    limits = Limits(requests_per_minute=requests_per_minute, tokens_per_minute=tokens_per_minute)
    perceiver = open_perceiver(detectors)
    plan = Plan(
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
        else RayPlan(
            models=RayModels(specs=models, limits=limits, detectors=_detectors(detectors)),
            cluster=on_ray,
        ),
        prices=Prices(prompt=price_in, completion=price_out),
        folder=folder,
        benign_share=benign_share,
        licence=licence,
    )
    if dry_run:
        print_estimate(plan, as_json=as_json)
    else:
        carry_out(plan, as_json=as_json)


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


def _detectors(wanted: str | None) -> tuple[str, ...]:
    """Their names, for workers that make the perceiver of `open_perceiver` again."""
    if wanted is None:
        return tuple(DEFAULT_DETECTORS)
    names = tuple(name.strip() for name in wanted.split(",") if name.strip())
    return () if names == ("none",) else names


def _cluster(
    runner: Runner,
    address: str | None,
    workers: int | None,
    gpus: float | None,
    models: Mapping[str, str],
) -> RayCluster | None:
    """The cluster that the options name; ``None`` for the local runner."""
    if runner is Runner.RAY:
        for model in models.values():
            if gpus is None and model.startswith("vllm:"):
                raise ConfigError(
                    f"{model} runs in the Ray workers: say how many GPUs each of them gets, "
                    "e.g. --ray-gpus 1"
                )
        return RayCluster(address=address, workers=workers or 2, gpus=gpus or 0.0)
    given = {"--ray-address": address, "--ray-workers": workers, "--ray-gpus": gpus}
    for option, value in given.items():
        if value is not None:
            raise ConfigError(f"{option} {value} is of use with --runner ray only")
    return None
