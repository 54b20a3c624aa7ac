"""What a run has paid for: answers and judgements, apart, in two files of JSON lines.

A line is appended and handed to the system as soon as an answer is there, so a killed process
loses what was in flight and nothing else; a half-written last line is cut off. Answers are found
by a key made of everything that decides them (`answer_key`), judgements by answer and judge. Of two
lines with one key the later counts, so that a failure can be tried again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from pydantic import TypeAdapter, ValidationError

from vlmguard.errors import DataError, StoreError
from vlmguard.evals.types import Answer, Judgement
from vlmguard.models.lock import exclusive

Row = TypeVar("Row", "StoredAnswer", "StoredJudgement")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredAnswer:
    """A line of ``answers.jsonl``.

    Attributes:
        key: see `answer_key`.
        pictures: sha256 of each picture that was sent.
        retryable: the failure in it may pass: a later run asks once more.
        answer: what came back.
    """

    key: str
    pictures: tuple[str, ...] = ()
    retryable: bool = False
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredJudgement:
    """A line of ``judgements.jsonl``.

    Attributes:
        key: see `judgement_key`.
        benchmark, sample_id, target, defence: of the answer, for people who read the file.
        retryable: the judge could not be reached: a later run asks once more.
        judgement: what the judge said.
    """

    key: str
    benchmark: str
    sample_id: str
    target: str
    defence: str
    retryable: bool = False
    judgement: Judgement


def digest(*parts: str) -> str:
    """A sha256 over texts, each with its length, so that no two lists meet in one digest."""
    found = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8) + data)
    return found.hexdigest()


def judgement_key(answer: StoredAnswer, judge: str) -> str:
    """Of this judge about exactly this answer."""
    return digest(answer.key, answer.answer.text, str(answer.answer.error), judge)


class _File:
    """An append-only file of JSON lines of one dataclass."""

    def __init__(self, path: Path, row: Any, *, read_only: bool) -> None:
        self._adapter: TypeAdapter[Any] = TypeAdapter(row)
        self._path = path
        self._sink: BinaryIO | None = None
        if not read_only:
            self._sink = open(path, "a+b")  # noqa: SIM115, PTH123  # closed by `close`

    def rows(self) -> Iterator[Any]:
        """All lines; a torn last one is left out, and cut off where this may write."""
        if self._sink is None and not self._path.is_file():
            return
        end = 0
        with self._path.open("rb") as source:
            for number, line in enumerate(source, start=1):
                if not line.endswith(b"\n"):
                    break
                end += len(line)
                try:
                    yield self._adapter.validate_json(line)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    raise DataError(
                        f"not a line of this version's format: {first['msg']}; "
                        "put the file aside, or name another --out",
                        path=self._path,
                        line=number,
                    ) from None
        if self._sink is not None:
            self._sink.truncate(end)
            self._sink.seek(0, os.SEEK_END)

    def add(self, row: object) -> None:
        assert self._sink is not None, "opened for reading only"
        self._sink.write(self._adapter.dump_json(row) + b"\n")
        self._sink.flush()

    def close(self) -> None:
        if self._sink is not None:
            self._sink.close()


class RunStore:
    """The answers and judgements of one run folder. One writer at a time; readers may look on.

    Args:
        folder: created where needed.
        read_only: only look; the folder must exist.

    Raises:
        StoreError: another process writes here, or the folder cannot be used.
        DataError: a file is damaged; names the line.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        with ExitStack() as held:
            try:
                if not read_only:
                    folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(exclusive(folder / "lock", on_wait=lambda: _refuse(folder)))
                self._answers = _File(folder / "answers.jsonl", StoredAnswer, read_only=read_only)
                held.callback(self._answers.close)
                self._judgements = _File(
                    folder / "judgements.jsonl", StoredJudgement, read_only=read_only
                )
                held.callback(self._judgements.close)
                self.answers: dict[str, StoredAnswer] = {
                    row.key: row for row in self._answers.rows()
                }
                self.judgements: dict[str, StoredJudgement] = {
                    row.key: row for row in self._judgements.rows()
                }
            except FileExistsError:
                raise StoreError(f"{folder} is a file, no folder; name another --out") from None
            except OSError as error:
                raise StoreError(f"{folder}: {error.strerror or error}") from error
            self._held = held.pop_all()

    def keep_answer(self, row: StoredAnswer) -> None:
        """Store an answer; when this returns it survives the end of the process."""
        self._write(self._answers, row)
        self.answers[row.key] = row

    def keep_judgement(self, row: StoredJudgement) -> None:
        """Store a judgement, likewise."""
        self._write(self._judgements, row)
        self.judgements[row.key] = row

    def _write(self, file: _File, row: object) -> None:
        try:
            file.add(row)
        except OSError as error:
            raise StoreError(f"{self.folder}: {error.strerror or error}") from error

    def close(self) -> None:
        """Let go of the files. Idempotent."""
        self._held.close()


def _refuse(folder: Path) -> None:
    raise StoreError(f"{folder}: another vlmguard eval writes here; wait, or name another --out")


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step: a reader sees the old or the new one, never half of it."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)
