"""Other people's tables: as streams, and what is told of damaged ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vlmguard.data.tables import FORMATS, open_table, read_json, read_rows
from vlmguard.errors import DataError


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.json", b"{", "is not a JSON array of objects"),
        ("a.json", b"[1]", r"a\.json:1: a int, not a JSON object"),
        ("a.json", b"[" * 100_000, "broken JSON"),
        ("a.json", b'[{"a": "\xff"}]', r"a\.json:1: not UTF-8"),
        ("a.json", b'[{"a": 1}, {"a":', "broken JSON"),
        ("a.jsonl", b'{"a": 1}\n\n[]\n', r"a\.jsonl:3: a list, not a JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl:1: not UTF-8"),
        ("a.jsonl", b"{\n", r"a\.jsonl:1: not valid JSON"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:1: more cells"),
        ("a.csv", b"a\n\xff\n", r"a\.csv:1: not UTF-8"),
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


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b'{"a": "one"}\n{"a": \n{"a": "two"}\n'),
        ("a.json", b'[{"a": "one"}, 3, {"a": "two"}]'),
        ("a.tsv", b"a\none\nx\ty\ntwo\n"),
    ],
)
def test_broken_rows_come_with_their_problem(tmp_path: Path, name: str, content: bytes) -> None:
    """Who can do without them goes on behind them."""
    (tmp_path / name).write_bytes(content)
    kind = FORMATS[Path(name).suffix]
    found = list(open_table([tmp_path / name], kind).rows())
    assert [row.problem is None for row in found] == [True, False, True]
    assert [row.text("a", default="") for row in found if row.problem is None] == ["one", "two"]
    assert found[1].wrong("bad").path == tmp_path / name


def test_an_array_is_streamed(tmp_path: Path) -> None:
    """One that is longer than the read buffer comes out whole."""
    rows = [{"a": f"number {n} " + "é" * n} for n in range(700)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    assert [row.values for row in read_rows(path)] == rows


def test_columns_and_counts(tmp_path: Path) -> None:
    """Of every kind that can tell them without a full read."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows: list[dict[str, Any]] = [{"a": "1", "b": "x"}, {"a": "2", "b": "y"}]
    (tmp_path / "a.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "a.csv").write_text("a,b\n1,x\n2,y\n")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    for suffix, count in ((".jsonl", 2), (".json", None), (".csv", 2), (".parquet", 2)):
        table = open_table([tmp_path / f"a{suffix}"], FORMATS[suffix])
        assert (table.columns(), table.count()) == (("a", "b"), count)
        assert [dict(row.values) for row in table.rows()] == rows


def test_any_json_is_read_whole(tmp_path: Path) -> None:
    """Some benchmarks are one object; a damaged file is named."""
    (tmp_path / "a.json").write_text('{"v1_0": {"question": "x"}}')
    assert read_json(tmp_path / "a.json") == {"v1_0": {"question": "x"}}
    for content in (b"{", b"[" * 100_000, b"\xff\xfe["):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(DataError, match="not valid JSON"):
            read_json(tmp_path / "a.json")
