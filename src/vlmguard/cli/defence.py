"""``vlmguard defence``: the defences there are, and the training of AdaShield-A's pool."""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from rich.table import Table

from vlmguard.cli.options import DetectorsOption, JsonOption, existing_file, open_perceiver
from vlmguard.cli.show import err, out
from vlmguard.defences import DEFENCES
from vlmguard.defences.adashield_pool import Pool, load_pool, save_pool
from vlmguard.defences.adashield_training import (
    ENOUGH,
    RoundResult,
    Trainer,
    TrainingRequest,
    is_refusal,
)
from vlmguard.defences.embedding import open_embedder
from vlmguard.defences.opening import KNOWN_DEFENCES
from vlmguard.engines import open_engine
from vlmguard.errors import ConfigError, DataError, InputError
from vlmguard.images import load_image

DEFAULT_EMBEDDER = "clip:openai/clip-vit-base-patch32"

app = typer.Typer(help="List defences, and train those that need it.", no_args_is_help=True)
train_app = typer.Typer(help="Train what a defence needs.", no_args_is_help=True)
app.add_typer(train_app, name="train")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """Show the defences: what they do, what they cost, what they need."""
    third_party = sorted(set(DEFENCES.names()) - {facts.name for facts in KNOWN_DEFENCES})
    if as_json:
        told = [asdict(facts) for facts in KNOWN_DEFENCES]
        typer.echo(json.dumps({"defences": told, "third_party": third_party}, ensure_ascii=False))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("defence", "what it does", "extra calls", "options (* needed)"):
        table.add_column(title, overflow="fold")
    for facts in KNOWN_DEFENCES:
        table.add_row(facts.name, facts.summary, facts.calls, facts.options)
    for name in third_party:
        table.add_row(name, "from another package", "", "")
    out.print(table)
    out.print(
        "\nName one with its options, e.g. --defence 'adashield-a?pool=pool.json' or "
        "'guard:smollm2?policy=strict'.",
        markup=False,
        soft_wrap=True,
    )


class _Line(BaseModel):
    """A line of the training file."""

    model_config = ConfigDict(extra="ignore")

    scenario: str = Field(min_length=1)
    prompt: str
    image: str = Field(min_length=1)


def _read_requests(path: Path) -> dict[str, list[TrainingRequest]]:
    """Scenario → requests, in the file's order.

    Raises:
        DataError: names the wrong line and field, or the picture that cannot be used.
    """
    found: dict[str, list[TrainingRequest]] = {}
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                told = _Line.model_validate_json(line)
                image = load_image(path.parent / told.image)
            except ValidationError as error:
                problem = error.errors(include_url=False)[0]
                place = ".".join(str(part) for part in problem["loc"]) or "the line"
                raise DataError(f"{place}: {problem['msg']}", path=path, line=number) from None
            except InputError as error:
                raise DataError(str(error), path=path, line=number) from None
            found.setdefault(told.scenario, []).append(
                TrainingRequest(query=told.prompt, image=image)
            )
    if not found:
        raise DataError("there are no requests in it", path=path)
    return found


@train_app.command("adashield-a")
def train_adashield_a(
    data: Annotated[
        Path,
        typer.Option(
            "--data",
            help="JSON Lines of requests that should be refused: scenario, prompt, image (a path "
            "beside the file).",
        ),
    ],
    target: Annotated[str, typer.Option("--target", "-t", help="The model to be defended.")],
    defender: Annotated[str, typer.Option("--defender", help="The model that writes prompts.")],
    out_file: Annotated[Path, typer.Option("--out", "-o", help="The pool to write.")],
    embedder: Annotated[
        str, typer.Option("--embedder", help="What compares pictures and texts.")
    ] = DEFAULT_EMBEDDER,
    detectors: DetectorsOption = None,
) -> None:
    """Train the prompt pool of AdaShield-A. A run that was stopped goes on where it was."""
    path = existing_file(data, "training file")
    try:
        requests = _read_requests(path)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}", path=path) from None
    fresh = Pool(
        embedder=embedder,
        target=target,
        defender=defender,
        data=hashlib.sha256(path.read_bytes()).hexdigest()[:16],
    )
    pool = _resumed(fresh, out_file)
    trainer = Trainer(
        target=open_engine(target),
        defender=open_engine(defender),
        embedder=open_embedder(embedder),
        perceiver=open_perceiver(detectors),
        refused=is_refusal,
        watch=_tell,
    )
    kept = {entry.scenario for entry in pool.entries}
    if kept:
        err.print(f"going on: {len(kept)} of {len(requests)} scenarios are in {out_file}")

    def keep(done: Pool) -> None:
        nonlocal kept
        save_pool(done, out_file)
        kept = {entry.scenario for entry in done.entries}

    try:
        pool = asyncio.run(trainer.fill(pool, requests, keep))
    except KeyboardInterrupt:
        err.print(
            f"\nstopped; {len(kept)} of {len(requests)} scenarios are in {out_file}. The same "
            "command goes on.",
            markup=False,
        )
        raise
    _summarize(pool, out_file)


def _resumed(fresh: Pool, path: Path) -> Pool:
    """What an earlier run of the same training left, or the fresh pool.

    Raises:
        ConfigError: the file is of another training.
    """
    if not path.exists():
        return fresh
    found = load_pool(path)
    for field in ("embedder", "target", "defender", "data"):
        before, now = getattr(found, field), getattr(fresh, field)
        if before != now:
            raise ConfigError(
                f"{path} was trained with another {field} ({before}, now {now}); name another "
                "--out, or remove it to start over"
            )
    return found


def _tell(result: RoundResult) -> None:
    name = "first prompt" if result.round == 0 else f"improvement {result.round}"
    note = f" ({result.note})" if result.note else ""
    err.print(
        f"{result.scenario}: {name}: {result.refused:.0%} refused{note}", markup=False, style="dim"
    )


def _summarize(pool: Pool, path: Path) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("scenario", "refused", "improvements"):
        table.add_column(title)
    for entry in pool.entries:
        short = "" if entry.refused >= ENOUGH else f"  below {ENOUGH:g}"
        table.add_row(entry.scenario, f"{entry.refused:.0%}{short}", str(entry.rounds))
    out.print(table)
    hint = f"wrote {path}; use it with --defence 'adashield-a?pool={path}'"
    out.print(hint, markup=False, soft_wrap=True)
