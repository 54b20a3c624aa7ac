"""Rows of the files that benchmarks come in, and values of rows."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

from vlmguard.data.columns import require_pyarrow
from vlmguard.errors import DataError, MissingExtra

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        path: the file, or the name of a dataset on the Hugging Face Hub.
        number: row, counted from 1; of JSON Lines, the line.
        values: column → value.
    """

    path: Path
    number: int
    values: Mapping[str, Any]

    def text(self, *names: str, default: str | None = None) -> str:
        """The text under the first of the names that the row has; numbers become text.

        Lone surrogates, which JSON can spell and no model takes, become question marks.

        Raises:
            DataError: none of them, and no default.
        """
        for name in names:
            value = self.values.get(name)
            if isinstance(value, str):
                return value.encode("utf-8", "replace").decode("utf-8")
            if isinstance(value, int | float) and not isinstance(value, bool):
                return str(value)
        if default is not None:
            return default
        found = ", ".join(map(str, self.values)) or "none"
        raise self.wrong(f"no text under {' or '.join(names)}; keys found: {found}")

    def wrong(self, message: str) -> DataError:
        """An error about this row."""
        return DataError(message, path=self.path, line=self.number)


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a ``.csv``, ``.jsonl``, ``.json`` (one array of objects) or ``.parquet`` file.

    Raises:
        DataError: cannot be read, or a row is not an object; names the row.
        MissingExtra: Parquet without pyarrow.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif path.suffix == ".csv":
        yield from _csv(path)
    elif path.suffix == ".jsonl":
        yield from _json_lines(path)
    else:
        found = read_json(path)
        if not isinstance(found, list):
            raise DataError(f"holds a {type(found).__name__}, not a list of objects", path=path)
        for number, item in enumerate(found, 1):
            yield _object(path, number, item)


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: cannot be read, or is no JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no valid JSON: {error}", path=path) from None


def hub_rows(dataset: str, *, split: str | None = None, config: str | None = None) -> Iterator[Row]:
    """The rows of a dataset of the Hugging Face Hub, or of a folder in its layout, streamed.

    Pictures stay encoded.

    Args:
        dataset: ``org/name``, or a folder.
        split: which split of it; without one, the only one, or ``test``.
        config: which of its configurations, where it has several.

    Raises:
        MissingExtra: ``datasets`` is not installed.
        DataError: it cannot be opened (no such dataset, gated, no network, …).
    """
    try:
        # By name, since type checkers take a folder `datasets` for it.
        datasets: Any = import_module("datasets")
    except ImportError:
        raise MissingExtra("a benchmark from the Hugging Face Hub", "synth") from None
    where = Path(dataset)
    try:
        loaded = datasets.load_dataset(dataset, config, split=split, streaming=True)
        if split is None:
            loaded = next(iter(loaded.values())) if len(loaded) == 1 else loaded["test"]
        for name, feature in (loaded.features or {}).items():
            if isinstance(feature, datasets.Image):
                loaded = loaded.cast_column(name, datasets.Image(decode=False))
        for number, values in enumerate(loaded, 1):
            yield Row(path=where, number=number, values=values)
    # The library raises everything from ValueError to its HTTP client's own errors.
    except Exception as error:
        raise DataError(
            f"cannot be read from the Hugging Face Hub: {error}. Check the network; of a gated "
            "dataset, accept the terms on its page and log in with `hf auth login`",
            path=where,
        ) from error


def hub_folder(dataset: str) -> Path:
    """Download a dataset repository whole, files as they are there, into the hub's cache.

    Args:
        dataset: ``org/name``.

    Raises:
        MissingExtra: ``huggingface_hub`` is not installed.
        DataError: it cannot be had.
    """
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415  # optional
    except ImportError:
        raise MissingExtra("a benchmark from the Hugging Face Hub", "synth") from None
    try:
        return Path(snapshot_download(dataset, repo_type="dataset"))
    except Exception as error:
        raise DataError(
            f"cannot be downloaded from the Hugging Face Hub: {error}. Check the network; of a "
            "gated dataset, accept the terms on its page and log in with `hf auth login`",
            path=Path(dataset),
        ) from error


def _object(path: Path, number: int, item: Any) -> Row:
    if not isinstance(item, dict):
        raise DataError(f"a {type(item).__name__}, not an object", path=path, line=number)
    return Row(path=path, number=number, values=item)


def _json_lines(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    yield _object(path, number, _parsed(path, number, line))
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except UnicodeDecodeError as error:
        raise DataError(f"is not UTF-8: {error}", path=path) from None


def _parsed(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is no valid JSON: {error}", path=path, line=number) from None


def _csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for number, values in enumerate(csv.DictReader(file), 1):
                if None in values:
                    raise DataError(
                        "more cells than the header has columns", path=path, line=number
                    )
                yield Row(path=path, number=number, values=values)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"is no valid CSV: {error}", path=path) from None


def _parquet(path: Path) -> Iterator[Row]:
    require_pyarrow()
    import pyarrow as pa  # noqa: PLC0415  # brings numpy, and is optional
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            batches = (batch.to_pylist() for batch in file.iter_batches(batch_size=32))
            for number, values in enumerate(chain.from_iterable(batches), 1):
                yield Row(path=path, number=number, values=values)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as Parquet: {error}", path=path) from None
