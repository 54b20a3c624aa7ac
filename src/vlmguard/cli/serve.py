"""``vlmguard serve``: the gateway."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmguard.cli.options import DetectorsOption
from vlmguard.cli.show import err
from vlmguard.errors import ConfigError

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from vlmguard.gateway.gateway import Gateway
    from vlmguard.gateway.settings import Settings

_MODES = ("enforce", "shadow", "off")


def serve(
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            "-t",
            envvar="VLMGUARD_TARGET",
            help="Model that answers: openai:MODEL@URL is forwarded to; smollm2 (default), "
            "llamacpp:FILE and hf:MODEL run in this process.",
        ),
    ] = None,
    rewriter: Annotated[
        str | None,
        typer.Option(
            "--rewriter",
            "-r",
            envvar="VLMGUARD_REWRITER",
            help="Model that reviews and rewrites: smollm2 (default), openai:MODEL@URL, hf:MODEL, "
            "llamacpp:FILE, or self (the target).",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            "--policy",
            "-p",
            envvar="VLMGUARD_POLICY",
            help="strict, balanced (default), permissive, or a YAML file.",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="enforce (default), shadow (only note decisions), or off."),
    ] = None,
    shadow_policy: Annotated[
        str | None,
        typer.Option("--shadow-policy", help="A second policy whose decisions are only noted."),
    ] = None,
    host: Annotated[
        str | None, typer.Option("--host", help="Address to listen on. Default: 127.0.0.1.")
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=0, max=65535, help="Default: 8080; 0 takes any.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=256, help="Processes. Default: 1.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="YAML file of settings; flags go before it.")
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option("--keys", help="File of the gateway's own API keys; see vlmguard keys."),
    ] = None,
    target_key_env: Annotated[
        str | None,
        typer.Option("--target-key-env", help="Environment variable with the target's key."),
    ] = None,
    audit: Annotated[
        str | None,
        typer.Option("--audit", help="Audit log: a .sqlite or .jsonl file; see vlmguard audit."),
    ] = None,
    redis: Annotated[
        str | None,
        typer.Option(
            "--redis",
            envvar="VLMGUARD_REDIS",
            help="URL of a Redis for the decisions and rate limits of all workers.",
        ),
    ] = None,
    allow_route: Annotated[
        list[str] | None,
        typer.Option("--allow-route", help="Pass on a route unguarded: 'POST /v1/audio/*'."),
    ] = None,
    image_domain: Annotated[
        list[str] | None,
        typer.Option("--image-domain", help="Fetch pictures only from this host; repeatable."),
    ] = None,
    report: Annotated[
        bool | None, typer.Option("--report", help="Add the decision to every answer.")
    ] = None,
    defence: Annotated[
        str | None, typer.Option("--defence", help="Another defence in place of the guard.")
    ] = None,
    detectors: DetectorsOption = None,
    log_level: Annotated[
        str | None, typer.Option("--log-level", help="debug, info (default), warning or error.")
    ] = None,
    log_form: Annotated[str | None, typer.Option("--log-form", help="json, or text.")] = None,
    playground: Annotated[
        bool, typer.Option("--playground", help="Also serve the page of `vlmguard ui`.")
    ] = False,
    playground_password_env: Annotated[
        str | None,
        typer.Option(
            "--playground-password-env",
            help="Environment variable with the page's password, for the user vlmguard.",
        ),
    ] = None,
) -> None:
    """Protect any OpenAI-compatible model: clients change one URL."""
    from vlmguard.gateway import serve as serving  # noqa: PLC0415  # brings the web server
    from vlmguard.gateway.gateway import Gateway  # noqa: PLC0415
    from vlmguard.gateway.settings import load_settings  # noqa: PLC0415

    if mode is not None and mode not in _MODES:
        raise ConfigError(f"--mode {mode!r} is none of {', '.join(_MODES)}")
    settings = load_settings(
        config,
        {
            "target": target,
            "rewriter": rewriter,
            "policy": policy,
            "mode": mode,
            "shadow_policy": shadow_policy,
            "host": host,
            "port": port,
            "workers": workers,
            "keys": keys,
            "target_key_env": target_key_env,
            "audit": audit,
            "redis": redis,
            "allow_routes": allow_route or None,
            "image_domains": image_domain or None,
            "report": report or None,
            "defence": defence,
            "detectors": detectors,
            "log_level": log_level,
            "log_form": log_form,
        },
    )
    add = _page(settings, playground_password_env) if playground else None
    with closing(serving.listen(settings)) as bound:
        gateway = Gateway(settings)
        _banner(settings, gateway, serving.url_of(bound))
        if playground:
            err.print(f"Playground on {serving.url_of(bound)}/playground/", markup=False)
        serving.serve(settings, gateway, bound, add=add)


def _page(settings: Settings, password_env: str | None) -> Callable[[Starlette], None]:
    """What adds the playground to the gateway.

    Raises:
        ConfigError: several workers, or a page that everybody could open past the gateway's keys.
    """
    from vlmguard.ui import app as page  # noqa: PLC0415  # brings Gradio
    from vlmguard.ui import settings as page_settings  # noqa: PLC0415

    if settings.workers > 1:
        raise ConfigError("--playground needs --workers 1: its visits live in one process")
    passwords = page_settings.password_from(password_env) if password_env else None
    if settings.keys is not None and passwords is None:
        raise ConfigError(
            "the gateway has keys, and the playground would be a way past them: set a password "
            "with --playground-password-env"
        )
    page_settings.check_exposure(
        settings.host, passwords, option="--playground-password-env", allowed=False
    )
    chosen = page_settings.UiSettings(
        targets=(settings.target,),
        rewriters=(settings.rewriter or page_settings.DEFAULT_MODEL,),
        policies=page_settings.policies_with(settings.policy),
        audit=settings.audit,
        passwords=passwords,
    )
    return lambda app: page.mount(app, chosen)


def _banner(settings: Settings, gateway: Gateway, url: str) -> None:
    lines = [
        f"VLMGuard-R1 gateway on {url}/v1",
        f"  target    {gateway.target.name}",
        f"  rewriter  {settings.rewriter or 'smollm2 (embedded)'}",
        f"  policy    {settings.policy}, mode {settings.mode}",
    ]
    if settings.keys is not None:
        lines.append(f"  keys      {settings.keys}")
    if settings.audit is not None:
        lines.append(f"  audit     {settings.audit}")
    key = " -H 'authorization: Bearer KEY'" if settings.keys else ""
    lines += [
        "Try it:",
        f"  curl {url}/v1/chat/completions -H 'content-type: application/json'{key} \\",
        """    -d '{"messages": [{"role": "user", "content": "Hello!"}]}'""",
    ]
    for line in lines:
        err.print(line, markup=False, highlight=False, soft_wrap=True)
    if settings.keys is None and not _is_loopback(settings.host):
        err.print(
            "warning: everybody who reaches this address may use the target; add --keys",
            style="yellow",
            markup=False,
        )
    if settings.mode == "off":
        err.print("warning: mode off: nothing is reviewed", style="yellow")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
