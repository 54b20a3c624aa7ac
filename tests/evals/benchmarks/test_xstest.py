"""XSTest, from files and through ``datasets``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evals.benchmarks.layouts import SLICES, needs_slices, write_csv, xstest_rows
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import open_benchmark


def test_labels(tmp_path: Path) -> None:
    """The label is the subset; safe prompts are harmless."""
    write_csv(tmp_path / "xstest" / "xstest_prompts.csv", xstest_rows())
    told = [(s.id, s.subset, s.kind) for s in open_benchmark("xstest", tmp_path).samples()]
    assert told == [("1", "safe", "harmless"), ("26", "unsafe", "harmful")]


def test_older_copy_without_labels(tmp_path: Path) -> None:
    """There, contrasts are the unsafe ones."""
    rows = [{key: value for key, value in row.items() if key != "label"} for row in xstest_rows()]
    write_csv(tmp_path / "xstest" / "xstest_v2_prompts.csv", rows)
    samples = open_benchmark("xstest", tmp_path).samples()
    assert [sample.subset for sample in samples] == ["safe", "unsafe"]


def test_another_label(tmp_path: Path) -> None:
    """A label that is neither is an error."""
    write_csv(tmp_path / "xstest" / "xstest_prompts.csv", [{**xstest_rows()[0], "label": "x"}])
    with pytest.raises(DataError, match="'x' is neither safe nor unsafe"):
        list(open_benchmark("xstest", tmp_path).samples())


@pytest.mark.parametrize("name", ["train.csv", "test.csv"])
def test_through_datasets(tmp_path: Path, name: str) -> None:
    """?hub streams the only split, whatever its name."""
    write_csv(tmp_path / "hub" / name, xstest_rows())
    benchmark = open_benchmark(f"xstest?hub={tmp_path / 'hub'}", tmp_path)
    assert [sample.id for sample in benchmark.samples()] == ["1", "26"]


@needs_slices
def test_development_slice() -> None:
    """100 safe and 80 unsafe prompts."""
    check = open_benchmark("xstest", SLICES).check()
    assert {part.subset: part.found for part in check.parts} == {"safe": 100, "unsafe": 80}
