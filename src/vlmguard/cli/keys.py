"""``vlmguard keys``: make, list and revoke API keys of the gateway."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from vlmguard.cli.options import JsonOption
from vlmguard.cli.show import err, out
from vlmguard.errors import ConfigError
from vlmguard.gateway.keys import ApiKey, add_key, read_keys, revoke_key
from vlmguard.quoting import visible
from vlmguard.rewriting import load_policy
from vlmguard.rewriting.policy import PRESETS

app = typer.Typer(help="Make, list and revoke API keys of the gateway.", no_args_is_help=True)

FileOption = Annotated[
    Path,
    typer.Option(
        "--file",
        "-f",
        envvar="VLMGUARD_KEYS",
        help="The keys file: YAML, or .json.",
        metavar="FILE",
    ),
]
_FILE = Path("keys.yaml")
_MODES = ("enforce", "shadow", "off")


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="Who is to use it.", metavar="NAME")],
    file: FileOption = _FILE,
    policy: Annotated[
        str | None,
        typer.Option("--policy", "-p", help="A preset or a file, in place of the gateway's."),
    ] = None,
    rpm: Annotated[
        float | None, typer.Option("--rpm", help="Requests a minute. Default: no limit.")
    ] = None,
    max_body: Annotated[
        str | None,
        typer.Option("--max-body", help="Largest request: bytes, or like 512K, 20M."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="enforce, shadow or off, in place of the gateway's."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a key. Its token is printed once, alone on standard output, and stored nowhere."""
    if mode is not None and mode not in _MODES:
        raise ConfigError(f"--mode is one of {', '.join(_MODES)}, not {mode!r}")
    if policy is not None:
        load_policy(policy)  # a wrong one is told now, not at the first request
        # A file is found from wherever the gateway is started.
        policy = policy if policy in PRESETS else str(Path(policy).resolve())
    token, key = add_key(
        file,
        name,
        policy=policy,
        requests_per_minute=rpm,
        max_body_bytes=None if max_body is None else _bytes(max_body),
        mode=mode,  # type: ignore[arg-type]  # checked above
    )
    if as_json:
        typer.echo(json.dumps({"token": token, **_shown(key)}, ensure_ascii=False))
    else:
        err.print(
            Text(f"{file}: added {key.id} for {name}. Keep this token, it is not shown again:"),
            soft_wrap=True,
        )
        typer.echo(token)


@app.command("list")
def list_(
    file: FileOption = _FILE,
    everything: Annotated[bool, typer.Option("--all", "-a", help="Revoked ones, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the keys in force. Tokens are not stored, and so not shown."""
    keys = [key for key in read_keys(file) if everything or key.revoked is None]
    if as_json:
        typer.echo(json.dumps([_shown(key) for key in keys], ensure_ascii=False))
        return
    if not keys:
        err.print(Text(f"{file}: no keys in force"))
        return
    table = Table("id", "name", "policy", "rpm", "max body", "mode", "made", box=None)
    for key in keys:
        revoked = f", revoked {key.revoked:%Y-%m-%d}" if key.revoked else ""
        limit = "" if key.requests_per_minute is None else f"{key.requests_per_minute:g}"
        table.add_row(
            key.id,
            Text(visible(key.name)),
            Text(key.policy or ""),
            limit,
            "" if key.max_body_bytes is None else f"{key.max_body_bytes:,}",
            key.mode or "",
            f"{key.created:%Y-%m-%d}{revoked}",
            style="dim" if key.revoked else None,
        )
    out.print(table)


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(help="Its id or name.", metavar="KEY")],
    file: FileOption = _FILE,
) -> None:
    """Put a key out of force; a running gateway notices within seconds."""
    revoked = revoke_key(file, key)
    err.print(Text(f"{file}: revoked {revoked.id} of {revoked.name}"), soft_wrap=True)


def _shown(key: ApiKey) -> dict[str, object]:
    """The entry without the hash, which is nobody's business."""
    values: dict[str, object] = key.model_dump(mode="json", exclude={"sha256"})
    return values


def _bytes(text: str) -> int:
    units = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    number = text.strip().upper().removesuffix("B").removesuffix("I")
    unit = number[-1:] if number[-1:] in units else ""
    try:
        return int(float(number.removesuffix(unit)) * units[unit])
    except (ValueError, OverflowError):
        raise ConfigError(
            f"--max-body {text!r} is no size: write bytes, or like 512K, 20M"
        ) from None
