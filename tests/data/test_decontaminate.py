"""Overlaps with benchmarks are found in every format, and ordinary language is none."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests.data.test_dedupe import LONG, safe, saved
from tests.data.test_reader import CONTRAST, write_lines
from vlmguard.data import scan
from vlmguard.data.decontaminate import OverlapKind, find_overlaps
from vlmguard.errors import DataError

pytest.importorskip("datasketch")
SHARED = Path(__file__).parents[3] / "shared" / "data"
CONTRASTS = Path(__file__).parents[2] / "datasets" / "contrast"


def benchmark(folder: Path) -> Path:
    folder.mkdir()
    nested = [{"id": 1, "instr-resp": [{"instruction": LONG}]}]
    (folder / "a.json").write_text(json.dumps(nested), encoding="utf-8")
    write_lines(folder / "deep" / "b.jsonl", {"q": "Why is the sky so very blue today?"})
    with (folder / "c.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.DictWriter(file, ["n", "text"])
        rows.writeheader()
        rows.writerow({"n": 1, "text": "Steps to open, quietly,\nthe neighbour's garden gate."})
    return folder


def test_kinds(tmp_path: Path) -> None:
    """Exact, contained and similar texts are found, with their places and both texts."""
    path = saved(
        tmp_path,
        safe("exact", "why is the SKY so very blue today"),
        safe("contained", "Hello there. " + " ".join(LONG.split()[:14]) + "."),
        safe("similar", LONG.replace("friendly", "simple").replace("small", "little")),
        safe("other", "How is bread baked in an old stone oven?"),
    )
    report = find_overlaps(scan(path), [benchmark(tmp_path / "bench")])
    assert (report.records, report.files, report.strings) == (4, 3, 3)
    exact, contained, similar = report.overlaps
    assert (exact.id, exact.kind, exact.benchmark) == (
        "exact",
        OverlapKind.EXACT,
        "deep/b.jsonl:1.q",
    )
    assert (contained.id, contained.kind) == ("contained", OverlapKind.CONTAINED)
    assert contained.benchmark == "a.json:[0].instr-resp[0].instruction"
    assert contained.benchmark_text == LONG
    assert (similar.id, similar.kind) == ("similar", OverlapKind.SIMILAR)


def test_pictures_and_rewrites(tmp_path: Path) -> None:
    """Text in pictures is compared over its line breaks, and rewrites are compared, too."""
    typed = {
        **CONTRAST,
        "images": [
            {"text": ["Steps to open quietly", "the neighbour's", "garden gate"], "objects": []}
        ],
        "rewrite": LONG,
    }
    path = write_lines(tmp_path / "r.jsonl", typed)
    report = find_overlaps(scan(path), [benchmark(tmp_path / "bench")])
    assert [found.part for found in report.overlaps] == ["image 1 text", "rewrite"]
    assert report.overlaps[0].benchmark == "c.csv:row 1.text"


def test_parquet(tmp_path: Path) -> None:
    """Strings of Parquet files are compared, also nested ones."""
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table({"turns": [[{"text": LONG}]]}), tmp_path / "b.parquet")
    path = saved(tmp_path, safe("a", LONG))
    [found] = find_overlaps(scan(path), [tmp_path / "b.parquet"]).overlaps
    assert found.benchmark == "b.parquet:row 1.turns[0].text"


def test_short_texts_are_no_overlap(tmp_path: Path) -> None:
    """Three words in common are chance."""
    (tmp_path / "b.json").write_text('["What is this?"]')
    path = saved(tmp_path, safe("a", "What is this?"))
    assert find_overlaps(scan(path), [tmp_path / "b.json"]).overlaps == []


def test_unreadable_benchmarks(tmp_path: Path) -> None:
    """A benchmark that was not read is an error, never an all-clear."""
    path = saved(tmp_path, safe("a", LONG))
    for name, content in (("x.json", "{"), ("x.csv", "a\n\xff"), ("x.parquet", "PAR1")):
        (tmp_path / name).write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"cannot be read|not UTF-8"):
            find_overlaps(scan(path), [tmp_path / name])
    with pytest.raises(DataError, match="does not exist"):
        find_overlaps(scan(path), [tmp_path / "absent"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no"):
        find_overlaps(scan(path), [tmp_path / "empty"])


def test_contrast_set_is_clean() -> None:
    """No text of the authored set stands in the development slices."""
    if not SHARED.is_dir():
        pytest.skip("the benchmark slices are not here")
    assert find_overlaps(scan(CONTRASTS), [SHARED]).overlaps == []
