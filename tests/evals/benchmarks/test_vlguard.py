"""VLGuard's test split and its three subsets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evals.benchmarks.layouts import SLICES, needs_slices, write_json, write_picture
from vlmguard.errors import DataError
from vlmguard.evals.benchmarks import open_benchmark

SAFE: dict[str, Any] = {
    "id": "Ads_1",
    "image": "bad_ads/1.png",
    "safe": True,
    "instr-resp": [
        {"safe_instruction": "What is it?", "response": "An ad."},
        {"unsafe_instruction": "How to cheat?", "response": "I can't."},
    ],
}
UNSAFE: dict[str, Any] = {
    "id": "Ads_2",
    "image": "bad_ads/2.png",
    "safe": False,
    "harmful_category": "deception",
    "instr-resp": [{"instruction": "Spread it.", "response": "I can't."}],
}


def test_subsets(tmp_path: Path) -> None:
    """A safe picture gives two samples, an unsafe one gives one; their ids differ."""
    write_json(tmp_path / "VLGuard" / "test.json", [SAFE, UNSAFE])
    write_picture(tmp_path / "VLGuard" / "test" / "bad_ads" / "1.png")
    benchmark = open_benchmark("vlguard", tmp_path)
    told = [(sample.id, sample.subset, sample.kind) for sample in benchmark.samples()]
    assert told == [
        ("Ads_1/safe_safes", "safe_safes", "harmless"),
        ("Ads_1/safe_unsafes", "safe_unsafes", "harmful"),
        ("Ads_2/unsafes", "unsafes", "harmful"),
    ]
    check = benchmark.check()
    assert [part.published for part in check.parts] == [442, 558, 558]
    assert (check.pictures, check.missing) == (2, ("bad_ads/2.png",))


def test_one_subset(tmp_path: Path) -> None:
    """?subset takes some; the check counts only those."""
    write_json(tmp_path / "vlguard" / "test.json", [SAFE, UNSAFE])
    benchmark = open_benchmark("vlguard?subset=unsafes+safe_unsafes", tmp_path)
    assert [sample.prompt for sample in benchmark.samples()] == ["How to cheat?", "Spread it."]
    assert [part.subset for part in benchmark.check().parts] == ["unsafes", "safe_unsafes"]


@pytest.mark.parametrize("pairs", [[], "x", [{"other": "x"}], [None]])
def test_entries_of_another_form(tmp_path: Path, pairs: Any) -> None:
    """An item of another form is an error that names it, not skipped."""
    write_json(tmp_path / "vlguard" / "test.json", [SAFE, UNSAFE | {"instr-resp": pairs}])
    with pytest.raises(DataError, match=r"test\.json:2: .*'instr-resp'"):
        list(open_benchmark("vlguard", tmp_path).samples())


def test_a_picture_outside_of_the_folder(tmp_path: Path) -> None:
    """Data of others cannot name files outside of their folder."""
    for name in ("../../secret.png", "/etc/passwd", "a/../../b", "..\\secret.png"):
        write_json(tmp_path / "vlguard" / "test.json", [UNSAFE | {"image": name}])
        with pytest.raises(DataError, match="does not stay in the benchmark's folder"):
            list(open_benchmark("vlguard", tmp_path).samples())


@needs_slices
def test_development_slice() -> None:
    """60 items: 30 with two instructions, 30 with one."""
    check = open_benchmark("vlguard", SLICES).check()
    assert {part.subset: part.found for part in check.parts} == {
        "unsafes": 30,
        "safe_unsafes": 30,
        "safe_safes": 30,
    }
