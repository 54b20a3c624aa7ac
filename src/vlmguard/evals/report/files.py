"""Writing a report's files: whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from vlmguard.errors import DataError


def write_parts(path: Path, parts: Iterable[str]) -> None:
    """Write a text file in one step; a reader sees the old or the new one.

    Lone surrogates, which models' answers may hold and UTF-8 may not, are written as ``?``.

    Raises:
        DataError: it cannot be written.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with fresh.open("w", encoding="utf-8", errors="replace", newline="") as file:
            file.writelines(parts)
        fresh.replace(path)
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror}", path=path) from error
    finally:
        fresh.unlink(missing_ok=True)
