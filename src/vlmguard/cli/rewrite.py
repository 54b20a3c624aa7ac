"""``vlmguard rewrite``: the decision about one request, or about a file of them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Annotated

import typer

from vlmguard.cli import batch
from vlmguard.cli.options import (
    AllowRemoteOption,
    DetectorsOption,
    ImageOption,
    JsonOption,
    PolicyOption,
    RewriterOption,
    open_guard,
    open_perceiver,
    read_prompt,
)
from vlmguard.cli.show import out, rewrite_panel
from vlmguard.errors import ConfigError


def rewrite(
    prompt: Annotated[
        str | None, typer.Argument(help="The user's prompt; - reads standard input.")
    ] = None,
    image: ImageOption = [],  # noqa: B006  # typer copies it
    input_file: Annotated[
        Path | None,
        typer.Option(
            "--input",
            help='JSON Lines of {"id", "prompt", "images": [paths]}; paths are relative '
            "to the file.",
        ),
    ] = None,
    output_file: Annotated[
        Path | None, typer.Option("--output", help="JSON Lines, in the order of the input.")
    ] = None,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=1024, help="Requests at once, with --input.")
    ] = 8,
    rewriter: RewriterOption = None,
    policy: PolicyOption = "balanced",
    detectors: DetectorsOption = None,
    allow_remote: AllowRemoteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Review a prompt with its pictures and print what the target would receive.

    With --input and --output, review a whole file. Interrupted, the same command goes on where it
    was.
    """
    guard = open_guard(rewriter, policy, open_perceiver(detectors))
    if (input_file is None) != (output_file is None):
        raise ConfigError("--input and --output belong together")
    if input_file is not None and output_file is not None:
        if prompt is not None or image:
            raise ConfigError("give either a prompt with --image, or --input with --output")
        batch.run(
            guard,
            input_file,
            output_file,
            concurrency=concurrency,
            allow_remote=allow_remote,
            as_json=as_json,
        )
        return
    text = read_prompt(prompt, image)
    decided = asyncio.run(guard.rewrite(text, image, allow_remote=allow_remote))
    if as_json:
        typer.echo(json.dumps(decided.to_json(), ensure_ascii=False))
    else:
        out.print(rewrite_panel(decided))
        if not decided.changed:
            out.print("The prompt passes unchanged.", style="dim")
