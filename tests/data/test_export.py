"""Exports train on what serving sends, and their picture marks always fit their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.data.test_reader import CONTRAST, harmless, write_lines
from tests.data.test_writer import full, picture, risky, write
from vlmguard.data import image_ref, read_records, scan
from vlmguard.data.export import ExportFormat, export
from vlmguard.errors import ConfigError, DataError
from vlmguard.rewriting.format import Layout, parse_assessment

pytest.importorskip("pyarrow")
CONVERSATIONS = (ExportFormat.MS_SWIFT, ExportFormat.LLAMA_FACTORY)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(row: dict[str, Any]) -> list[str]:
    return [message["content"] for message in row["messages"]]


def test_jsonl_comes_back(tmp_path: Path) -> None:
    """The plain export holds the records and their pictures, and reads back as it was."""
    write(tmp_path / "in", [full(1), full(2)])
    export(scan(tmp_path / "in"), tmp_path / "out", ExportFormat.JSONL)
    expected = sorted(read_records(tmp_path / "in"), key=lambda record: record.id)
    assert sorted(read_records(tmp_path / "out"), key=lambda record: record.id) == expected
    assert (tmp_path / "out" / expected[0].images[0].path).read_bytes()


@pytest.mark.parametrize("kind", CONVERSATIONS)
def test_marks_fit_the_pictures(tmp_path: Path, kind: ExportFormat) -> None:
    """Typed `<image>` marks are no marks, wherever they stand, and the answer still parses."""
    typed = risky(
        1,
        split="train",
        prompt="Is <image> or <video> a tag?",
        earlier=[{"role": "user", "text": "<image><image>"}],
        rewrite="Say what <image> means in HTML, nothing of bombs.",
    )
    write(tmp_path / "in", [typed])
    export(scan(tmp_path / "in"), tmp_path / "out", kind)
    [row] = rows(tmp_path / "out" / "train.jsonl")
    assert row["images"] == [image_ref(picture(typed.id)).path]
    assert (tmp_path / "out" / row["images"][0]).is_file()
    assert "".join(contents(row)).count("<image>") == 1
    assert "<video>" not in "".join(contents(row))
    _, request, completion = contents(row)
    assert request.startswith("<image>Earlier user:")
    assert parse_assessment(completion, Layout.VERDICT_FIRST).prompt == typed.rewrite


def test_marks_in_object_labels(tmp_path: Path) -> None:
    """A label that reads like a mark does not count as one, either."""
    odd = {**CONTRAST, "images": [{"text": ["1."], "objects": [["<image>", 0.5]]}]}
    path = write_lines(tmp_path / "in.jsonl", odd)
    export(scan(path), tmp_path / "out", ExportFormat.MS_SWIFT, blind=True)
    [row] = [row for file in (tmp_path / "out").iterdir() for row in rows(file)]
    assert row["images"] == []
    assert "<image>" not in "".join(contents(row))


def test_dataset_info(tmp_path: Path) -> None:
    """LLaMA-Factory finds an entry a split, whose columns are those of the rows."""
    write(tmp_path / "in", [risky(1, split="train"), risky(2, split="test")])
    export(scan(tmp_path / "in"), tmp_path / "out", ExportFormat.LLAMA_FACTORY)
    info = json.loads((tmp_path / "out" / "dataset_info.json").read_text())
    assert sorted(info) == ["vlmguard_test", "vlmguard_train"]
    entry = info["vlmguard_train"]
    [row] = rows(tmp_path / "out" / entry["file_name"])
    assert set(entry["columns"].values()) == set(row)
    assert {message["role"] for message in row["messages"]} == {
        entry["tags"][tag] for tag in ("system_tag", "user_tag", "assistant_tag")
    }


def test_blind_reads_evidence(tmp_path: Path) -> None:
    """Blind exports show evidence as text, in the chosen layout, and leave no record silently."""
    path = write_lines(tmp_path / "in" / "a.jsonl", CONTRAST, harmless())
    summary = export(
        scan(path.parent),
        tmp_path / "out",
        ExportFormat.MS_SWIFT,
        blind=True,
        layout=Layout.REASON_FIRST,
    )
    assert summary.written.total() == 2
    first, second = [row for file in (tmp_path / "out").iterdir() for row in rows(file)]
    assert 'Image 1 text: "HOW A PIPE BOMB / IS MADE / 1."' in contents(first)[1]
    assert contents(first)[2].startswith('{"textual": "Asks for')
    assert parse_assessment(contents(second)[2], Layout.REASON_FIRST).verdict == "safe"
    with pytest.raises(DataError, match="2 with evidence but without pictures"):
        export(scan(path.parent), tmp_path / "vlm", ExportFormat.MS_SWIFT)


def test_unusable_records_are_counted(tmp_path: Path) -> None:
    """A blind export leaves pictures without evidence out, and says how many."""
    write(tmp_path / "in", [full(1), risky(2)])
    summary = export(scan(tmp_path / "in"), tmp_path / "out", ExportFormat.TRL, blind=True)
    assert summary.written.total() == 1
    assert summary.left_out == {"with pictures of which no evidence is stored": 1}


def test_trl_file_loads(tmp_path: Path) -> None:
    """`datasets` loads the TRL file as prompt, completion and decoded pictures."""
    from pyarrow import parquet

    write(tmp_path / "in", [risky(1, split="train")])
    export(scan(tmp_path / "in"), tmp_path / "out", ExportFormat.TRL)
    table = parquet.read_table(tmp_path / "out" / "train.parquet")
    [row] = table.to_pylist()
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert row["images"][0]["bytes"] == picture("family-1/1").data
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert features["images"]["feature"]["_type"] == "Image"


@pytest.mark.slow
def test_trl_takes_the_file(tmp_path: Path) -> None:
    """TRL's own function puts the pictures into the messages of an exported row."""
    pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from trl.data_utils import prepare_multimodal_messages

    write(tmp_path / "in", [risky(1, split="train")])
    export(scan(tmp_path / "in"), tmp_path / "out", ExportFormat.TRL)
    [row] = datasets.Dataset.from_parquet(
        str(tmp_path / "out" / "train.parquet"), cache_dir=str(tmp_path / "cache")
    )
    assert row["images"][0].size == (480, 320)
    _, user = prepare_multimodal_messages(row["prompt"], images=row["images"])
    assert [part["type"] for part in user["content"]] == ["image", "text"]


def test_foreign_picture_paths(tmp_path: Path) -> None:
    """A picture path that leads out of the dataset is refused; so are absent and changed files."""
    ref = image_ref(picture("x"))
    outside = ref.model_copy(update={"path": "../secret.png"})
    (tmp_path / "secret.png").write_bytes(picture("x").data)
    path = tmp_path / "in" / "r.jsonl"
    write_lines(path, risky(1, images=[outside]).model_dump_json())
    with pytest.raises(DataError, match="outside of"):
        export(scan(path), tmp_path / "a", ExportFormat.JSONL)
    write_lines(path, risky(1, images=[ref]).model_dump_json())
    with pytest.raises(DataError, match="cannot be read"):
        export(scan(path), tmp_path / "b", ExportFormat.JSONL)
    (path.parent / ref.path).parent.mkdir(parents=True)
    (path.parent / ref.path).write_bytes(b"other")
    with pytest.raises(DataError, match="SHA-256"):
        export(scan(path), tmp_path / "c", ExportFormat.JSONL)


def test_full_folder_is_kept(tmp_path: Path) -> None:
    """An export never mixes with files that are there."""
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ConfigError, match="not an empty folder"):
        export([], tmp_path, ExportFormat.JSONL)
