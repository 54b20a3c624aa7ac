"""Records from wherever they are: dataset folders, Parquet, JSON Lines, contrast sets.

Streams; memory does not grow with the data.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError

from vlmguard.data.columns import scan_table
from vlmguard.data.contrast import parse_contrast
from vlmguard.data.found import Found, problem_of
from vlmguard.data.records import SCHEMA_VERSION, Split, TrainingRecord
from vlmguard.data.splits import DEFAULT_SHARES, SplitShares
from vlmguard.errors import DataError

_KINDS = "a dataset folder, a .parquet file, a .jsonl file, or a folder of .jsonl files"


class ShardFacts(BaseModel):
    """An entry of ``dataset.json``."""

    path: str
    split: Split
    records: int
    bytes: int
    sha256: str


class DatasetIndex(BaseModel):
    """``dataset.json``: what `vlmguard.data.DatasetWriter` wrote."""

    schema_version: int
    records: int
    shards: tuple[ShardFacts, ...]


def read_records(path: Path, *, shares: SplitShares = DEFAULT_SHARES) -> Iterator[TrainingRecord]:
    """Read records from a dataset folder, a Parquet or JSONL file, or a folder of JSONL files.

    Args:
        path: JSONL may hold `TrainingRecord` objects or the contrast sets' format, told by the
            first line.
        shares: of the splits that families of contrast sets are put in.

    Raises:
        DataError: nothing that can be read, or a wrong line; names file, line and field.
        MissingExtra: Parquet without pyarrow.
    """
    for found in scan(path, shares=shares):
        if isinstance(found.outcome, DataError):
            raise found.outcome
        yield found.outcome


def scan(path: Path, *, shares: SplitShares = DEFAULT_SHARES) -> Iterator[Found]:
    """Like `read_records`, but a wrong line is given as its error, and reading goes on.

    Raises:
        DataError: nothing that can be read.
        MissingExtra: Parquet without pyarrow.
    """
    if is_dataset(path):
        for shard in read_index(path).shards:
            yield from scan_table(path / shard.path, path)
        return
    numbers: Counter[str] = Counter()
    for file in data_files(path):
        if file.suffix == ".parquet":
            in_dataset = file.parent.name == "data" and is_dataset(file.parent.parent)
            yield from scan_table(file, file.parent.parent if in_dataset else file.parent)
        else:
            yield from _scan_jsonl(file, numbers, shares)


def is_dataset(path: Path) -> bool:
    """Whether this is a folder that `vlmguard.data.DatasetWriter` finished."""
    return (path / "dataset.json").is_file()


def read_index(folder: Path) -> DatasetIndex:
    """The shards of a dataset folder.

    Raises:
        DataError: ``dataset.json`` is damaged, or of another schema version.
    """
    path = folder / "dataset.json"
    try:
        index = DatasetIndex.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(problem_of(error), path=path) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None
    if index.schema_version != SCHEMA_VERSION:
        raise DataError(
            f"has schema version {index.schema_version}; this program reads {SCHEMA_VERSION}",
            path=path,
        )
    return index


def data_files(path: Path) -> list[Path]:
    """The data files that ``path`` names, by name, when it is no dataset folder.

    Raises:
        DataError: there are none.
    """
    if path.is_file():
        if path.suffix in {".jsonl", ".parquet"}:
            return [path]
        raise DataError(f"is no data file; expected {_KINDS}", path=path)
    if not path.is_dir():
        raise DataError(f"does not exist; expected {_KINDS}", path=path)
    if (path / ".unfinished").is_dir():
        raise DataError(
            "is a dataset that was never finished; run the command that writes it again", path=path
        )
    files = sorted(file for file in path.iterdir() if file.suffix in {".jsonl", ".parquet"})
    if not files:
        raise DataError(f"holds no data; expected {_KINDS}", path=path)
    return files


def _scan_jsonl(path: Path, numbers: Counter[str], shares: SplitShares) -> Iterator[Found]:
    def parse_authored(line: bytes) -> TrainingRecord:
        return parse_contrast(line, numbers, shares)

    parse: Callable[[bytes], TrainingRecord] | None = None
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
                if not line.strip():
                    continue
                if parse is None:
                    authored = _is_authored(line)
                    parse = parse_authored if authored else TrainingRecord.model_validate_json
                outcome = _outcome(parse, line, path, number)
                yield Found(
                    outcome=outcome, path=path, line=number, root=path.parent, authored=authored
                )
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", path=path) from None


def _is_authored(line: bytes) -> bool:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "carrier" in value and "id" not in value


def _outcome(
    parse: Callable[[bytes], TrainingRecord], line: bytes, path: Path, number: int
) -> TrainingRecord | DataError:
    try:
        return parse(line)
    except ValidationError as error:
        return DataError(problem_of(error), path=path, line=number)
    except (ValueError, RecursionError) as error:
        return DataError(f"not valid JSON: {error}", path=path, line=number)
