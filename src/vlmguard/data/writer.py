"""A dataset folder, written as a stream.

::

    FOLDER/README.md                                the card
    FOLDER/dataset.json                             schema version, shards with their hashes
    FOLDER/data/train-00000-of-00003.parquet        records; validation-… and test-… likewise
    FOLDER/images/ab/ab34….png                      pictures, named after their SHA-256
    FOLDER/.unfinished/                             shards of a run that was not finished

``dataset.json`` comes last, and an older one goes first: where it is, the folder is whole. Until
`DatasetWriter.finish`, an older dataset in the folder stays as it is. Same records in the same
order, same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vlmguard.data.card import CardFacts, render_card
from vlmguard.data.columns import require_pyarrow, write_table
from vlmguard.data.records import SCHEMA_VERSION, ImageRef, Split, TrainingRecord
from vlmguard.data.tally import Tally
from vlmguard.errors import ConfigError, DataError, InputError
from vlmguard.types import Image

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
_EXTENSIONS = {
    "image/png": "png",
    "image/jpeg": "jpg",
    "image/gif": "gif",
    "image/webp": "webp",
    "image/bmp": "bmp",
    "image/tiff": "tiff",
    "image/avif": "avif",
    "image/heic": "heic",
}


def image_ref(image: Image) -> ImageRef:
    """How a record names a picture that `DatasetWriter.add` stores.

    Raises:
        InputError: its media type is none that `vlmguard.images` reads.
    """
    extension = _EXTENSIONS.get(image.media_type)
    if extension is None:
        raise InputError(
            f"{image.source}: pictures of type {image.media_type!r} cannot be stored; "
            f"these can: {', '.join(_EXTENSIONS)}"
        )
    path = f"images/{image.sha256[:2]}/{image.sha256}.{extension}"
    return ImageRef(sha256=image.sha256, media_type=image.media_type, path=path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shard:
    split: Split
    records: int
    path: Path


class DatasetWriter:
    """Writes one dataset folder. Holds at most ``shard_records`` records a split in memory.

    Args:
        folder: created where needed; an older dataset in it is replaced by `finish`.
        shard_records: records in a Parquet file.

    Raises:
        MissingExtra: pyarrow is not installed.
        ConfigError: ``shard_records`` is not positive.
        DataError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, shard_records: int = 2000) -> None:
        require_pyarrow()
        if shard_records < 1:
            raise ConfigError(f"shard_records must be 1 or more, not {shard_records}")
        self._folder = folder
        self._unfinished = folder / ".unfinished"
        self._shard_records = shard_records
        self._waiting: dict[Split, list[TrainingRecord]] = {split: [] for split in SPLITS}
        self._shards: list[_Shard] = []
        self._finished = False
        self.tally = Tally()
        with _writing(folder):
            shutil.rmtree(self._unfinished, ignore_errors=True)
            self._unfinished.mkdir(parents=True)

    def add(self, record: TrainingRecord, images: Sequence[Image] = ()) -> None:
        """Store a record and its pictures.

        Args:
            record: its split is its own (`vlmguard.data.split_of` gives one). ``images`` may be
                left empty when the pictures are given here; otherwise they must agree with them.
            images: in the record's order; may be left out when they are in the folder already.

        Raises:
            ValueError: the pictures do not agree with the record or are nowhere, ``meta`` has
                values that JSON does not know (told when the shard is written), or the dataset
                is finished.
            DataError: the folder cannot be written, e.g. the disk is full.
        """
        if self._finished:
            raise ValueError("this dataset is finished; open another writer")
        refs = tuple(image_ref(image) for image in images)
        if refs and not record.images:
            record = record.model_copy(update={"images": refs})
        elif refs and refs != record.images:
            raise ValueError(f"record {record.id!r} names other pictures than it came with")
        elif not refs:
            self._expect_images(record)
        for image, ref in zip(images, refs, strict=True):
            self._store(image, self._folder / ref.path)
        self.tally.add(record)
        waiting = self._waiting[record.split]
        waiting.append(record)
        if len(waiting) >= self._shard_records:
            self._write_shard(record.split)

    def finish(self, card: CardFacts) -> None:
        """Write what waits, the card and ``dataset.json``; the folder is whole after this.

        Raises:
            DataError: the folder cannot be written.
        """
        for split in SPLITS:
            if self._waiting[split]:
                self._write_shard(split)
        index = self._folder / "dataset.json"
        with _writing(self._folder):
            index.unlink(missing_ok=True)
            shards = self._place_shards()
            _replace(self._folder / "README.md", render_card(card, self.tally).encode())
            told = {
                "schema_version": SCHEMA_VERSION,
                "records": self.tally.records,
                "shards": shards,
            }
            _replace(index, (json.dumps(told, indent=2) + "\n").encode())
            shutil.rmtree(self._unfinished)
        self._finished = True

    def _expect_images(self, record: TrainingRecord) -> None:
        for ref in record.images:
            if not (self._folder / ref.path).is_file():
                raise ValueError(
                    f"record {record.id!r} names {ref.path}, which is not in {self._folder}; "
                    "give the picture with the record"
                )

    def _store(self, image: Image, path: Path) -> None:
        with _writing(path):
            # The size tells a file that a crash of the machine cut short.
            if not path.exists() or path.stat().st_size != len(image.data):
                path.parent.mkdir(parents=True, exist_ok=True)
                _replace(path, image.data)

    def _write_shard(self, split: Split) -> None:
        number = sum(shard.split == split for shard in self._shards)
        path = self._unfinished / f"{split}-{number:05}.parquet"
        records = self._waiting[split]
        with _writing(path):
            write_table(records, path)
        self._shards.append(_Shard(split=split, records=len(records), path=path))
        self._waiting[split] = []

    def _place_shards(self) -> list[dict[str, object]]:
        """Move the shards to their final names; whatever shards were there before go."""
        data = self._folder / "data"
        data.mkdir(exist_ok=True)
        for split in SPLITS:
            for old in data.glob(f"{split}-*.parquet"):
                old.unlink()
        told: list[dict[str, object]] = []
        totals = {split: sum(shard.split == split for shard in self._shards) for split in SPLITS}
        for split in SPLITS:
            mine = [shard for shard in self._shards if shard.split == split]
            for number, shard in enumerate(mine):
                final = data / f"{split}-{number:05}-of-{totals[split]:05}.parquet"
                shard.path.replace(final)
                with final.open("rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
                told.append(
                    {
                        "path": final.relative_to(self._folder).as_posix(),
                        "split": split,
                        "records": shard.records,
                        "bytes": final.stat().st_size,
                        "sha256": digest,
                    }
                )
        return told


def _replace(path: Path, data: bytes) -> None:
    """Write a file so that it is either whole or not there."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot be written: {error.strerror or error}", path=path) from error
