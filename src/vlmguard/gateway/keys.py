"""The gateway's API keys: a file of hashes, read anew when it changes.

A token is shown once, when it is made. The file holds its SHA-256: a token is 256 random bits, so
there is nothing that a slow password hash would protect against guessing, and every request would
pay for one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vlmguard.errors import ConfigError, InputError
from vlmguard.gateway.modes import Mode, ModeField
from vlmguard.models.lock import exclusive

TOKEN_PREFIX = "vg-"  # noqa: S105  # what a token starts with, not a token
_LOOK_EVERY_S = 1.0
_HEAD = "# Keys of the VLMGuard gateway: `vlmguard keys` adds, lists and revokes. Only hashes.\n"

_log = logging.getLogger(__name__)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster, where it was built


class ApiKey(BaseModel):
    """One key, without its token.

    Attributes:
        id: appears in the audit log and in metrics; never reused.
        name: of whoever uses it; unique among the keys in force.
        sha256: of the token, hex.
        created, revoked: when. A revoked key stays listed, so that audit records still tell whose.
        policy: a preset or a file, in place of the gateway's policy.
        requests_per_minute: ``None`` is no limit.
        max_body_bytes: of a request, in place of the gateway's cap.
        mode: in place of the gateway's mode.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    name: Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,100}$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    created: datetime
    revoked: datetime | None = None
    policy: str | None = None
    requests_per_minute: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    max_body_bytes: Annotated[int | None, Field(gt=0)] = None
    mode: ModeField | None = None


