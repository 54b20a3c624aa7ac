"""Audit records for other programs: JSON Lines, CSV, Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator
from enum import StrEnum
from io import TextIOWrapper
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vlmguard.errors import MissingExtra
from vlmguard.gateway.audit import AuditRecord

_ROWS = 10_000
"""Of a row group of a Parquet file; the most that is held in memory."""
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class AuditFormat(StrEnum):
    """What an export is written as."""

    JSONL = "jsonl"
    CSV = "csv"
    PARQUET = "parquet"


def export_records(records: Iterable[AuditRecord], sink: BinaryIO, kind: AuditFormat) -> int:
    """Write records as they come; how many there were.

    Args:
        records: in the order of the log.
        sink: takes bytes; stays open.
        kind: as what.

    Raises:
        MissingExtra: Parquet without pyarrow.
        OSError: it cannot be written.
    """
    writers = {
        AuditFormat.JSONL: _jsonl,
        AuditFormat.CSV: _csv,
        AuditFormat.PARQUET: _parquet,
    }
    return writers[kind](iter(records), sink)


def _jsonl(records: Iterator[AuditRecord], sink: BinaryIO) -> int:
    count = 0
    for record in records:
        line = json.dumps(record.to_json(), ensure_ascii=False)
        sink.write(line.encode("utf-8", "replace") + b"\n")
        count += 1
    return count


def _csv(records: Iterator[AuditRecord], sink: BinaryIO) -> int:
    text = TextIOWrapper(sink, encoding="utf-8", errors="replace", newline="", write_through=True)
    count = 0
    try:
        writer = csv.DictWriter(text, AuditRecord.__slots__)
        writer.writeheader()
        for record in records:
            writer.writerow({name: _cell(value) for name, value in _flat(record).items()})
            count += 1
    finally:
        text.detach()  # it would close the sink
    return count


def _cell(value: Any) -> Any:
    # A spreadsheet would run a text of this kind; what people wrote may be one.
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _flat(record: AuditRecord) -> dict[str, Any]:
    """What has parts as JSON text, so that every value fits a cell."""
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value
        for name, value in record.to_json().items()
    }


def _parquet(records: Iterator[AuditRecord], sink: BinaryIO) -> int:
    try:
        import pyarrow as pa  # noqa: PLC0415
        import pyarrow.parquet as pq  # noqa: PLC0415
    except ImportError as error:  # pragma: no cover - tests run with the extra
        raise MissingExtra("exporting Parquet", "synth") from error
    texts, numbers, steps = pa.string(), pa.float64(), pa.map_(pa.string(), pa.float64())
    tokens = pa.struct(
        [(name, pa.int64()) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")]
    )
    report = pa.struct([(name, texts) for name in ("textual", "visual", "multimodal")])
    special = {
        "time": pa.timestamp("us", tz="UTC"),
        "status": pa.int32(),
        "risk": numbers,
        "shadow_risk": numbers,
        "changed": pa.bool_(),
        "streamed": pa.bool_(),
        "image_sha256s": pa.list_(texts),
        "latency_ms": steps,
        "usage": tokens,
        "report": report,
    }
    schema = pa.schema([(name, special.get(name, texts)) for name in AuditRecord.__slots__])
    count = 0
    with pq.ParquetWriter(sink, schema) as writer:
        while group := list(islice(records, _ROWS)):
            rows = [
                {**row.to_json(), "time": row.time, "latency_ms": list(row.latency_ms.items())}
                for row in group
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            count += len(rows)
    return count


def format_of(path: Path) -> AuditFormat | None:
    """The format that a file's name asks for."""
    suffix = path.suffix.lower().lstrip(".")
    return AuditFormat(suffix) if suffix in set(AuditFormat) else None
