"""File formats that have rows and columns, each read as a stream."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from vlmguard.errors import DataError, MissingExtra
from vlmguard.synthesis.sources.base import Row

_CHUNK = 1 << 16
_ROWS_FOR_KEYS = 100
_ROWS_AT_ONCE = 64  # rows may hold pictures of megabytes


def open_text(path: Path) -> TextIO:
    """The file as UTF-8 text, a byte-order mark left out.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error


def _keys(rows: Iterator[Row], path: Path) -> tuple[str, ...]:
    """Keys of the first objects, in order; not every object needs to have them all."""
    first = list(islice(rows, _ROWS_FOR_KEYS))
    if not first:
        raise DataError("is empty", path=path)
    if first[0].problem is not None:
        raise DataError(f"row {first[0].number}: {first[0].problem}", path=path)
    return tuple(dict.fromkeys(key for row in first for key in row.values))


@dataclass(frozen=True, slots=True)
class JsonLines:
    """One JSON object a line; blank lines do not count."""

    path: Path

    def columns(self) -> tuple[str, ...]:
        """Keys of the first objects."""
        return _keys(self.rows(), self.path)

    def count(self) -> int:
        """Lines that are not blank."""
        with open_text(self.path) as file:
            return sum(1 for line in file if not line.isspace())

    def rows(self) -> Iterator[Row]:
        """One row a line; a broken line is a row with a problem."""
        with open_text(self.path) as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield _json_row(number, line)


def _json_row(number: int, line: str) -> Row:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Row(number=number, problem=f"not valid JSON: {error}")
    return _object_row(number, found)


def _object_row(number: int, found: Any) -> Row:
    if not isinstance(found, dict):
        return Row(number=number, problem=f"a {type(found).__name__}, not a JSON object")
    return Row(number=number, values=found)


@dataclass(frozen=True, slots=True)
class JsonArray:
    """A JSON file that is one array of objects, never held in memory as a whole."""

    path: Path

    def columns(self) -> tuple[str, ...]:
        """Keys of the first objects."""
        return _keys(self.rows(), self.path)

    def count(self) -> int | None:
        """Takes a full parse, so it is not told."""
        return None

    def require(self, keys: Sequence[str], *, form: str) -> None:
        """Refuse a file whose first objects lack a key.

        Raises:
            DataError: names ``form``, the keys that are missing and those that are there.
        """
        found = self.columns()
        if missing := [key for key in keys if key not in found]:
            raise DataError(
                f"not {form}: no key {', '.join(missing)}; keys found: {', '.join(found)}",
                path=self.path,
            )

    def rows(self) -> Iterator[Row]:
        """One row an item.

        Raises:
            DataError: not an array, or broken within; what came before was given.
        """
        with open_text(self.path) as file:
            for number, item in enumerate(_items(file, self.path), start=1):
                yield _object_row(number, item)


def _items(file: TextIO, path: Path) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    buffer = file.read(_CHUNK).lstrip()
    if not buffer.startswith("["):
        raise DataError("is not a JSON array of objects", path=path)
    buffer, at = buffer[1:], 0
    ended = False
    while True:
        while at < len(buffer) and buffer[at] in " \t\r\n,":
            at += 1
        if at < len(buffer) and buffer[at] == "]":
            return
        problem = "it goes on"  # a number at the end of the buffer may
        item, end = None, len(buffer)
        try:
            item, end = decoder.raw_decode(buffer, at)
        except (ValueError, RecursionError) as error:
            problem, complete = str(error), False
        else:
            complete = ended or end < len(buffer)
        if complete:
            yield item
            at = end
        elif ended:
            raise DataError(f"broken JSON: {problem}", path=path)
        else:
            more = file.read(max(_CHUNK, len(buffer)))
            ended = not more
            buffer, at = buffer[at:] + more, 0


@dataclass(frozen=True, slots=True)
class Csv:
    """Comma-separated values with a header; tab-separated where the name ends in ``.tsv``."""

    path: Path

    def columns(self) -> tuple[str, ...]:
        """The header."""
        with open_text(self.path) as file:
            return tuple(self._reader(file).fieldnames or ())

    def count(self) -> int:
        """Records, which may be fewer than lines."""
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[Row]:
        """One row a record."""
        with open_text(self.path) as file:
            reader = self._reader(file)
            try:
                for number, values in enumerate(reader, start=1):
                    extra = values.pop(None, None)  # where csv puts surplus cells
                    problem = None if extra is None else "more cells than the header has columns"
                    yield Row(number=number, values=values, problem=problem)
            except csv.Error as error:
                raise DataError(f"not valid CSV: {error}", path=self.path,
                                line=reader.line_num) from None  # fmt: skip

    def _reader(self, file: TextIO) -> csv.DictReader[str]:
        return csv.DictReader(file, delimiter="\t" if self.path.suffix == ".tsv" else ",")


@dataclass(frozen=True, slots=True)
class Parquet:
    """One Parquet file, or several with the same columns, one after the other."""

    paths: Sequence[Path]

    def columns(self) -> tuple[str, ...]:
        """Of the first file."""
        return tuple(_open_parquet(self.paths[0]).schema_arrow.names)

    def count(self) -> int:
        """From the files' footers."""
        return sum(_open_parquet(path).metadata.num_rows for path in self.paths)

    def rows(self) -> Iterator[Row]:
        """One row a record, numbered over all files."""
        number = 0
        for path in self.paths:
            file = _open_parquet(path)
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number=number, values=values)


def _open_parquet(path: Path) -> Any:
    try:
        import pyarrow as pa  # noqa: PLC0415  # brings numpy, and is optional
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError:
        raise MissingExtra("reading Parquet files", "synth") from None
    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet: {error}", path=path) from None
