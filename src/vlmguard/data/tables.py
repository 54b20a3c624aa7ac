"""Other people's files that have rows and columns, each read as a stream.

Who can do without a broken row goes over `Table.rows` and looks at `Row.problem`; who cannot reads
`read_rows`, which raises it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TextIO

from vlmguard.data.columns import require_pyarrow
from vlmguard.errors import DataError

FORMATS: Mapping[str, str] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""Suffix → kind of table, as `open_table` takes it."""

_CHUNK = 1 << 16
_ROWS_FOR_KEYS = 100
_ROWS_AT_ONCE = 64  # rows may hold pictures of megabytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        path: the file, or the name of a dataset on the Hugging Face Hub.
        number: row, counted from 1; of JSON Lines, the line.
        values: column → value; empty when the row could not be read.
        problem: why it could not.
    """

    path: Path
    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None

    def text(self, *names: str, default: str | None = None) -> str:
        """The text under the first of the names that the row has; numbers become text.

        Raises:
            DataError: none of them, and no default.
        """
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str):
                return clean(value)
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
        if default is not None:
            return default
        found = ", ".join(map(str, self.values)) or "none"
        raise self.wrong(f"no text under {' or '.join(names)}; keys found: {found}")

    def wrong(self, message: str) -> DataError:
        """An error about this row."""
        return DataError(message, path=self.path, line=self.number)


class Table(Protocol):
    """A file format, or a place, that has rows and columns."""

    def columns(self) -> tuple[str, ...]:
        """Column names; of a format without a header, those of the first rows."""
        ...

    def count(self) -> int | None:
        """How many rows there are; ``None`` where telling would take a full read."""
        ...

    def rows(self) -> Iterator[Row]:
        """All rows, read lazily; one that is broken comes with its problem.

        Raises:
            DataError: the table as a whole cannot be read (on).
        """
        ...


def clean(text: str) -> str:
    """Text that can be stored and sent: lone surrogates, which JSON can spell, become ``?``."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def open_table(paths: Sequence[Path], kind: str) -> Table:
    """The table of a file, or of several Parquet files with the same columns.

    Args:
        paths: not empty; more than one of Parquet only.
        kind: one of the values of `FORMATS`.
    """
    if kind == "parquet":
        return Parquet(paths)
    single: Mapping[str, Callable[[Path], Table]] = {
        "jsonl": JsonLines,
        "json": JsonArray,
        "csv": Csv,
    }
    return single[kind](paths[0])


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, whose suffix is one of `FORMATS`.

    Raises:
        DataError: it cannot be read, or a row is broken; names the row.
        MissingExtra: Parquet without pyarrow.
    """
    for row in open_table([path], FORMATS[path.suffix.lower()]).rows():
        if row.problem is not None:
            raise row.wrong(row.problem)
        yield row


def read_json(path: Path) -> Any:
    """The value of a JSON file, whatever its shape.

    Raises:
        DataError: cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"not valid JSON: {error}", path=path) from None


def _open_text(path: Path) -> TextIO:
    """The file as text, a byte-order mark left out; bytes that are no UTF-8 are surrogates."""
    try:
        return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from error


def _is_utf8(text: str) -> bool:
    """Whether text of `_open_text` was UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


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
        with _open_text(self.path) as file:
            return sum(1 for line in file if not line.isspace())

    def rows(self) -> Iterator[Row]:
        """One row a line; a broken line is a row with a problem."""
        with _open_text(self.path) as file:
            for number, line in enumerate(file, start=1):
                if not line.isspace():
                    yield self._row(number, line)

    def _row(self, number: int, line: str) -> Row:
        if not _is_utf8(line):
            return Row(path=self.path, number=number, problem="not UTF-8")
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            return Row(path=self.path, number=number, problem=f"not valid JSON: {error}")
        return _object_row(self.path, number, found)


def _object_row(path: Path, number: int, found: Any) -> Row:
    if not isinstance(found, dict):
        problem = f"a {type(found).__name__}, not a JSON object"
        return Row(path=path, number=number, problem=problem)
    return Row(path=path, number=number, values=found)


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
        with _open_text(self.path) as file:
            for number, (item, text) in enumerate(_items(file, self.path), start=1):
                if _is_utf8(text):
                    yield _object_row(self.path, number, item)
                else:
                    yield Row(path=self.path, number=number, problem="not UTF-8")


def _items(file: TextIO, path: Path) -> Iterator[tuple[Any, str]]:
    """Each item with its text."""
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
            yield item, buffer[at:end]
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
        with _open_text(self.path) as file:
            return tuple(self._reader(file).fieldnames or ())

    def count(self) -> int:
        """Records, which may be fewer than lines."""
        return sum(1 for _ in self.rows())

    def rows(self) -> Iterator[Row]:
        """One row a record; one with surplus cells, or no UTF-8, is a row with a problem.

        Raises:
            DataError: not CSV; what came before was given.
        """
        with _open_text(self.path) as file:
            reader = self._reader(file)
            try:
                for number, values in enumerate(reader, start=1):
                    yield self._row(number, values)
            except csv.Error as error:
                raise DataError(f"not valid CSV: {error}", path=self.path,
                                line=reader.line_num) from None  # fmt: skip

    def _row(self, number: int, values: dict[str | None, Any]) -> Row:
        extra = values.pop(None, None)  # where csv puts surplus cells
        named = {str(name): value for name, value in values.items()}
        problem = None
        if extra is not None:
            problem = "more cells than the header has columns"
        elif not all(_is_utf8(value) for value in named.values() if value is not None):
            problem = "not UTF-8"
        return Row(path=self.path, number=number, values=named, problem=problem)

    def _reader(self, file: TextIO) -> csv.DictReader[Any]:
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
                    yield Row(path=path, number=number, values=values)


def _open_parquet(path: Path) -> Any:
    require_pyarrow()
    import pyarrow as pa  # noqa: PLC0415  # brings numpy, and is optional
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        return pq.ParquetFile(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet: {error}", path=path) from None
