"""What a loader is: published facts about a benchmark, and a reader of its layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vlmguard.data.tables import Row
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks.pictures import FilePicture, StoredPicture, leads_out
from vlmguard.evals.types import Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is published about a benchmark.

    Attributes:
        name: the variant's name.
        title: one line for lists.
        kinds: the kinds of its samples, for lists.
        scored: what its official score is, in a few words.
        counts: subset → published number of samples; ``""`` stands for the whole where there are
            no subsets, ``None`` for a number that is not published. Empty where the data say what
            subsets there are.
        folders: names that its folder may have; case, ``-`` and ``_`` do not count.
        source: home page.
        licence: of its data.
        get: how to get the data, as a sentence.
        hub: its id on the Hugging Face Hub, where ``?hub`` reads it from there.
        hub_rows: whether it is streamed from there row by row; otherwise its files are downloaded.
        options: the variant's own options → type.
        tiny: published number of samples of the official tiny list (``?tiny``), where there is one.
    """

    name: str
    title: str
    kinds: str
    scored: str
    counts: Mapping[str, int | None]
    folders: tuple[str, ...]
    source: str
    licence: str
    get: str
    hub: str | None = None
    hub_rows: bool = False
    options: Mapping[str, type] = field(default_factory=dict)
    tiny: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a benchmark's files are looked for.

    Attributes:
        folders: looked through in order; none where there is no data directory.
        data: the data directory, for messages.
        facts: of the benchmark.
        hub: dataset on the Hugging Face Hub (or a folder in its layout) whose rows are read in
            place of files.
        options: the variant's own options, converted.
    """

    folders: tuple[Path, ...]
    data: Path
    facts: Facts
    hub: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def find(self, *patterns: str) -> Path:
        """The first file that matches one of the glob patterns, tried in order.

        Raises:
            DataError: there is none; says how to get it.
        """
        found = self.find_all(*patterns)
        if not found:
            raise self.missing(patterns[0])
        return found[0]

    def find_all(self, *patterns: str) -> list[Path]:
        """All files that match the first pattern that matches any, sorted by name."""
        for pattern in patterns:
            for folder in self.folders:
                if found := sorted(path for path in folder.glob(pattern) if path.is_file()):
                    return found
        return []

    def missing(self, what: str) -> DataError:
        """An error about a file that is not there."""
        hub = f", or read it from the Hugging Face Hub: {self.facts.name}?hub"
        return DataError(
            f"there is no {what} of {self.facts.name} here. {self.facts.get}, and put it into "
            f"{self.data / self.facts.folders[0]} (or name its folder: {self.facts.name}?path=…)"
            f"{hub if self.facts.hub else ''}",
            path=self.folders[0] if self.folders else self.data,
        )

    def picture(self, row: Row, name: str, *parents: str, fix: str = "") -> FilePicture:
        """A picture file that a row names.

        Args:
            row: names it.
            name: relative to one of the parents.
            parents: folders in the benchmark's, as its layout and others' copies have them.
            fix: how to get it; as for the whole benchmark unless told.

        Raises:
            DataError: the name leads out of the folder; the row comes from others.
        """
        if leads_out(name):
            raise row.wrong(f"the picture {name!r} does not stay in the benchmark's folder")
        places = tuple(
            folder / parent / name for folder in self.folders for parent in (*parents, "")
        )
        return FilePicture(name=name, places=places, fix=fix or f"{self.facts.get}.")


def stored_picture(row: Row, cell: object) -> StoredPicture | None:
    """The picture inside a cell: bytes, or ``{"bytes": …}``; ``None`` where it holds none."""
    data = cell.get("bytes") if isinstance(cell, Mapping) else cell
    return StoredPicture(data=data, table=row.path) if isinstance(data, bytes) and data else None


@dataclass(frozen=True, slots=True)
class Loader(ABC):
    """Reads one benchmark's layout.

    Attributes:
        place: where its files are.
    """

    place: Place

    @abstractmethod
    def files(self) -> Sequence[Path]:
        """The data files that are read, without the pictures; none of a dataset on the hub.

        Raises:
            DataError: one is missing; says how to get it.
        """

    @abstractmethod
    def samples(self) -> Iterator[Sample]:
        """The samples in the benchmark's order, lazily.

        Raises:
            DataError: a file is missing or damaged.
        """

    def notes(self) -> Sequence[str]:
        """What a reader should know about these data, e.g. that it is the tiny list.

        Raises:
            DataError: a file is missing or damaged.
        """
        return ()
