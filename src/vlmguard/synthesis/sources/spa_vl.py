"""SPA-VL (sqrti/SPA-VL): preference pairs about pictures, Parquet with the pictures inside."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.tables import Parquet
from vlmguard.errors import DataError
from vlmguard.synthesis.seeds import Seed
from vlmguard.synthesis.sources.columns import MappedSource

COLUMNS = ("image", "question", "chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaVL:
    """``chosen`` is the safe answer, ``rejected`` the unsafe one; requests carry no label.

    Attributes:
        name: of the source.
        paths: Parquet files, in order.
        licence: goes into the seeds.
    """

    name: str
    paths: Sequence[Path]
    licence: str = ""

    def count(self) -> int | None:
        """Rows of all files."""
        return Parquet(self.paths).count()

    def seeds(self) -> Iterator[Seed]:
        """One seed a row.

        Raises:
            DataError: the columns are others.
        """
        table = Parquet(self.paths)
        found = table.columns()
        if missing := [column for column in COLUMNS if column not in found]:
            raise DataError(
                f"not SPA-VL: no column {', '.join(missing)}; columns found: {', '.join(found)}",
                path=self.paths[0],
            )
        chosen = {
            "prompt": "question",
            "images": "image",
            "safe_response": "chosen",
            "unsafe_response": "rejected",
        }
        yield from MappedSource(
            name=self.name,
            table=table,
            path=self.paths[0],
            chosen=chosen,
            licence=self.licence,
            meta_columns=("class1", "class2", "class3"),
        ).seeds()
