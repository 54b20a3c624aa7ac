"""A file of requests, reviewed concurrently, written in order, resumed after an interruption."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from vlmguard.cli.options import existing_file
from vlmguard.cli.show import err
from vlmguard.defences import Guard
from vlmguard.errors import ConfigError, DataError, ModelStoreError, VLMGuardError

_ENDS_THE_RUN = (ConfigError, ModelStoreError)
"""These would hit every line alike, so the run stops instead of writing a file of errors."""


class Item(BaseModel):
    """A line of the input file."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | int | None = None
    prompt: str = ""
    images: list[str] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """A line of the input with its number, counted from 1."""

    number: int
    raw: bytes

    def item(self, path: Path) -> Item:
        try:
            return Item.model_validate_json(self.raw)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            place = ".".join(str(part) for part in problem["loc"])
            told = f"{place}: {problem['msg']}" if place else problem["msg"]
            raise DataError(told, path=path, line=self.number) from None

    @property
    def id(self) -> str | int:
        """The id that the line gives, or its number."""
        try:
            value = json.loads(self.raw).get("id")
        except (ValueError, AttributeError, RecursionError):
            value = None
        return value if isinstance(value, str | int) else self.number


@dataclass(slots=True)
class Summary:
    """What a run did."""

    reviewed: int = 0
    risky: int = 0
    failed: int = 0
    resumed: int = 0


def run(
    guard: Guard,
    input_file: Path,
    output_file: Path,
    *,
    concurrency: int,
    allow_remote: bool,
    as_json: bool,
) -> None:
    """Review every line of ``input_file`` that ``output_file`` does not have yet.

    A line that cannot be used becomes a record ``{"id", "error": {"type", "message"}}``.

    Raises:
        ConfigError: a file cannot be read or written, or the output belongs to another input.
        typer.Exit: with code 1 when any line failed.
    """
    existing_file(input_file, "input")
    if output_file.exists() and output_file.samefile(input_file):
        raise ConfigError("--output would overwrite --input")
    summary = Summary()
    with _open_output(output_file) as sink:
        summary.resumed = _finished_lines(sink, input_file, output_file)
        asyncio.run(
            _review_all(guard, input_file, sink, summary, concurrency, allow_remote=allow_remote)
        )
    told = {"output": str(output_file), **{key: getattr(summary, key) for key in Summary.__slots__}}
    if as_json:
        typer.echo(json.dumps(told))
    else:
        err.print(
            f"{output_file}: {summary.reviewed} reviewed, {summary.risky} risky, "
            f"{summary.failed} failed, {summary.resumed} were there already"
        )
    if summary.failed:
        raise typer.Exit(1)


def _open_output(path: Path) -> BinaryIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return open(path, "a+b")  # noqa: PTH123  # the caller closes it
    except OSError as error:
        raise ConfigError(f"the output {path} cannot be written: {error.strerror}") from error


def _finished_lines(sink: BinaryIO, input_file: Path, output_file: Path) -> int:
    """Lines that an earlier run finished; a half-written last one is cut off.

    Raises:
        ConfigError: they do not belong to this input.
    """
    sink.seek(0)
    done, end = 0, 0
    with input_file.open("rb") as source:
        lines = _lines(source)
        for written in sink:
            if not written.endswith(b"\n"):
                break
            line = next(lines, None)
            try:
                found = json.loads(written)["id"]
            except (ValueError, KeyError, TypeError):
                found = None
            if line is None or found != line.id:
                raise ConfigError(
                    f"{output_file}:{done + 1} does not belong to {input_file}; "
                    "name another --output, or delete it to start over"
                )
            done, end = done + 1, end + len(written)
    sink.truncate(end)
    sink.seek(0, os.SEEK_END)
    return done


def _lines(source: BinaryIO) -> Iterator[_Line]:
    """The lines that are not blank."""
    for number, raw in enumerate(source, start=1):
        if raw.strip():
            yield _Line(number=number, raw=raw)


async def _review_all(
    guard: Guard,
    input_file: Path,
    sink: BinaryIO,
    summary: Summary,
    concurrency: int,
    *,
    allow_remote: bool,
) -> None:
    total = sum(1 for _ in _lines_of(input_file))
    progress = Progress(
        TextColumn("reviewing"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
    )
    pending: deque[asyncio.Task[dict[str, Any]]] = deque()
    gate = asyncio.Semaphore(concurrency)

    async def review(line: _Line) -> dict[str, Any]:
        async with gate:
            return await _review(guard, line, input_file, allow_remote=allow_remote)

    async def write_oldest() -> None:
        record = await pending.popleft()
        sink.write(json.dumps(record, ensure_ascii=False).encode() + b"\n")
        sink.flush()
        summary.reviewed += 1
        summary.risky += record.get("verdict") == "risky"
        summary.failed += "error" in record
        progress.advance(bar)

    with progress:
        bar = progress.add_task("reviewing", total=total, completed=summary.resumed)
        try:
            for index, line in enumerate(_lines_of(input_file)):
                if index < summary.resumed:
                    continue
                pending.append(asyncio.create_task(review(line)))
                # A slow line holds back those after it; the look-ahead keeps the others busy.
                if len(pending) >= 4 * concurrency:
                    await write_oldest()
            while pending:
                await write_oldest()
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


def _lines_of(path: Path) -> Iterator[_Line]:
    with path.open("rb") as source:
        yield from _lines(source)


async def _review(
    guard: Guard, line: _Line, input_file: Path, *, allow_remote: bool
) -> dict[str, Any]:
    """The output record of one line."""
    try:
        item = line.item(input_file)
        images = [_resolve(image, input_file.parent) for image in item.images]
        decided = await guard.rewrite(item.prompt, images, allow_remote=allow_remote)
    except _ENDS_THE_RUN:
        raise
    except VLMGuardError as error:
        return {"id": line.id, "error": {"type": type(error).__name__, "message": str(error)}}
    return decided.to_json(id=line.id)


def _resolve(image: str, folder: Path) -> str:
    """A relative path is relative to the input file; URLs stay."""
    head = image.lstrip().lower()
    return image if head.startswith(("data:", "http:", "https:")) else str(folder / image)