class _KeysFile(BaseModel):
    """What the file holds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    keys: tuple[ApiKey, ...] = ()

    @field_validator("keys")
    @classmethod
    def _unique(cls, keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        for what, seen in (
            ("id", [key.id for key in keys]),
            ("name", [key.name for key in keys if key.revoked is None]),
            ("sha256", [key.sha256 for key in keys]),
        ):
            if twice := sorted({value for value in seen if seen.count(value) > 1}):
                raise ValueError(f"two keys have the {what} {twice[0]!r}")
        return keys


class KeyStore:
    """The keys in force, as the gateway asks for them.

    `check` works in memory. The file is looked at once a second at most and read in a thread of its
    own, so a key that is added or revoked counts about a second later. A file that becomes
    unreadable changes nothing but the log: keys that were in force stay so.

    Args:
        path: YAML, or JSON where it ends in ``.json``.
        clock: monotonic seconds.

    Raises:
        ConfigError: there is no such file, or it is not valid.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._signature = _signature(path)
        self._keys = _in_force(read_keys(path))
        self._look_at = clock() + _LOOK_EVERY_S
        self._reading: threading.Thread | None = None

    def __len__(self) -> int:
        """How many keys are in force."""
        return len(self._keys)

    def check(self, token: str) -> ApiKey | None:
        """Whose token it is; ``None`` when it is nobody's, or was revoked."""
        self._look()
        given = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        found: ApiKey | None = None
        # All of them, each in constant time: how long it takes tells nothing about any key.
        for digest, key in self._keys:
            if hmac.compare_digest(digest, given):
                found = key
        return found

    def refresh(self) -> None:
        """Read the file now if it changed. Blocks; for a signal handler's thread, and tests."""
        signature = _signature(self._path)
        if signature == self._signature:
            return
        try:
            keys = _in_force(read_keys(self._path))
        except ConfigError as error:
            _log.error("the keys stay as they were: %s", error)  # no traceback
        else:
            self._keys = keys
            _log.info("read %s: %d keys in force", self._path, len(keys))
        self._signature = signature

    def _look(self) -> None:
        now = self._clock()
        if now < self._look_at or (self._reading is not None and self._reading.is_alive()):
            return
        self._look_at = now + _LOOK_EVERY_S
        self._reading = threading.Thread(target=self.refresh, name="vlmguard-keys", daemon=True)
        self._reading.start()


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """All keys of a file, revoked ones included.

    Raises:
        ConfigError: there is no such file, or it is not valid; the first wrong field is named.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no keys file {path}; `vlmguard keys add NAME --file {path}` makes one"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the keys file {path} cannot be read: {error}") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else yaml.load(text, _Loader)  # noqa: S506
        return _KeysFile.model_validate({} if values is None else values).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        reason = str(first["msg"]).removeprefix("Value error, ")
        raise ConfigError(f"the keys file {path} is not valid: {place}: {reason}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"the keys file {path} cannot be read: {error}") from error


def add_key(
    path: Path,
    name: str,
    *,
    policy: str | None = None,
    requests_per_minute: float | None = None,
    max_body_bytes: int | None = None,
    mode: Mode | None = None,
) -> tuple[str, ApiKey]:
    """Make a key; the file is made when there is none.

    Returns:
        The token, which is stored nowhere, and its entry.

    Raises:
        InputError: the name is taken, or a value is not valid.
        ConfigError: the file is not valid, or cannot be written.
    """
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    try:
        key = ApiKey(
            id=f"k_{secrets.token_hex(6)}",
            name=name,
            sha256=hashlib.sha256(token.encode()).hexdigest(),
            created=_now(),
            policy=policy,
            requests_per_minute=requests_per_minute,
            max_body_bytes=max_body_bytes,
            mode=mode,
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise InputError(
            f"the key's {first['loc'][0]} is not valid: {first['msg']} (got {first['input']!r})"
        ) from None

    def added(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        if any(other.name == name and other.revoked is None for other in keys):
            raise InputError(
                f"there is a key named {name!r} already; revoke it first: vlmguard keys revoke "
                f"{name!r} --file {path}"
            )
        return (*keys, key)

    _change(path, added)
    return token, key


def revoke_key(path: Path, id_or_name: str) -> ApiKey:
    """Put a key out of force; its entry stays.

    Raises:
        InputError: no key in force has that id or name.
        ConfigError: the file is not valid, or cannot be written.
    """
    revoked: list[ApiKey] = []

    def changed(keys: tuple[ApiKey, ...]) -> tuple[ApiKey, ...]:
        revoked.extend(
            key.model_copy(update={"revoked": _now()})
            for key in keys
            if key.revoked is None and id_or_name in (key.id, key.name)
        )
        if not revoked:
            known = ", ".join(key.name for key in keys if key.revoked is None) or "none"
            raise InputError(f"no key in force is named {id_or_name!r}; in force: {known}")
        if len(revoked) > 1:
            raise InputError(f"{id_or_name!r} is the id of one key and the name of another")
        return tuple(revoked[0] if key.id == revoked[0].id else key for key in keys)

    if not path.exists():
        read_keys(path)  # says that there is none, before a lock is made for it
    _change(path, changed)
    return revoked[0]


def _change(path: Path, change: Callable[[tuple[ApiKey, ...]], tuple[ApiKey, ...]]) -> None:
    """Read, change and replace the file: one process at a time, and never half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(path.with_name(f"{path.name}.lock"), on_wait=lambda: None, poll_s=0.02):
            keys = change(read_keys(path) if path.exists() else ())
            _write(path, _KeysFile(keys=keys))
    except OSError as error:
        raise ConfigError(f"the keys file {path} cannot be written: {error.strerror}") from error


def _write(path: Path, content: _KeysFile) -> None:
    values: dict[str, Any] = content.model_dump(mode="json", exclude_none=True)
    if path.suffix == ".json":
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    else:
        text = _HEAD + yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # A temporary file is readable by its owner only, and so is what takes its name.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _in_force(keys: tuple[ApiKey, ...]) -> tuple[tuple[bytes, ApiKey], ...]:
    return tuple((bytes.fromhex(key.sha256), key) for key in keys if key.revoked is None)


def _signature(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; ``None`` when there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
