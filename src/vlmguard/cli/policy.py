"""``vlmguard policy``: write, check and show policies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import out
from vlmguard.errors import ConfigError
from vlmguard.rewriting import CATEGORIES, load_policy
from vlmguard.rewriting.policy import policy_template

app = typer.Typer(help="Write, check and show policies.", no_args_is_help=True)


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="The file to write.")] = Path("policy.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
) -> None:
    """Write a commented policy file with the default rules."""
    try:
        with path.open("w" if force else "x", encoding="utf-8") as sink:
            sink.write(policy_template())
    except FileExistsError:
        raise ConfigError(f"{path} exists; --force overwrites it") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    out.print(f"wrote {path}", markup=False)


@app.command()
def check(path: Annotated[str, typer.Argument(help="A policy file or a preset.")]) -> None:
    """Validate a policy; every wrong field is named."""
    policy = load_policy(path)
    out.print(f"{path}: valid ({policy.name})", markup=False)


@app.command()
def show(
    path: Annotated[str, typer.Argument(help="A policy file or a preset.")] = "balanced",
    as_json: JsonOption = False,
) -> None:
    """Print a policy with all defaults filled in, and what it does by category."""
    policy = load_policy(path)
    values = policy.model_dump()
    values["threshold_if_uncalibrated"] = policy.threshold_for()
    values["actions"] = {item.name: policy.action_for(item.name) for item in CATEGORIES}
    if as_json:
        typer.echo(json.dumps(values))
    else:
        typer.echo(yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip())
