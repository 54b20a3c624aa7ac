"""Options that several commands share, and what they open."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from vlmguard.defences import Guard
from vlmguard.engines import Engine, open_engine
from vlmguard.errors import ConfigError, InputError
from vlmguard.perception import DEFAULT_DETECTORS, Perceiver
from vlmguard.rewriting import load_policy, open_rewriter

DEFAULT_TARGET = "smollm2"

ImageOption = Annotated[
    list[str],
    typer.Option("--image", "-i", help="A picture: path, data: URL, or URL with --allow-remote."),
]
RewriterOption = Annotated[
    str | None,
    typer.Option(
        "--rewriter",
        "-r",
        envvar="VLMGUARD_REWRITER",
        help="Model that reviews and rewrites: smollm2 (default), openai:MODEL@URL, hf:MODEL, "
        "llamacpp:FILE, or self (the target).",
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        envvar="VLMGUARD_TARGET",
        help="Model that answers, named like a rewriter. Default: smollm2.",
    ),
]
PolicyOption = Annotated[
    str,
    typer.Option(
        "--policy",
        "-p",
        envvar="VLMGUARD_POLICY",
        help="strict, balanced, permissive, or a YAML file.",
    ),
]
DetectorsOption = Annotated[
    str | None,
    typer.Option(
        "--detectors",
        help="Comma-separated eyes for blind models, or none. "
        f"Default: {','.join(DEFAULT_DETECTORS)}.",
    ),
]
AllowRemoteOption = Annotated[
    bool, typer.Option("--allow-remote", help="Fetch pictures from http(s) URLs.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]


def open_perceiver(detectors: str | None) -> Perceiver:
    """The perceiver with the detectors that ``--detectors`` names.

    Raises:
        UnknownName: a detector that there is not.
    """
    if detectors is None:
        return Perceiver()
    wanted = [name.strip() for name in detectors.split(",") if name.strip()]
    return Perceiver([] if wanted == ["none"] else wanted)


def open_target(spec: str | None) -> Engine:
    """The engine that ``--target`` names."""
    return open_engine(spec or DEFAULT_TARGET)


def open_guard(
    rewriter: str | None, policy: str, perceiver: Perceiver, *, target: Engine | None = None
) -> Guard:
    """The guard that the options describe."""
    return Guard(
        open_rewriter(rewriter, target=target, perceiver=perceiver),
        policy=load_policy(policy),
        perceiver=perceiver,
    )


def read_prompt(prompt: str | None, images: list[str]) -> str:
    """The prompt of the command line; ``-`` reads standard input.

    Raises:
        ConfigError: neither prompt nor picture.
        InputError: standard input is not UTF-8.
    """
    if prompt == "-":
        try:
            return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
        except UnicodeDecodeError as error:
            raise InputError(f"standard input is not UTF-8: {error}") from None
    if prompt is None and not images:
        raise ConfigError("nothing to review: give a prompt, an --image, or both")
    return prompt or ""


def existing_file(path: Path, what: str) -> Path:
    """The path, when there is a readable file.

    Raises:
        ConfigError: names what is missing.
    """
    if not path.is_file():
        raise ConfigError(f"the {what} {path} is not a file")
    if not os.access(path, os.R_OK):
        raise ConfigError(f"the {what} {path} may not be read")
    return path
