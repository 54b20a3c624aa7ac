"""``vlmguard ui``: the playground."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from vlmguard.cli.show import err
from vlmguard.errors import ConfigError


def ui(
    target: Annotated[
        list[str] | None,
        typer.Option(
            "--target",
            "-t",
            envvar="VLMGUARD_TARGET",
            help="Model that answers: smollm2 (default), openai:MODEL@URL, hf:MODEL, "
            "llamacpp:FILE. Repeat it to offer several.",
        ),
    ] = None,
    rewriter: Annotated[
        list[str] | None,
        typer.Option(
            "--rewriter",
            "-r",
            envvar="VLMGUARD_REWRITER",
            help="Model that reviews and rewrites, or self. Repeat it to offer several.",
        ),
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            "-p",
            envvar="VLMGUARD_POLICY",
            help="The one chosen at first: strict, balanced, permissive, or a YAML file.",
        ),
    ] = "balanced",
    host: Annotated[str, typer.Option("--host", help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 takes any.")] = 7860,
    password_env: Annotated[
        str | None,
        typer.Option(
            "--password-env", help="Environment variable with a password for the user vlmguard."
        ),
    ] = None,
    auth: Annotated[
        Path | None, typer.Option("--auth", help="File with a line name:password for each user.")
    ] = None,
    no_password: Annotated[
        bool,
        typer.Option("--no-password", help="Let everybody in who reaches the --host."),
    ] = False,
    audit: Annotated[
        str | None,
        typer.Option("--audit", help="The gateway's audit log: a .sqlite or .jsonl file."),
    ] = None,
    reports: Annotated[
        Path | None, typer.Option("--reports", help="Folder of evaluation reports.")
    ] = None,
) -> None:
    """Open the playground: a page that shows the guard think."""
    from vlmguard.ui import app, settings  # noqa: PLC0415  # brings the web server

    if password_env is not None and auth is not None:
        raise ConfigError("give --password-env or --auth, not both")
    passwords = None
    if password_env is not None:
        passwords = settings.password_from(password_env)
    elif auth is not None:
        passwords = settings.passwords_from(auth)
    settings.check_exposure(host, passwords, allowed=no_password)
    if reports is not None and not reports.is_dir():
        raise ConfigError(f"--reports {reports} is not a folder")
    chosen = settings.UiSettings(
        targets=tuple(target or (settings.DEFAULT_MODEL,)),
        rewriters=tuple(rewriter or (settings.DEFAULT_MODEL,)),
        policies=settings.policies_with(policy),
        any_model=settings.is_loopback(host),
        audit=audit,
        reports=reports,
        passwords=passwords,
    )
    with closing(app.listen(host, port)) as bound:
        served = app.create(chosen)
        shown = bound.getsockname()[1]
        name = f"[{host}]" if ":" in host else host
        err.print(
            f"VLMGuard-R1 playground on http://{name}:{shown}/ (Ctrl-C ends it)",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        app.serve(served, bound)
