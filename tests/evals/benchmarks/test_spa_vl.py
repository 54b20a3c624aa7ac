"""SPA-VL's evaluation splits, from files and through ``datasets``."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.drawing import encode, shapes
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import open_benchmark


def write_split(folder: Path, split: str, *, picture: bytes | None = None) -> None:
    """In the layout of the dataset's repository."""
    data = encode(shapes(size=(20, 20))) if picture is None else picture
    rows = [
        {
            "image": {"bytes": data, "path": "1.jpg"},
            "question": f"A question of {split}?",
            "class1": "Toxicity Harms",
        }
    ]
    (folder / "test").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "test" / f"{split}-00000-of-00001.parquet")


def test_files(tmp_path: Path) -> None:
    """Harm is harmful; help is scored by preference, so it counts for no rate."""
    for split in ("harm", "help"):
        write_split(tmp_path / "SPA-VL", split)
    benchmark = open_benchmark("spa-vl", tmp_path)
    told = [(s.id, s.subset, s.kind, s.category) for s in benchmark.samples()]
    assert told == [
        ("harm/0001", "harm", "harmful", "Toxicity Harms"),
        ("help/0001", "help", "advice", "Toxicity Harms"),
    ]
    assert next(benchmark.samples()).chat().images[0].media_type == "image/png"
    check = benchmark.check()
    assert check.ready
    assert (check.pictures, [part.published for part in check.parts]) == (2, [265, 265])


def test_pictures_that_are_none(tmp_path: Path) -> None:
    """An empty cell, and bytes that are no picture, are errors that name the file."""
    write_split(tmp_path / "spa_vl", "harm", picture=b"")
    benchmark = open_benchmark("spa-vl", tmp_path)
    with pytest.raises(DataError, match="holds no picture"):
        next(benchmark.samples())
    write_split(tmp_path / "spa_vl", "harm", picture=b"<html>")
    with pytest.raises(DataError, match=r"harm-.*parquet: a picture cannot be used"):
        next(benchmark.samples()).chat()


def test_through_datasets(tmp_path: Path) -> None:
    """?hub streams the two splits of the configuration ``test``, pictures still encoded."""
    for split in ("harm", "help"):
        write_split(tmp_path / "hub", split)
    (tmp_path / "hub" / "README.md").write_text(
        "---\nconfigs:\n- config_name: test\n  data_files:\n"
        "  - split: harm\n    path: test/harm-*.parquet\n"
        "  - split: help\n    path: test/help-*.parquet\n---\n",
        encoding="utf-8",
    )
    benchmark = open_benchmark(f"spa-vl?hub={tmp_path / 'hub'}", tmp_path)
    assert [sample.id for sample in benchmark.samples()] == ["harm/0001", "help/0001"]
    assert next(benchmark.samples()).chat().images
    assert benchmark.check().fingerprint is not None


def test_absent(tmp_path: Path) -> None:
    """Nothing there is an error that says how to get it."""
    check = open_benchmark("spa-vl", tmp_path).check()
    assert check.problem is not None
    assert "Download the folder test of the dataset sqrti/SPA-VL" in check.problem
    assert "spa-vl?hub" in check.problem
