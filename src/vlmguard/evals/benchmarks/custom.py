"""Items of one's own: a JSON Lines, JSON, CSV or Parquet file, or a folder with one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.tables import FORMATS, Row, read_rows
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.benchmarks.base import Facts, Loader, stored_picture
from vlmguard.evals.benchmarks.pictures import FilePicture
from vlmguard.evals.types import Kind, Picture, Sample

FACTS = Facts(
    name="custom",
    title="items of one's own: custom:PATH, a folder or a file",
    kinds="as the items say",
    scored="as the chosen judges say",
    counts={},
    folders=("custom",),
    source="",
    licence="",
    get="Name a file of items, or a folder with items.jsonl, and its pictures beside it",
    options={"kind": str},
)
_KINDS: Mapping[str, Kind] = {
    "harmful": "harmful",
    "unsafe": "harmful",
    "risky": "harmful",
    "attack": "harmful",
    "harmless": "harmless",
    "safe": "harmless",
    "benign": "harmless",
    "advice": "advice",
}
_ATTACKS = ("typographic", "jailbreak")
"""What labels of attack collections (JailGuard's, for one) begin with."""


@dataclass(frozen=True, slots=True)
class Custom(Loader):
    """Fields: ``prompt`` (or question, instruction, text), ``kind`` (or label), and where there
    are any ``id``, ``image`` or ``images``, ``category``, ``subset``, ``goal``, ``reference``.
    """

    name: str

    def files(self) -> Sequence[Path]:
        """The one file."""
        where = self.place.folders[0]
        if where.is_file():
            if where.suffix.lower() not in FORMATS:
                raise DataError(f"is none of {', '.join(FORMATS)}", path=where)
            return (where,)
        if not where.is_dir():
            raise DataError("there is no such file or folder", path=where)
        found = self.place.find_all(*(f"items{suffix}" for suffix in FORMATS))
        found = found or self.place.find_all(*(f"*{suffix}" for suffix in FORMATS))
        if len(found) != 1:
            names = ", ".join(path.name for path in found) or "none"
            raise DataError(
                f"has no items.jsonl, and not just one file of items ({names}); name the file",
                path=where,
            )
        return found

    def samples(self) -> Iterator[Sample]:
        """One sample an item; one without an id gets its row's number."""
        for path in self.files():
            for row in read_rows(path):
                yield self._sample(row)

    def _sample(self, row: Row) -> Sample:
        reference = row.values.get("reference") or {}
        if not isinstance(reference, Mapping):
            raise row.wrong(f"'reference' is an object of texts, not {reference!r:.60}")
        return Sample(
            benchmark=self.name,
            id=row.text("id", default=str(row.number)),
            prompt=row.text("prompt", "question", "instruction", "text"),
            kind=self._kind(row),
            pictures=_pictures(row),
            category=row.text("category", "label", default=""),
            subset=row.text("subset", default=""),
            goal=row.text("goal", default=""),
            reference={str(key): str(value) for key, value in reference.items()},
        )

    def _kind(self, row: Row) -> Kind:
        asked = self.place.options.get("kind")
        label = row.text("kind", "label", default=str(asked or ""))
        kind = _KINDS.get(label.strip().lower())
        if kind is not None:
            return kind
        if label.strip().lower().startswith(_ATTACKS):
            return "harmful"
        known = ", ".join(_KINDS)
        if not label:
            raise row.wrong(
                f"has neither kind nor label; give every item one of {known}, or all of them the "
                "same: custom:PATH?kind=harmless"
            )
        raise row.wrong(f"the kind {label!r:.60} is none of {known}")


def known_kind(kind: str) -> None:
    """Refuse a kind that there is not.

    Raises:
        ConfigError: lists the kinds.
    """
    if kind not in _KINDS:
        raise ConfigError(f"kind={kind}: it is one of {', '.join(_KINDS)}")


def _pictures(row: Row) -> tuple[Picture, ...]:
    value = row.values.get("images", row.values.get("image", row.values.get("image_path")))
    cells = value if isinstance(value, list | tuple) else [value]
    return tuple(_picture(row, cell) for cell in cells if cell not in (None, ""))


def _picture(row: Row, cell: object) -> Picture:
    if (stored := stored_picture(row, cell)) is not None:
        return stored
    if not isinstance(cell, str):
        raise row.wrong(f"a picture is a path, not {type(cell).__name__}")
    # One's own file may name pictures anywhere: relative to itself, or absolute.
    return FilePicture(
        name=cell,
        places=(row.path.parent / cell,),
        fix=f"{row.path.name} names it in row {row.number}; paths are relative to that file.",
    )
