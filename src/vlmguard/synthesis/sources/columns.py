"""From the columns of any table to seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmguard.data.tables import Row, Table, clean
from vlmguard.errors import ConfigError, DataError
from vlmguard.synthesis.seeds import Label, Picture, Seed

FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id",),
    "family": ("family",),
    "prompt": ("prompt", "question", "instruction"),
    "images": ("images", "image", "image_path"),
    "safe_response": ("safe_response", "chosen"),
    "unsafe_response": ("unsafe_response", "rejected"),
    "label": ("label",),
    "licence": ("licence", "license"),
}
"""Field of a seed → column names that are taken for it unless a map says otherwise."""

_LABELS: Mapping[str, Label] = {
    "benign": "benign",
    "safe": "benign",
    "harmless": "benign",
    "risky": "risky",
    "unsafe": "risky",
    "harmful": "risky",
}


class _Unusable(Exception):
    """A value that makes a row unusable; the message becomes `Seed.problem`."""


def parse_map(text: str) -> dict[str, str]:
    """``"prompt=question,images=img"`` as field → column.

    Raises:
        ConfigError: not of that form, or no such field.
    """
    chosen: dict[str, str] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, equals, column = (piece.strip() for piece in part.partition("="))
        if not equals or not column:
            raise ConfigError(f"column map {part!r}: it reads field=column,field=column")
        if name not in FIELDS:
            raise ConfigError(
                f"column map: there is no field {name!r}; fields: {', '.join(FIELDS)}"
            )
        if name in chosen:
            raise ConfigError(f"column map: field {name!r} stands twice")
        chosen[name] = column
    return chosen


def check_columns(columns: Sequence[str], chosen: Mapping[str, str], path: Path) -> None:
    """Refuse a table that cannot give seeds.

    Raises:
        DataError: a mapped column is not there, or nothing gives a prompt or a picture; it names
            the columns that were found.
    """
    found = ", ".join(columns) or "none"
    if missing := sorted(column for column in chosen.values() if column not in columns):
        raise DataError(f"no column {', '.join(missing)}; columns found: {found}", path=path)
    wanted = {"prompt", "images"}
    if not wanted & chosen.keys() and not any(
        guess in columns for name in wanted for guess in FIELDS[name]
    ):
        raise DataError(
            f"no column holds a prompt or a picture; columns found: {found}. "
            "Name them: --map prompt=COLUMN,images=COLUMN",
            path=path,
        )


def _columns(row: Row, chosen: Mapping[str, str]) -> dict[str, str]:
    """Field → column of one row; rows of JSON may have different keys."""
    guessed = {
        name: next((guess for guess in guesses if guess in row.values), "")
        for name, guesses in FIELDS.items()
    }
    return {name: column for name, column in (guessed | dict(chosen)).items() if column}


@dataclass(frozen=True, slots=True, kw_only=True)
class MappedSource:
    """Seeds from a table through a column map.

    Attributes:
        name: of the source.
        table: gives the rows.
        path: for messages; relative pictures lie beside it.
        chosen: field → column, as the user mapped them.
        licence: for seeds that bring none.
        image_separator: splits a text cell that names several pictures (CSV).
        meta_columns: columns that go into `Seed.meta` where they hold plain values.
    """

    name: str
    table: Table
    path: Path
    chosen: Mapping[str, str]
    licence: str = ""
    image_separator: str | None = None
    meta_columns: tuple[str, ...] = ()

    def count(self) -> int | None:
        """As the table says."""
        return self.table.count()

    def seeds(self) -> Iterator[Seed]:
        """One seed a row."""
        check_columns(self.table.columns(), self.chosen, self.path)
        for row in self.table.rows():
            yield self._seed(row)

    def _seed(self, row: Row) -> Seed:
        columns = _columns(row, self.chosen)
        given = row.values.get(columns.get("id", ""))
        number = f"{row.number:08}"
        seed_id = clean(f"{self.name}/{number if given is None or given == '' else given}")
        try:
            return self._usable(row, columns, seed_id)
        except _Unusable as error:
            return Seed(
                id=seed_id,
                family=seed_id,
                prompt="",
                source=self.name,
                problem=f"row {row.number}: {error}",
            )

    def _usable(self, row: Row, columns: Mapping[str, str], seed_id: str) -> Seed:
        """The seed of a row.

        Raises:
            _Unusable: says why there is none.
        """
        if row.problem is not None:
            raise _Unusable(row.problem)
        texts = {
            name: _text(row.values.get(column), column)
            for name, column in columns.items()
            if name not in {"id", "images"}
        }
        named = row.values.get(columns.get("images", ""))
        images = pictures(named, self.path.parent, self.image_separator)
        prompt = texts.get("prompt") or ""
        if not prompt.strip() and not images:
            raise _Unusable("neither a prompt nor a picture")
        return Seed(
            id=seed_id,
            family=texts.get("family") or family(self.name, images, seed_id),
            prompt=prompt,
            images=images,
            safe_response=texts.get("safe_response") or None,
            unsafe_response=texts.get("unsafe_response") or None,
            label=_label(texts.get("label")),
            source=self.name,
            licence=texts.get("licence") or self.licence,
            meta=self._meta(row),
        )

    def _meta(self, row: Row) -> dict[str, Any]:
        found = {name: row.values.get(name) for name in self.meta_columns}
        return {name: value for name, value in found.items() if isinstance(value, str | int | bool)}


def family(source: str, images: Sequence[Picture], otherwise: str) -> str:
    """Seeds of one source about the same picture are of one family."""
    if images and not isinstance(images[0], bytes):
        name = images[0].name if isinstance(images[0], Path) else images[0][:200]
        return f"{source}/{name}"
    return otherwise


def pictures(value: Any, folder: Path, separator: str | None = None) -> tuple[Picture, ...]:
    """The pictures that a cell names: path, URL, bytes, ``{"bytes", "path"}``, or a list of them.

    Raises:
        _Unusable: something else.
    """
    if isinstance(value, str) and separator and separator in value:
        value = [part.strip() for part in value.split(separator)]
    items = value if isinstance(value, list | tuple) else [value]
    found = (_picture(item, folder) for item in items)
    return tuple(picture for picture in found if picture is not None)


def _picture(value: Any, folder: Path) -> Picture | None:
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        data = value.get("bytes")
        value = value.get("path") if data is None else data
    if value is None or value == "":
        return None
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    if not isinstance(value, str):
        raise _Unusable(f"a picture is a path, a URL or bytes, not {type(value).__name__}")
    if value.lstrip().lower().startswith(("data:", "http:", "https:")):
        return value.strip()
    return folder / clean(value)


def _text(value: Any, column: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise _Unusable(f"column {column!r} holds {type(value).__name__}, not text")
    return clean(value)


def _label(value: str | None) -> Label | None:
    if value is None or not value.strip():
        return None
    label = _LABELS.get(value.strip().lower())
    if label is None:
        raise _Unusable(f"label {value!r:.60} is none of {', '.join(_LABELS)}")
    return label
