"""MSSBench's chat pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evals.benchmarks.layouts import write_json, write_picture
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import open_benchmark

ITEM: dict[str, Any] = {
    "safe_image_path": "a.jpg",
    "unsafe_image_path": "b.jpg",
    "intent": "running",
    "Type": "physical harm",
    "queries": ["How do I run faster?", "Any tips?"],
}


def test_pairs(tmp_path: Path) -> None:
    """Every question comes with both pictures: harmless with one, harmful with the other."""
    write_json(tmp_path / "mssbench" / "combined.json", {"chat": [ITEM], "embodied": [{}]})
    for name in ("a.jpg", "b.jpg"):
        write_picture(tmp_path / "mssbench" / "chat" / name, "JPEG")
    benchmark = open_benchmark("mssbench", tmp_path)
    told = [(s.id, s.subset, s.kind) for s in benchmark.samples()]
    assert told == [
        ("1/1/safe", "safe_situation", "harmless"),
        ("1/1/unsafe", "unsafe_situation", "harmful"),
        ("1/2/safe", "safe_situation", "harmless"),
        ("1/2/unsafe", "unsafe_situation", "harmful"),
    ]
    check = benchmark.check()
    assert check.ready
    assert check.pictures == 2
    assert check.notes == ("1 embodied tasks are not read",)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"chat": [ITEM | {"queries": []}]}, r"combined\.json:1: 'queries' is a list"),
        ({"chat": ["x"]}, r"combined\.json:1: an entry of 'chat'"),
        ({"embodied": []}, "has no list 'chat'"),
        ([], "has no list 'chat'"),
    ],
)
def test_another_form(tmp_path: Path, content: Any, told: str) -> None:
    """It is an error that names the place."""
    write_json(tmp_path / "mssbench" / "combined.json", content)
    with pytest.raises(DataError, match=told):
        list(open_benchmark("mssbench", tmp_path).samples())
