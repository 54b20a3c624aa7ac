"""All that an operator can set, in a YAML file or by flags. Secrets come from the environment."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlmguard.errors import ConfigError
from vlmguard.gateway.modes import ModeField

_ROUTE = re.compile(r"(?:(GET|POST|DELETE|PUT|PATCH) )?(/[A-Za-z0-9/_.~-]*)(/\*)?")


class Settings(BaseModel):
    """How the gateway runs.

    Attributes:
        target: the model that answers: ``openai:MODEL@URL`` is forwarded to; any other spec is
            loaded into this process.
        target_key_env: environment variable with the target's key. Without one, the client's
            ``Authorization`` is passed on, unless the gateway has keys of its own.
        rewriter: the model that judges and rewrites; ``self`` for the target.
        detectors: eyes of a rewriter that cannot see; ``None`` is all of them.
        defence: ``guard``, or another defence that changes the input.
        policy: a preset or a file, where a key names no other.
        mode: ``enforce`` carries decisions out, ``shadow`` only notes them, ``off`` makes none.
        shadow_policy: a second policy whose decisions are noted beside the enforced ones.
        host, port, workers: where to listen, and with how many processes.
        keys: file of the gateway's own API keys; without one, everybody may ask.
        audit: file of the audit log; see ``vlmguard audit``.
        audit_content: keep prompts and rewrites in it, not only their hashes.
        audit_days: days after which its records are deleted.
        audit_full: what happens when a record cannot be written: requests ``fail``, or
            ``continue`` unrecorded.
        redis: URL of a Redis for decisions and rate limits of all workers.
        cache_size: decisions that each worker remembers, for each policy.
        report: add the decision to every answer, as if each request asked for it.
        stream_usage: ask the target to count the tokens of streams whose clients did not ask, for
            the audit log and the numbers; those clients do not see the chunk that tells them.
        model_names: model as clients name it → as the target does.
        force_model: always send the model of ``target``, whatever the client names.
        allow_routes: further routes to pass on unguarded: ``/v1/files``, ``POST /v1/audio/*``.
        allow_uninspected: types of content parts, and fields, that may pass though nobody looks
            into them, e.g. ``input_audio``.
        remote_images: fetch pictures from http(s) URLs.
        image_domains: the only hosts to fetch from: ``example.com``, ``*.example.com``.
        private_images: also fetch from private addresses (never from metadata services).
        max_body_bytes: of a request.
        header_timeout_s, body_timeout_s: for a client to send them.
        send_timeout_s: for a client to take what waits for it.
        target_timeout_s: seconds without a byte from the target.
        drain_s: for running answers when the gateway is told to stop.
        requests_per_minute: of each key that sets no other limit.
        log_level, log_form: of the log on standard error.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    target: str = "smollm2"
    target_key_env: str | None = None
    rewriter: str | None = None
    detectors: str | None = None
    defence: str = "guard"
    policy: str = "balanced"
    mode: ModeField = "enforce"
    shadow_policy: str | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    keys: Path | None = None
    audit: str | None = None
    audit_content: bool = False
    audit_days: Annotated[float | None, Field(gt=0)] = None
    audit_full: Literal["fail", "continue"] = "fail"
    redis: str | None = None
    cache_size: Annotated[int, Field(ge=0)] = 4096
    report: bool = False
    stream_usage: bool = False
    model_names: dict[str, str] = Field(default_factory=dict)
    force_model: bool = False
    allow_routes: tuple[str, ...] = ()
    allow_uninspected: tuple[str, ...] = ()
    remote_images: bool = True
    image_domains: tuple[str, ...] | None = None
    private_images: bool = False
    max_body_bytes: Annotated[int, Field(gt=0)] = 64 * 1024 * 1024
    header_timeout_s: Annotated[float, Field(gt=0)] = 15.0
    body_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    send_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    target_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    drain_s: Annotated[int, Field(ge=0)] = 60
    requests_per_minute: Annotated[float | None, Field(gt=0)] = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_form: Literal["json", "text"] = "json"

    @field_validator("allow_routes")
    @classmethod
    def _routes(cls, routes: tuple[str, ...]) -> tuple[str, ...]:
        for route in routes:
            if not _ROUTE.fullmatch(route):
                raise ValueError(f"{route!r} is no route; write /v1/files or POST /v1/audio/*")
        return routes


def route_of(text: str) -> tuple[str | None, str, bool]:
    """The method (``None`` for all), the path, and whether everything below it is meant."""
    found = _ROUTE.fullmatch(text)
    assert found is not None  # `Settings` has checked it
    return found[1], found[2], found[3] is not None


def load_settings(path: Path | None, given: dict[str, Any]) -> Settings:
    """Settings from a YAML file, with the flags that were given over them.

    Args:
        path: the file; ``None`` for defaults.
        given: field → value; ``None`` stands for a flag that was not given.

    Raises:
        ConfigError: unreadable, not YAML, or a field is wrong; every wrong field is listed.
    """
    values: dict[str, Any] = {}
    if path is not None:
        try:
            read = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {error}") from error
        if read is not None and not isinstance(read, dict):
            raise ConfigError(f"{path}: is a mapping of fields, not a {type(read).__name__}")
        values = {str(name).replace("-", "_"): value for name, value in (read or {}).items()}
    values |= {name: value for name, value in given.items() if value is not None}
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path or 'the settings'}: {problems_of(error, Settings)}") from None


def problems_of(error: ValidationError, model: type[BaseModel]) -> str:
    """Every wrong field on a line of its own, with the fields that there are."""
    lines = ["not valid"]
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"][:2])
        message = str(item["msg"]).removeprefix("Value error, ")
        given = item["input"]
        if item["type"] == "extra_forbidden":
            message = f"no such field; fields: {', '.join(model.model_fields)}"
        elif item["type"] != "value_error" and isinstance(given, str | int | float):
            message += f", not {given!r:.60}"
        lines.append(f"  {place}: {message}")
    return "\n".join(lines)
