"""What whoever runs the playground decides."""

from __future__ import annotations

import hmac
import ipaddress
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmguard.errors import ConfigError
from vlmguard.rewriting import load_policy
from vlmguard.rewriting.policy import PRESETS

DEFAULT_MODEL = "smollm2"
USER = "vlmguard"
"""Name to sign in with where only a password was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UiSettings:
    """How the playground runs.

    Attributes:
        targets, rewriters: specs that the page offers, the first by default.
        policies: names and files that it offers; the presets are always there.
        any_model: visitors may type other specs: as good as a shell for whoever reaches the page.
        audit: the gateway's audit log; ``None`` leaves the tab out.
        reports: folder of evaluation reports; ``None`` leaves the tab out.
        passwords: name → password; ``None`` asks for none.
    """

    targets: tuple[str, ...] = (DEFAULT_MODEL,)
    rewriters: tuple[str, ...] = (DEFAULT_MODEL,)
    policies: tuple[str, ...] = ("balanced", "strict", "permissive")
    any_model: bool = False
    audit: str | None = None
    reports: Path | None = None
    passwords: Mapping[str, str] | None = None

    def signs_in(self, name: str, password: str) -> bool:
        """Whether a name and a password belong together."""
        known = (self.passwords or {}).get(name, "")
        # Compared also for a name that there is not, so that the time tells nothing.
        return hmac.compare_digest(known.encode(), password.encode()) and bool(known)


def policies_with(first: str) -> tuple[str, ...]:
    """The policies to offer: ``first``, then the presets.

    Raises:
        ConfigError: it is no policy.
    """
    load_policy(first)
    return tuple(dict.fromkeys((first, *PRESETS)))


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(
    host: str,
    passwords: Mapping[str, str] | None,
    *,
    allowed: bool,
    option: str = "--password-env or --auth, or say --no-password if something else protects it",
) -> None:
    """Refuse to show the page to others without a password.

    Args:
        host: to listen on.
        passwords: that are asked for.
        allowed: the operator insists.
        option: how to set one.

    Raises:
        ConfigError: says how to go on.
    """
    if passwords is None and not allowed and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines, and no password is set: everybody could "
            f"use the models and read the audit log. Set one with {option}"
        )


def password_from(variable: str) -> dict[str, str]:
    """The password in an environment variable, for the user ``vlmguard``.

    Raises:
        ConfigError: it is not set, or empty.
    """
    password = os.environ.get(variable, "")
    if not password:
        raise ConfigError(f"the environment variable {variable} holds no password")
    return {USER: password}


def passwords_from(path: Path) -> dict[str, str]:
    """Names and passwords from a file with a line ``name:password`` for each.

    Raises:
        ConfigError: unreadable, without a line, or a line is wrong; passwords are never shown.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, colon, password = line.partition(":")
        if not (name.strip() and colon and password):
            raise ConfigError(f"{path}:{number}: must read name:password")
        found[name.strip()] = password
    if not found:
        raise ConfigError(f"{path} holds no name:password")
    return found
