"""From a run's store to what a report shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.answering import Entry
from vlmguard.evals.judges.unscored import nothing_to_judge
from vlmguard.evals.lineup import Suite, open_suites, with_policy
from vlmguard.evals.metrics import summarize
from vlmguard.evals.plan import EvalPlan
from vlmguard.evals.store import RunStore, StoredAnswer, judgement_key, write_json
from vlmguard.evals.types import Judgement, Results, Sample, SampleView

RUN_FILE = "run.json"
RESULTS_FILE = "results.json"
_PACKAGES = (
    "vlmguard-r1",
    "inspect-ai",
    "xllamacpp",
    "transformers",
    "torch",
    "rapidocr",
    "onnxruntime",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFile:
    """What a run folder says about its run: ``run.json``.

    Attributes:
        plan: the options.
        entries: who was asked, with the fingerprints of then.
        judges: names of the judges, in the plan's order.
        versions: package → version.
        dataset_hashes: benchmark → fingerprint of its data.
    """

    plan: EvalPlan
    entries: tuple[Entry, ...]
    judges: tuple[str, ...]
    versions: Mapping[str, str]
    dataset_hashes: Mapping[str, str]


_RUN_FILE = TypeAdapter(RunFile)


def describe_run(
    plan: EvalPlan, suites: Sequence[Suite], entries: Sequence[Entry], judges: Sequence[str]
) -> RunFile:
    """What is written down about a run. Reads all data files and pictures, for their hashes."""
    return RunFile(
        plan=plan,
        entries=tuple(entries),
        judges=tuple(judges),
        versions=_versions(),
        dataset_hashes={suite.name: suite.benchmark.fingerprint() for suite in suites},
    )


def write_run_file(folder: Path, run: RunFile) -> None:
    """Write ``run.json``."""
    write_json(folder / RUN_FILE, _RUN_FILE.dump_python(run, mode="json"))


def read_run_file(folder: Path) -> RunFile:
    """Read ``run.json``.

    Raises:
        ConfigError: there is none, or it is another version's.
    """
    path = folder / RUN_FILE
    try:
        return _RUN_FILE.validate_json(path.read_bytes())
    except OSError:
        raise ConfigError(
            f"{folder}: no run was started here (there is no {RUN_FILE}); name the --out of a "
            "`vlmguard eval`"
        ) from None
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}: not of this version: {where}: {first['msg']}") from None


def collect(run: RunFile, suites: Sequence[Suite], store: RunStore) -> Results:
    """Everything that a report shows, of the answers that are there."""
    views = tuple(_view(run, sample, store) for suite in suites for sample in suite.samples)
    plan = run.plan
    compared_to = with_policy(plan.compare_to, plan.policy)
    return Results(
        cells=summarize(views, seed=plan.seed, compared_to=compared_to),
        views=views,
        versions=run.versions,
        seeds={"seed": plan.seed},
        dataset_hashes=run.dataset_hashes,
        command=plan.command(),
        settings=plan.model_dump(mode="json", exclude={"out"}),
        compared_to=compared_to,
    )


def collect_folder(folder: Path) -> Results:
    """The same of a run's folder; a run that is going on may be looked at.

    Raises:
        ConfigError: no run was started there, or the benchmarks' data are not where they were.
        DataError: the stored answers are damaged.
    """
    known = read_run_file(folder)
    try:
        suites = open_suites(known.plan)
    except DataError as error:
        raise ConfigError(
            f"the samples of {folder} are read from the benchmarks' data, and {error}. "
            f"`vlmguard report {folder / RESULTS_FILE}` reports without samples."
        ) from error
    store = RunStore(folder, read_only=True)
    try:
        return collect(known, suites, store)
    finally:
        store.close()


def results_json(results: Results) -> dict[str, Any]:
    """Plain JSON values of everything but the samples: those are in ``answers.jsonl``."""
    return {
        "cells": [asdict(cell) for cell in results.cells],
        "versions": dict(results.versions),
        "seeds": dict(results.seeds),
        "dataset_hashes": dict(results.dataset_hashes),
        "command": results.command,
        "settings": dict(results.settings),
        "compared_to": results.compared_to,
    }


def write_results(folder: Path, results: Results) -> None:
    """Write ``results.json``."""
    write_json(folder / RESULTS_FILE, results_json(results))


def _view(run: RunFile, sample: Sample, store: RunStore) -> SampleView:
    answers = []
    for entry, repeat in product(run.entries, range(run.plan.repeats)):
        stored = store.answers.get(entry.key(sample, run.plan.sampling, repeat))
        if stored is not None:
            said = tuple(
                judgement
                for judge in run.judges
                if (judgement := _judgement(stored, judge, store)) is not None
            )
            answers.append((stored.answer, said))
    return SampleView(sample=sample, answers=tuple(answers))


def _judgement(stored: StoredAnswer, judge: str, store: RunStore) -> Judgement | None:
    if (why := nothing_to_judge(stored.answer)) is not None:
        return Judgement(judge=judge, unscored=why)
    found = store.judgements.get(judgement_key(stored, judge))
    return None if found is None else found.judgement


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
