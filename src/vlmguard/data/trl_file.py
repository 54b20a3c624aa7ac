"""The file that TRL trains on. Needs pyarrow (extra ``synth``)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmguard.data.columns import require_pyarrow
from vlmguard.data.example import Example

if TYPE_CHECKING:
    import pyarrow as pa

_ROWS_AT_ONCE = 100
"""Rows in memory while writing, each with its pictures."""


class TrlFile:
    """Writes ``prompt``, ``completion`` and ``images`` for TRL's ``SFTTrainer``.

    Contents are plain strings: TRL puts the pictures' places before the first user text by itself.
    """

    def __init__(self, path: Path, *, with_images: bool) -> None:
        require_pyarrow()
        import pyarrow.parquet as pq  # noqa: PLC0415

        self._with_images = with_images
        self._schema = _schema(with_images=with_images)
        self._file = pq.ParquetWriter(path, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []

    def write(self, example: Example) -> None:
        """Add a row."""
        row: dict[str, Any] = {
            "prompt": [
                {"role": "system", "content": example.system},
                {"role": "user", "content": example.request},
            ],
            "completion": [{"role": "assistant", "content": example.completion}],
        }
        if self._with_images:
            row["images"] = [
                {"bytes": image.data, "path": name}
                for image, name in zip(example.images, example.names, strict=True)
            ]
        self._rows.append(row)
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._flush()

    def close(self) -> None:
        """Write what waits and end the file."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        import pyarrow as pa  # noqa: PLC0415

        if self._rows:
            self._file.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []


def _schema(*, with_images: bool) -> pa.Schema:
    """The columns, with the note by which `datasets` decodes ``images`` into pictures."""
    import pyarrow as pa  # noqa: PLC0415

    text = {"dtype": "string", "_type": "Value"}
    messages = {"feature": {"role": text, "content": text}, "_type": "List"}
    features: dict[str, Any] = {"prompt": messages, "completion": messages}
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = [("prompt", pa.list_(message)), ("completion", pa.list_(message))]
    if with_images:
        features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
        picture = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        columns.append(("images", pa.list_(picture)))
    return pa.schema(columns, {"huggingface": json.dumps({"info": {"features": features}})})
