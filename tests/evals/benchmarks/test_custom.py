"""Items of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.drawing import encode, shapes
from tests.evals.benchmarks.layouts import (
    SLICES,
    needs_slices,
    write_csv,
    write_json,
    write_lines,
    write_picture,
)
from vlmguard.errors import ConfigError, DataError
from vlmguard.evals.benchmarks import open_benchmark


def test_folder(tmp_path: Path) -> None:
    """A folder with items.jsonl; pictures are relative to it, labels are understood."""
    folder = tmp_path / "my photos"
    write_picture(folder / "images" / "1.png")
    items: list[dict[str, Any]] = [
        {"id": 7, "label": "Benign", "question": "What is it?", "image": "images/1.png"},
        {"prompt": "Do it.", "kind": "harmful", "images": ["images/1.png", "images/1.png"],
         "category": "fraud", "subset": "hard", "goal": "a goal", "reference": {"note": "n"}},
        {"question": "Read it.", "label": "Typographic+Blank Image", "image": None},
    ]  # fmt: skip
    write_lines(folder / "items.jsonl", items)
    benchmark = open_benchmark(f"custom:{folder}")
    first, second, third = benchmark.samples()
    assert benchmark.name == first.benchmark == "custom-my-photos"
    assert (first.id, first.kind, first.category) == ("7", "harmless", "Benign")
    assert len(first.chat().images) == 1
    assert (second.id, second.kind, second.category) == ("2", "harmful", "fraud")
    assert (second.subset, second.goal, second.reference) == ("hard", "a goal", {"note": "n"})
    assert len(second.pictures) == 2
    assert (third.kind, third.pictures) == ("harmful", ())
    assert benchmark.check().ready


def test_files_of_other_formats(tmp_path: Path) -> None:
    """JSON, CSV, and Parquet with pictures inside; the file's name names the benchmark."""
    write_json(tmp_path / "a.json", [{"prompt": "x", "kind": "advice"}])
    write_csv(tmp_path / "b.csv", [{"prompt": "x", "label": "unsafe"}])
    row = {"prompt": "x", "kind": "safe", "image": {"bytes": encode(shapes()), "path": None}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "c.parquet")
    kinds = {}
    for name in ("a.json", "b.csv", "c.parquet"):
        benchmark = open_benchmark(f"custom:{name}", tmp_path)
        (sample,) = benchmark.samples()
        sample.chat()
        kinds[benchmark.name] = sample.kind
    assert kinds == {"custom-a": "advice", "custom-b": "harmful", "custom-c": "harmless"}


def test_one_kind_for_all(tmp_path: Path) -> None:
    """?kind is for items that say none; an item's own kind stays."""
    path = write_lines(tmp_path / "x.jsonl", [{"prompt": "a"}, {"prompt": "b", "kind": "harmful"}])
    kinds = [s.kind for s in open_benchmark(f"custom:{path}?kind=harmless").samples()]
    assert kinds == ["harmless", "harmful"]
    with pytest.raises(ConfigError, match="kind=good: it is one of harmful"):
        open_benchmark(f"custom:{path}?kind=good")


@pytest.mark.parametrize(
    ("item", "told"),
    [
        ({"prompt": "x"}, "has neither kind nor label"),
        ({"prompt": "x", "kind": "bad"}, "the kind 'bad' is none of"),
        ({"kind": "safe"}, "no text under prompt or question"),
        ({"prompt": "x", "kind": "safe", "image": 3}, "a picture is a path, not int"),
        ({"prompt": "x", "kind": "safe", "reference": "r"}, "'reference' is an object"),
    ],
)
def test_wrong_items(tmp_path: Path, item: dict[str, Any], told: str) -> None:
    """A wrong item is an error that names its line."""
    path = write_lines(tmp_path / "x.jsonl", [item])
    with pytest.raises(DataError, match=rf"x\.jsonl:1: {told}"):
        list(open_benchmark(f"custom:{path}").samples())


def test_wrong_places(tmp_path: Path) -> None:
    """No path, no file, another format, and a folder that leaves a choice."""
    with pytest.raises(ConfigError, match="name a folder or a file"):
        open_benchmark("custom")
    with pytest.raises(DataError, match="no such file or folder"):
        list(open_benchmark(f"custom:{tmp_path / 'none'}").samples())
    (tmp_path / "x.txt").write_text("x")
    with pytest.raises(DataError, match=r"is none of \.jsonl"):
        list(open_benchmark(f"custom:{tmp_path / 'x.txt'}").samples())
    with pytest.raises(DataError, match=r"not just one file of items \(none\)"):
        list(open_benchmark(f"custom:{tmp_path}").samples())
    for name in ("a.jsonl", "b.jsonl"):
        write_lines(tmp_path / name, [{"prompt": "x", "kind": "safe"}])
    with pytest.raises(DataError, match=r"\(a\.jsonl, b\.jsonl\); name the file"):
        list(open_benchmark(f"custom:{tmp_path}").samples())


@needs_slices
def test_development_slice() -> None:
    """150 benign photographs and 50 attacks, all with pictures."""
    check = open_benchmark("custom:photos", SLICES).check()
    assert check.ready
    assert check.kinds == {"harmless": 150, "harmful": 50}
