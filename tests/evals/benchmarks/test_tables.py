"""Files that are damaged, and downloads from the hub."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import write_json
from vlmguard.errors import DataError, MissingExtra
from vlmguard.evals.benchmarks import open_benchmark
from vlmguard.evals.benchmarks.tables import hub_folder, hub_rows, read_rows


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"{", "is no valid JSON"),
        ("a.json", b"{}", "holds a dict, not a list"),
        ("a.json", b"[1]", r"a\.json:1: a int, not an object"),
        ("a.json", b"[" * 100_000, "is no valid JSON"),
        ("a.json", b"\xff\xfe[", "is no valid JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[]\n', r"a\.jsonl:3: a list, not an object"),
        ("a.jsonl", b"\xff\n", "is not UTF-8"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:1: more cells"),
        ("a.csv", b"a\n\xff\n", "is no valid CSV"),
        ("a.parquet", b"PAR1", "cannot be read as Parquet"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    """The error names the file, and the row where there is one."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=told):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_absent_files(tmp_path: Path, name: str) -> None:
    """So does one about a file that is not there."""
    with pytest.raises(DataError, match="cannot be read"):
        list(read_rows(tmp_path / name))


def test_a_byte_order_mark_is_no_part_of_the_header(tmp_path: Path) -> None:
    """Spreadsheets write one."""
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,b\n1,2\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.text("id") == "1"


def test_lone_surrogates_become_question_marks(tmp_path: Path) -> None:
    """JSON can spell them, and no model takes them."""
    (tmp_path / "a.jsonl").write_text('{"a": "x\\ud800y é"}')
    (row,) = read_rows(tmp_path / "a.jsonl")
    assert row.text("a") == "x?y é"


def test_files_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """?hub takes what the hub's cache has; the files are in the public layout there."""
    cached = tmp_path / "datasets--my--siuo"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("abc123")
    item = {"question_id": 1, "image": "a.png", "question": "x"}
    write_json(cached / "snapshots" / "abc123" / "siuo_gen.json", [item])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (sample,) = open_benchmark("siuo?hub=my/siuo", tmp_path / "none").samples()
    assert sample.prompt == "x"


def test_a_hub_that_does_not_answer(tmp_path: Path) -> None:
    """The error says what to check."""
    with pytest.raises(DataError, match="cannot be downloaded from the Hugging Face Hub"):
        hub_folder("vlmguard-tests/none")
    with pytest.raises(DataError, match="cannot be read from the Hugging Face Hub"):
        next(hub_rows(str(tmp_path / "none"), split="train"))


def test_without_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that brings them."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[synth\]"):
        next(open_benchmark("xstest?hub").samples())
    with pytest.raises(MissingExtra, match=r"vlmguard-r1\[synth\]"):
        open_benchmark("siuo?hub")
