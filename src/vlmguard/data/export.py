"""Training files for TRL, ms-swift and LLaMA-Factory, and plain JSON Lines.

What a rewriter reads and writes comes from `vlmguard.rewriting.format` and from the same system
prompt that serves trained rewriters, so an export trains on exactly what serving sends.

=================  ==========================================================================
``trl``            ``train.parquet`` …: ``prompt`` and ``completion`` as messages, ``images`` as
                   a column of pictures that `datasets` decodes
``ms-swift``       ``train.jsonl`` …: ``messages`` with one ``<image>`` a picture, ``images``
``llama-factory``  the same rows, and ``dataset_info.json``
``jsonl``          the records themselves, readable by `vlmguard.data.read_records`
=================  ==========================================================================
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from vlmguard.data.example import Example, example_of
from vlmguard.data.found import Found
from vlmguard.data.pictures import load_picture, picture_path
from vlmguard.data.records import Split, TrainingRecord
from vlmguard.data.trl_file import TrlFile
from vlmguard.errors import ConfigError, DataError
from vlmguard.rewriting.format import Layout
from vlmguard.types import Image

_PLACEHOLDER = re.compile(r"<(?=(?:image|video|audio)>)")
"""What ms-swift and LLaMA-Factory replace by media, wherever in a conversation it stands."""


class ExportFormat(StrEnum):
    """Who is to read the files."""

    TRL = "trl"
    MS_SWIFT = "ms-swift"
    LLAMA_FACTORY = "llama-factory"
    JSONL = "jsonl"


@dataclass(slots=True)
class ExportSummary:
    """What was written, by split, and what was left out, by reason."""

    written: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)


def export(
    records: Iterable[Found],
    out: Path,
    kind: ExportFormat,
    *,
    blind: bool = False,
    layout: Layout = Layout.VERDICT_FIRST,
) -> ExportSummary:
    """Write training files, one a split, and copy the pictures they name.

    Args:
        records: from `vlmguard.data.scan`; an error among them is raised.
        out: a folder that is new or empty.
        kind: who is to read it.
        blind: render evidence as text, for models that cannot see; no pictures are exported.
            Not for ``jsonl``, which holds all there is.
        layout: the order in which the rewriter is to write. Not for ``jsonl``.

    Returns:
        Counts. Records that a blind or a sighted model cannot learn from are left out and counted.

    Raises:
        ConfigError: ``out`` is not empty.
        DataError: a wrong record, a missing picture, or nothing to export.
        MissingExtra: ``trl`` without pyarrow.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} is there already and not an empty folder; choose another")
    blind = blind and kind is not ExportFormat.JSONL
    out.mkdir(parents=True, exist_ok=True)
    summary = ExportSummary()
    with ExitStack() as files:
        writer = _Writer(out, kind, files, blind=blind, layout=layout)
        for found in records:
            if isinstance(found.outcome, DataError):
                raise found.outcome
            if reason := _unusable(found.outcome, kind, blind=blind):
                summary.left_out[reason] += 1
                continue
            writer.write(found, found.outcome)
            summary.written[found.outcome.split] += 1
    if not summary.written:
        reasons = ", ".join(f"{n} {why}" for why, n in summary.left_out.items()) or "no records"
        raise DataError(f"nothing to export: {reasons}", path=out)
    if kind is ExportFormat.LLAMA_FACTORY:
        _write_dataset_info(out, summary, blind=blind)
    return summary


def _unusable(record: TrainingRecord, kind: ExportFormat, *, blind: bool) -> str | None:
    """Why a model cannot learn from the record; ``None`` when it can."""
    if kind is ExportFormat.JSONL:
        return None
    if blind and len(record.images) > len(record.evidence):
        return "with pictures of which no evidence is stored"
    if not blind and len(record.evidence) > len(record.images):
        return "with evidence but without pictures; export them with --blind"
    return None


class _Writer:
    """Opens one file a split when the first record of that split comes."""

    def __init__(
        self, out: Path, kind: ExportFormat, files: ExitStack, *, blind: bool, layout: Layout
    ) -> None:
        self._out = out
        self._kind = kind
        self._files = files
        self._blind = blind
        self._layout = layout
        self._tables: dict[Split, TrlFile] = {}
        self._texts: dict[Split, IO[str]] = {}

    def write(self, found: Found, record: TrainingRecord) -> None:
        images = () if self._blind else tuple(load_picture(found.root, r) for r in record.images)
        if self._kind is not ExportFormat.TRL:
            self._store(record, images)
        if self._kind is ExportFormat.JSONL:
            self._lines(record.split).write(record.model_dump_json(exclude_defaults=True) + "\n")
            return
        example = example_of(record, blind=self._blind, layout=self._layout, images=images)
        if self._kind is ExportFormat.TRL:
            self._table(record.split).write(example)
        else:
            row = _conversation(example, found)
            self._lines(record.split).write(json.dumps(row, ensure_ascii=False) + "\n")

    def _store(self, record: TrainingRecord, images: tuple[Image, ...]) -> None:
        for ref, image in zip(record.images, images, strict=False):
            target = picture_path(self._out, ref)
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(image.data)

    def _lines(self, split: Split) -> IO[str]:
        if split not in self._texts:
            path = self._out / f"{split}.jsonl"
            self._texts[split] = self._files.enter_context(path.open("w", encoding="utf-8"))
        return self._texts[split]

    def _table(self, split: Split) -> TrlFile:
        if split not in self._tables:
            table = TrlFile(self._out / f"{split}.parquet", with_images=not self._blind)
            self._files.callback(table.close)
            self._tables[split] = table
        return self._tables[split]


def _conversation(example: Example, found: Found) -> dict[str, Any]:
    """A row in the form that ms-swift and LLaMA-Factory share.

    A placeholder that somebody typed is shown as look-alike in the request (as in serving), and
    written as a JSON escape in the completion, where it means the same.
    """
    marks = "<image>" * len(example.names)
    request = _PLACEHOLDER.sub("‹", example.request)
    messages = [
        {"role": "system", "content": example.system},
        {"role": "user", "content": marks + request},
        {"role": "assistant", "content": _PLACEHOLDER.sub(r"\\u003c", example.completion)},
    ]
    if sum(message["content"].count("<image>") for message in messages) != len(example.names):
        raise DataError(
            "the number of <image> marks differs from that of the pictures",
            path=found.path,
            line=found.line,
        )
    return {"messages": messages, "images": list(example.names)}


def _write_dataset_info(out: Path, summary: ExportSummary, *, blind: bool) -> None:
    """The entries that LLaMA-Factory looks for beside the files (``--dataset_dir``)."""
    columns = {"messages": "messages"} | ({} if blind else {"images": "images"})
    tags = {
        "role_tag": "role",
        "content_tag": "content",
        "user_tag": "user",
        "assistant_tag": "assistant",
        "system_tag": "system",
    }
    info = {
        f"vlmguard_{split}": {
            "file_name": f"{split}.jsonl",
            "formatting": "sharegpt",
            "columns": columns,
            "tags": tags,
        }
        for split in sorted(summary.written)
    }
    (out / "dataset_info.json").write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
