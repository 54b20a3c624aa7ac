"""Records as Parquet: the columns, and the way there and back. Needs pyarrow (extra ``synth``).

Nested fields are typed columns, so that any Parquet reader can filter by them; ``meta`` alone is
free-form and stands as a JSON string.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vlmguard.data.found import Found, problem_of
from vlmguard.data.records import SCHEMA_VERSION, TrainingRecord
from vlmguard.errors import DataError, MissingExtra

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 500
"""Rows in memory while reading; a row is a few kilobytes."""


def require_pyarrow() -> None:
    """Tell early, and with the fix, that Parquet cannot be used here.

    Raises:
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401, PLC0415
    except ImportError:
        raise MissingExtra("reading or writing Parquet files", "synth") from None


@cache
def _schema() -> pa.Schema:
    import pyarrow as pa  # noqa: PLC0415

    text = pa.string()
    image = pa.struct([("sha256", text), ("media_type", text), ("path", text)])
    guess = pa.struct([("label", text), ("probability", pa.float64())])
    evidence = pa.struct(
        [
            ("text", pa.list_(text)),
            ("objects", pa.list_(guess)),
            ("nudity", pa.float64()),
            ("description", text),
        ]
    )
    scores = ("safety_before", "safety_after", "helpfulness_before", "helpfulness_after")
    verification = pa.struct([*((name, pa.float64()) for name in scores), ("attempts", pa.int32())])
    feature = pa.struct([("feature", text), ("span", text), ("harm", text)])
    columns = dict.fromkeys(TrainingRecord.model_fields, text)
    columns |= {
        "images": pa.list_(image),
        "evidence": pa.list_(evidence),
        "earlier": pa.list_(pa.struct([("role", text), ("text", text)])),
        "features": pa.list_(feature),
        "triggers": pa.list_(text),
        "severity": pa.int8(),
        "verification": verification,
    }
    return pa.schema(columns.items(), metadata={"vlmguard.schema_version": str(SCHEMA_VERSION)})


def _row(record: TrainingRecord) -> dict[str, Any]:
    row = record.model_dump()
    row["meta"] = json.dumps(record.meta, sort_keys=True)
    for seen in row["evidence"]:
        seen["objects"] = [{"label": name, "probability": p} for name, p in seen["objects"]]
    return row


def write_table(records: Sequence[TrainingRecord], path: Path) -> None:
    """Write records to a Parquet file; the same records give the same bytes.

    Raises:
        ValueError: a record's ``meta`` has values that JSON does not know.
        OSError: e.g. the disk is full.
    """
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    rows = []
    for record in records:
        try:
            rows.append(_row(record))
        except TypeError as error:
            raise ValueError(f"the meta of record {record.id!r} is not JSON: {error}") from None
    pq.write_table(pa.Table.from_pylist(rows, schema=_schema()), path, compression="zstd")


def scan_table(path: Path, root: Path) -> Iterator[Found]:
    """Read a Parquet file a batch at a time; a row that is no record gives its error.

    Args:
        path: the file.
        root: what the records' picture paths are relative to.

    Raises:
        DataError: not Parquet, or without the columns of a record.
        MissingExtra: pyarrow is not installed.
    """
    require_pyarrow()
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(file.schema_arrow, path)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                for row in batch.to_pylist():
                    number += 1
                    outcome = _outcome(row, path, number)
                    yield Found(outcome=outcome, path=path, line=number, root=root)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"cannot be read as Parquet: {error}", path=path) from None


def _check_columns(found: pa.Schema, path: Path) -> None:
    missing = [
        name
        for name, info in TrainingRecord.model_fields.items()
        if info.is_required() and name not in found.names
    ]
    if missing:
        raise DataError(
            f"the columns {missing} are missing; the file has {sorted(found.names)}", path=path
        )
    version = (found.metadata or {}).get(b"vlmguard.schema_version", b"1").decode()
    if version != str(SCHEMA_VERSION):
        raise DataError(
            f"has schema version {version}; this program reads {SCHEMA_VERSION}", path=path
        )


def _outcome(row: dict[str, Any], path: Path, number: int) -> TrainingRecord | DataError:
    try:
        # Columns that another program left out or left empty take the record's defaults.
        fields = {name: value for name, value in row.items() if value is not None}
        if isinstance(meta := fields.get("meta"), str):
            fields["meta"] = json.loads(meta)
        for seen in fields.get("evidence", ()):
            seen["objects"] = [(guess["label"], guess["probability"]) for guess in seen["objects"]]
        return TrainingRecord.model_validate(fields)
    except ValidationError as error:
        return DataError(problem_of(error), path=path, line=number)
    except (KeyError, TypeError, ValueError) as error:
        return DataError(f"not a record: {error!r}", path=path, line=number)
